"""What is kept of an unfinished shard: work goes on from each of its states, and ends as if nobody had disturbed it."""

import json
import math
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model
from tiny_engines import RESOURCES, Models
from tiny_engines import make_sampler as make_any_sampler
from training import PAIRS
from training import make_trainer as make_any_trainer
from transformers import AutoModelForCausalLM

from crosspref.data.records import Prompt, derive_seed
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.engines.packed import decoding
from crosspref.engines.packed.decoding import Decoder, Draft, SharedPrompt
from crosspref.engines.transformers import translator as transformers_translator
from crosspref.engines.transformers.sampler import TransformersSampler
from crosspref.engines.transformers.translator import TranslationModel
from crosspref.models.locate import locate_model
from crosspref.protocols import Advance
from crosspref.recipe.files import dump_recipe, make_recipe
from crosspref.recipe.sections import TranslateSettings
from crosspref.run import kept as kept_work
from crosspref.run.job import Job, store_rows
from crosspref.run.kept import keeping
from crosspref.run.layout import RunDirectory
from crosspref.run.progress import Reporter
from crosspref.run.store import Fingerprint, Unit, sealed, write_text
from crosspref.stages.sample import sample_prompts

MADE = Fingerprint({}, {"policy": "abc"})
INSTRUCTIONS = ["Hi!", "Explain in three short sentences why the sky is blue.", "¿Qué es un volcán?", "Назови столицы."]
REQUESTS = [
    (text, [derive_seed(7, 1, f"p{index}", "en", sample) for sample in range(3)])
    for index, text in enumerate(INSTRUCTIONS)
]

Work = Callable[[Advance], Any]


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unit:
    """A unit of which everything is written that is kept."""
    monkeypatch.setattr(kept_work, "SECONDS", 0.0)
    return Unit(tmp_path / "en" / "00000000.parquet")


def states_of(work: Work, unit: Unit, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """What undisturbed work gives, and each content that the unit's part had meanwhile."""
    states: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(kept_work, "write_text", lambda _, text: states.append(text))
        with keeping(lambda *_: None, unit, MADE) as kept:
            found = work(kept)
    assert len(set(states)) == len(states) > 2
    return found, states


def resumed(work: Work, unit: Unit, state: str) -> Any:
    write_text(unit.part, state)
    with keeping(lambda *_: None, unit, MADE) as kept:
        return work(kept)


def spoilt(state: str, value: object) -> str:
    """A state with a digest and a seal that fit, one value of which is another one."""
    content = json.loads(state)
    content["items"] |= {next(iter(content["items"])): value}
    return json.dumps(sealed({name: content[name] for name in ("digest", "items")}))


def make_sampler(directory: Path) -> TransformersSampler:
    return make_any_sampler(directory, max_new_tokens=20, temperature=1.5, batch_size=5)


def counted(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, size: Callable[..., int] = lambda *_: 1
) -> list[int]:
    """The size of each call of a method."""
    sizes: list[int] = []
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **named: sizes.append(size(*given)) or original(*given, **named))
    return sizes


@pytest.fixture
def short_legs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LEG", 2)  # of 64 tokens


