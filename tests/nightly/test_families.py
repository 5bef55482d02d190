"""Models of today's families, tiny and random, through whole runs; the table in the docs is what is measured here."""

import logging
import math
import re
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from families import FAMILIES, make_family
from tiny import nudge
from transformers import AutoModelForCausalLM

import crosspref
from crosspref.engines.packed.decoding import can_decode
from crosspref.engines.packed.head import TAKES_PACKED_ROWS, require_known_head
from crosspref.engines.transformers.scorer import ModelScorer
from crosspref.recipe.sections import RewardSettings
from crosspref.run.layout import RunDirectory

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
NATS = 1e-4  # per response
PROMPT = [0, *range(20, 50)]
RESPONSES = [[(31 * row + 17 * column * column) % 384 for column in range(5 * row + 1)] for row in range(6)]
TEXTS = {
    "en": ["Name a colour.", "Say hello.", "Count to three.", "Name a fruit."],
    "es": ["Nombra un color.", "Saluda.", "Cuenta hasta tres.", "Nombra una fruta."],
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The name of a family, and (pi_I, pi_0) of it."""
    folder = tmp_path_factory.mktemp("family")
    initial = make_family(request.param, folder / "initial")
    return request.param, initial, nudge(initial, folder / "policy")


def documented() -> dict[str, tuple[str, ...]]:
    """By family: how it is scored, sampled and trained, as the docs say."""
    rows = re.findall(r"^\| (.+?) \|(.+)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: tuple(cell.strip() for cell in cells.split("|")) for name, cells in rows}


def test_paths_and_values_are_those_of_the_docs(family: tuple[str, Path, Path]) -> None:
    name, initial, _ = family
    model = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = [float(naive.sequence_logprob(model, PROMPT, response)) for response in RESPONSES]
    scorer = ModelScorer(model, RewardSettings())
    values = scorer.logprobs(PROMPT, RESPONSES)
    assert values == pytest.approx(expected, abs=NATS)
    scored = "packed" if scorer.packed else "row by row"
    sampled = "packed" if can_decode(model) else "padded"
    require_known_head(model)
    trained = "packed" if getattr(model, TAKES_PACKED_ROWS, False) else "padded"
    logging.getLogger(__name__).info("%s: %.1e nats", name, max(map(abs, map(float.__sub__, values, expected))))
    assert documented()[name][:3] == (scored, sampled, trained)


@pytest.mark.parametrize("lora", [None, {"rank": 4, "save": "adapter"}], ids=["full", "lora"])
def test_a_whole_run_of_two_iterations(
    family: tuple[str, Path, Path], lora: dict[str, Any] | None, tmp_path: Path
) -> None:
    name, initial, policy = family
    if lora and name.startswith("Falcon H1"):  # peft refuses adapters for out_proj, which is in all-linear
        lora = {**lora, "target_modules": ".*(q_proj|v_proj|up_proj)"}
    prompts = tmp_path / "prompts.csv"
    lines = [
        f"p{number},{english},{spanish}\n"
        for number, (english, spanish) in enumerate(zip(*TEXTS.values(), strict=True))
    ]
    prompts.write_text("".join(["id,en,es\n", *lines]))
    recipe = {
        "models": {"initial": str(initial), "policy": str(policy)},
        "languages": ["en", "es"],
        "prompts": {"source": str(prompts)},
        "iterations": 2,
        "sample": {"n": 3, "max_new_tokens": 12, "batch_size": 8},
        "select": {"truncated": "keep", "min_gap": 0},
        "train": {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 2, "lora": lora},
        "resources": {"device": "cpu", "dtype": "float32", "threads": 1, "process_per_phase": False},
    }
    run = RunDirectory(tmp_path / "run")
    crosspref.align(recipe, run.root)
    for number in (1, 2):
        places = run.iteration(number)
        rewards = [row.implicit_reward for row in places.scores("crosslingual").rows("es")]
        assert len(rewards) == 3 * len(TEXTS["es"])
        assert all(reward is not None and reward != 0 for reward in rewards)
        assert places.pairs.rows("es")
    figures = places.policy.read_marker()["figures"]
    assert all(math.isfinite(entry["loss"]) for entry in figures["log"])
