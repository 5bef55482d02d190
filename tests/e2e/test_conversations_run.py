"""Runs on conversations: a system prompt, a second turn, both and neither go through every stage."""

import json
from pathlib import Path
from typing import Any

import naive
import pytest
from killing import Strike, run_with_kills
from running import ForkServer, Models, Run, by_key, rows, small_recipe, succeeded, write_lines, write_recipe
from transformers import AutoTokenizer

from crosspref import api
from crosspref.data.records import Pair, Prompt, Response, Score, as_messages
from crosspref.data.tables import read_rows

Turns = list[tuple[str, str]]
PREFIX = "Answer in {language} only, {please}. "
ENGLISH: dict[str, Turns] = {
    "system": [("system", "You are a cook."), ("user", "How do I keep bread fresh?")],
    "turns": [("user", "Name a herb."), ("assistant", "Basil."), ("user", "And another one?")],
    "both": [
        ("system", "Be brief.\n"),
        ("user", "What is yeast?"),
        ("assistant", "A fungus."),
        ("user", " Is it alive?"),
    ],
    "plain": [("user", "Write a line about soup.")],
}
SPANISH: dict[str, Turns] = {
    "system": [("system", "Eres cocinero."), ("user", "¿Cómo conservo el pan?")],
    "turns": [("user", "Di una hierba."), ("assistant", "Albahaca."), ("user", "¿Y otra?")],
    "both": [
        ("system", "Sé breve.\n"),
        ("user", "¿Qué es la levadura?"),
        ("assistant", "Un hongo."),
        ("user", " ¿Está viva?"),
    ],
    "plain": [("user", "Escribe una línea sobre sopa.")],
}