@pytest.mark.usefixtures("short_legs")
@pytest.mark.parametrize(("kind", "decodes"), [("llama", True), ("gemma", True), ("qwen", False)])
def test_sampling_goes_on_from_each_state(
    kind: str, decodes: bool, tiny_models: Models, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = make_sampler(tiny_models[kind][1])
    if not decodes:
        sampler.decodable = 0
    written = counted(monkeypatch, sampler.model, "forward")

    def work(advance: Advance) -> Any:
        return sampler.sample(REQUESTS, advance)

    found, states = states_of(work, unit, monkeypatch)
    took = [len(written)]
    for state in states:
        written.clear()
        assert resumed(work, unit, state) == found
        took.append(len(written))
    assert took == sorted(took, reverse=True)
    assert took[-1] < took[0] / 3, "what was done was done again"
    monkeypatch.setattr(decoding, "LEG", 1280)
    assert work(lambda *_: None) == found  # up to rounding, which does not show in float32


def test_a_leg_goes_on_to_the_last_bit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In bfloat16, where rounding shows: the logits of each step behind a leg do not depend on what lies before it."""
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "model", "llama"), dtype=torch.bfloat16).eval()
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14]]

    def drafts(ids: Sequence[list[int]] = ()) -> list[Draft]:
        made = [Draft(prompt, 30) for prompt in map(SharedPrompt, prompts) for _ in range(4)]
        for draft, begun in zip(made, ids, strict=False):
            draft.ids = list(begun)
        return made

    def run(rows: list[Draft]) -> tuple[list[torch.Tensor], list[tuple[int, list[list[int]]]]]:
        steps: list[torch.Tensor] = []
        legs: list[tuple[int, list[list[int]]]] = []

        def choose(logits: torch.Tensor, live: Sequence[Draft]) -> torch.Tensor:
            steps.append(logits.clone())
            return logits.argmax(-1) + torch.arange(len(live)) % 3  # so that the rows of a prompt differ

        decoder = Decoder(model, rows=7, tokens=10000, stops=[])
        decoder.leg = 70
        decoder.run(rows, choose, lambda _: None, lambda: legs.append((len(steps), [list(row.ids) for row in rows])))
        return steps, legs

    whole = drafts()
    steps, legs = run(whole)
    assert len(legs) > 4
    for done, ids in legs[:-1]:
        rest, _ = run(drafts(ids))
        assert len(rest) == len(steps) - done
        assert all(map(torch.equal, rest, steps[done:]))


@pytest.mark.usefixtures("short_legs")
def test_ctrl_c_in_the_middle_keeps_the_last_state(
    tiny_models: Models, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written since a leg's end must not be kept: rows would stand beside others than they did."""
    sampler = make_sampler(tiny_models["llama"][1])
    found, states = states_of(lambda advance: sampler.sample(REQUESTS, advance), unit, monkeypatch)
    monkeypatch.setattr(kept_work, "SECONDS", 3600.0)
    stops = iter(range(7))

    def advance(units: int, tokens: int) -> None:
        if next(stops, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), keeping(advance, unit, MADE) as kept:
        sampler.sample(REQUESTS, kept)
    state = unit.part.read_text()
    assert state in states
    assert resumed(lambda advance: sampler.sample(REQUESTS, advance), unit, state) == found


def test_a_translation_model_goes_on_from_each_state(
    tmp_path: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_translator import make_marian

    monkeypatch.setattr(transformers_translator, "BATCH_ROWS", 2)
    settings = EngineSettings(translate=TranslateSettings(model="marian", max_new_tokens=12), resources=RESOURCES)
    model = TranslationModel(settings, locate_model(str(make_marian(tmp_path / "marian"))))
    requests = [("a " * count, "en", "es") for count in (3, 60, 1, 5, 2, 700, 4)]  # one is too long for it
    batches = counted(monkeypatch, model, "_generate")

    def work(advance: Advance) -> Any:
        return model.translate(requests, advance)

    found, states = states_of(work, unit, monkeypatch)
    assert found[5] is None
    for number, state in enumerate(states, 1):
        batches.clear()
        assert resumed(work, unit, state) == found
        assert len(batches) == len(states) - number
    for impossible in (7, ["a", [5], "stop", None], ["a", [], "never", None], ["\ud800", [], "stop", None]):
        assert resumed(work, unit, spoilt(states[-1], impossible)) == found


@pytest.mark.slow
def test_reference_logprobs_go_on_from_each_state(
    tiny_models: Models, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_any_trainer(tiny_models["llama"][1], micro_batch_size=2, batch_size=4, precompute_reference=True)
    batches = counted(monkeypatch, trainer, "_pair_logprobs")

    def work(advance: Advance) -> Any:
        return trainer.reference_logprobs(PAIRS[:7], advance)

    found, states = states_of(work, unit, monkeypatch)
    for number, state in enumerate(states, 1):
        batches.clear()
        assert resumed(work, unit, state) == found
        assert len(batches) == len(states) - number
    for impossible in (7, [], [[1.0]] * 2, [[math.nan, 1.0]] * 2):
        assert resumed(work, unit, spoilt(states[-1], impossible)) == found


def job_of(models: tuple[Path, Path], root: Path) -> Job:
    """A run whose only shard of a language takes several legs."""
    recipe = make_recipe(
        {
            "models": {"initial": str(models[0]), "policy": str(models[1])},
            "languages": ["en"],
            "prompts": {"source": "made-up"},
            "sample": {"n": 3, "max_new_tokens": 20, "batch_size": 5},
            "resources": {"device": "cpu", "dtype": "float32", "threads": 1, "process_per_phase": False},
        }
    )
    run = RunDirectory(root)
    write_text(run.recipe, dump_recipe(recipe))
    prompts = [Prompt(f"p{number}", "en", text) for number, text in enumerate(INSTRUCTIONS)]
    store_rows(run.prompts.unit("en"), prompts, Prompt, {})
    return Job(recipe, run, EngineFactory(EngineSettings.of(recipe)), Reporter())


def killed_at(job: Job, write: int) -> bool:
    """Sample in a process that is killed when what it keeps is half written for the so-manieth time; was it?"""
    process = os.fork()
    if process == 0:
        writes = 0

        def write_and_die(path: Path, text: str) -> None:
            nonlocal writes
            writes += 1
            if writes == write:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(f".{path.name}.1.tmp").write_text(text[: len(text) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            write_text(path, text)

        kept_work.write_text = write_and_die
        try:
            sample_prompts(job, 1)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


@pytest.mark.slow
@pytest.mark.usefixtures("short_legs")
@pytest.mark.parametrize("write", [3, *(pytest.param(0, marks=pytest.mark.nightly),)], ids=["third", "each"])
def test_a_kill_while_something_is_kept(
    write: int, tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_work, "SECONDS", 0.0)
    whole = job_of(tiny_models["qwen"], tmp_path / "whole")
    sample_prompts(whole, 1)
    expected = whole.run.iteration(1).responses.rows("en")
    for number in [write] if write else range(1, 100):
        job = job_of(tiny_models["qwen"], tmp_path / f"killed_{number}")
        part = job.run.iteration(1).responses.unit("en", 0).part
        if not killed_at(job, number):
            break
        assert part.exists() == (number > 1)
        with job.run.locked():
            sample_prompts(job, 1)
        assert job.run.iteration(1).responses.rows("en") == expected
        assert [path.name for path in sorted(part.parent.iterdir())] == [
            "00000000.parquet",
            "00000000.parquet.done.json",
        ]
    assert number > 2


def test_what_other_settings_or_other_hands_left_is_not_used(
    tiny_models: Models, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "LEG", 2)
    sampler = make_sampler(tiny_models["llama"][1])

    def work(advance: Advance) -> Any:
        return sampler.sample(REQUESTS, advance)

    found, states = states_of(work, unit, monkeypatch)
    foreign = json.loads(states[-1])
    foreign["items"] = {name: [2] for name in foreign["items"]}
    foreign["digest"] = Fingerprint({"sample.top_p": 0.5}, MADE.inputs).digest
    impossible = [spoilt(states[-1], value) for value in (7, ["a"], [-1], [sampler.tokenizer.size], [3] * 21)]
    for text in (json.dumps(foreign), states[-1][:-9], "[]", "", *impossible):
        assert resumed(work, unit, text) == found