def messages(turns: Turns) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [
        {"id": key, "en": messages(ENGLISH[key]), "es": messages(SPANISH[key])} for key in ("system", "turns", "both")
    ]
    plain = {"id": "plain", "en": ENGLISH["plain"][0][1], "es": SPANISH["plain"][0][1]}
    return write_lines(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", [*lines, plain])


@pytest.fixture(scope="module")
def recipe(models: Models, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = small_recipe(
        *models,
        iterations=1,
        prompts={"source": str(source)},
        reward={"also": ["multilingual"], "prefix": PREFIX},
        evaluate={"prompts": [str(source)], "n": 1, "resamples": 50},
    )
    return write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", content)


@pytest.fixture(scope="module")
def run(recipe: Path, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("conversations") / "run"
    forks.run("run", recipe, "--out", run, log=run.with_name("log"))
    return run


def ids(model: Path, turns: Turns) -> list[int]:
    """The ids of conftest's chat template written out."""
    text = "".join(f"<|{role}|>{text}<|end|>" for role, text in turns)
    tokenizer = AutoTokenizer.from_pretrained(model)
    found: list[int] = tokenizer(f"<|bos|>{text}<|assistant|>", add_special_tokens=False)["input_ids"]
    return found


def test_every_response_is_scored_behind_its_conversation(run: Path, models: Models) -> None:
    """R_c: the English one, with the prefix before its last message. R_m: the one in the response's language."""
    said = by_key(rows(run / "iteration_1" / "responses"))
    assert len(said) == 4 * 2 * 3
    policy, initial = naive.load(models[1]), naive.load(models[0])
    for score in rows(run / "iteration_1" / "scores"):
        turns = (ENGLISH if score.reward == "crosslingual" or score.language == "en" else SPANISH)[score.prompt_id]
        if score.reward == "crosslingual" and score.language == "es":
            turns = [*turns[:-1], ("user", "Answer in Spanish only, {please}. " + turns[-1][1])]
        answer = said[score.prompt_id, score.language, score.sample].token_ids
        for model, found in ((policy, score.policy_logprob), (initial, score.reference_logprob)):
            expected = float(naive.sequence_logprob(model, ids(models[0], turns), answer).detach())
            assert found == pytest.approx(expected, abs=1e-4)


def test_the_run_is_whole(run: Path) -> None:
    assert api.verify(run).damages == []


def test_pairs_have_the_conversation_that_was_answered(run: Path) -> None:
    pairs: list[Pair] = rows(run / "iteration_1" / "pairs")
    assert {(pair.prompt_id, pair.language) for pair in pairs} == {
        (key, tag) for key in ENGLISH for tag in ("en", "es")
    }
    for pair in pairs:
        assert pair.prompt == messages((ENGLISH if pair.language == "en" else SPANISH)[pair.prompt_id])
    [trained] = [json.loads((run / "iteration_1" / "policy.done.json").read_text(encoding="utf-8"))]
    assert trained["rows"] == len(pairs)


def test_a_killed_run_on_conversations_ends_as_an_undisturbed_one(
    recipe: Path, run: Path, forks: ForkServer, tmp_path: Path
) -> None:
    strikes = [
        Strike("prompts/*.parquet", 2),
        Strike("iteration_1/responses/*/*.done.json", 2),
        Strike("iteration_1/scores/*/*/*.done.json", 3),
        Strike("iteration_1/checkpoints/*/checkpoint-1/*complete"),
    ]
    killed = run_with_kills(forks, ["run", recipe, "--out", tmp_path / "run"], tmp_path / "run", strikes, seed=0)
    assert len(killed.hits) == len(strikes)
    killed.assert_as_undisturbed(run)


def test_the_stages_alone_take_the_stored_prompts_of_a_run(
    run: Path, recipe: Path, models: Models, command: Run, tmp_path: Path
) -> None:
    """The tables of a run are a source of prompts; of several, here one for each half."""
    stored: list[Prompt] = rows(run / "prompts")
    halves = []
    for keys in (["system", "both"], ["turns", "plain"]):
        lines = [
            {"id": row.prompt_id, "language": row.language, "prompt": as_messages(row.instruction)}
            for row in stored
            if row.prompt_id in keys
        ]
        halves.append(write_lines(tmp_path / f"{keys[0]}.jsonl", lines))
    responses, out = run / "iteration_1" / "responses", tmp_path / "scores.parquet"
    given: list[Any] = ["--responses", responses, "--policy", models[1], "--reference", models[0], "--out", out]
    exact = [
        "--set",
        "resources.dtype=float32",
        "--set",
        "resources.device=cpu",
        "--set",
        f"reward.prefix={json.dumps(PREFIX)}",
    ]
    expected = by_key(rows(run / "iteration_1/scores/crosslingual"))
    for prompts in ([run / "prompts"], halves):
        succeeded(command("score", "--prompts", *prompts, *given, *exact))
        scores = by_key(read_rows(out, Score))
        assert scores.keys() == expected.keys()
        for key, row in scores.items():
            assert row.policy_logprob == pytest.approx(expected[key].policy_logprob, abs=1e-4)
    pairs = tmp_path / "pairs.jsonl"
    both = ["--responses", responses, "--scores", out, "--set", "select.truncated=keep", "--set", "select.min_gap=0"]
    succeeded(command("select", "--prompts", *halves, *both, "--out", pairs))
    found = {(pair.prompt_id, pair.language): pair.prompt for pair in read_rows(pairs, Pair)}
    assert found == {(pair.prompt_id, pair.language): pair.prompt for pair in rows(run / "iteration_1" / "pairs")}
    assert len(read_rows(responses, Response)) == len(expected)


def test_check_says_what_is_no_conversation(recipe: Path, command: Run, tmp_path: Path) -> None:
    bad = {"id": "x", "en": messages(ENGLISH["turns"][:2]), "es": messages(SPANISH["turns"][:2])}
    code, _, errors = command("check", recipe, "--set", f"prompts.source={write_lines(tmp_path / 'bad.jsonl', [bad])}")
    assert code == 1
    for part in ("bad.jsonl, row 1", "'x'", "assistant"):
        assert part in errors
