"""The sampling stage around an engine: seeds, order, joins and progress."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from crosspref.data.records import Instruction, Prompt, Response, derive_seed
from crosspref.protocols import Advance, Sampled
from crosspref.stages.sample import Drawing, sample

PROMPTS = [
    Prompt("q1", "es", "¿Uno?"),
    Prompt("q2", "es", "¿Dos?"),
    Prompt("q1", "sw", "Moja?"),
    Prompt("q3", "es", "¿3?"),
]


class FakeSampler:
    """Answers with the instruction and the seed, so that a test sees which seed went where."""

    def __init__(self, too_long: str | None = None, extra: int = 0) -> None:
        self.too_long, self.extra = too_long, extra
        self.requests: list[tuple[Instruction, list[int]]] = []
        self.temperatures: list[float | None] = []

    def sample(
        self,
        requests: Sequence[tuple[Instruction, Sequence[int]]],
        advance: Advance,
        temperature: float | None = None,
    ) -> list[list[Sampled]]:
        self.temperatures.append(temperature)
        self.requests += [(instruction, list(seeds)) for instruction, seeds in requests]
        answers = [[self._answer(instruction, seed) for seed in seeds] for instruction, seeds in requests]
        advance(sum(len(row) for row in answers), sum(len(answer.token_ids) for row in answers for answer in row))
        answers = [row + row[: self.extra] for row in answers]
        return [
            [] if instruction == self.too_long else row for (instruction, _), row in zip(requests, answers, strict=True)
        ]

    def _answer(self, instruction: Instruction, seed: int) -> Sampled:
        return Sampled(f"{instruction} {seed}", [seed % 97, 2], "stop" if seed % 2 else "length")

    def close(self) -> None:
        pass


def drawn(prompts: list[Prompt], sampler: FakeSampler | None = None, n: int = 3, **changes: int) -> list[Response]:
    drawing = Drawing(n, **{"seed": 42, "iteration": 1, **changes})
    return sample(prompts, sampler or FakeSampler(), drawing, lambda units, tokens: None)


def test_responses_come_prompt_by_prompt_with_their_own_seeds() -> None:
    rows = drawn(PROMPTS, seed=7, iteration=3)
    keys = [(prompt.prompt_id, prompt.language, number) for prompt in PROMPTS for number in range(3)]
    assert [(row.prompt_id, row.language, row.sample) for row in rows] == keys
    instructions = [prompt.instruction for prompt in PROMPTS for _ in range(3)]
    for row, instruction in zip(rows, instructions, strict=True):
        seed = derive_seed(7, 3, row.prompt_id, row.language, row.sample)
        answer = FakeSampler()._answer(instruction, seed)
        assert row.seed == seed
        assert (row.text, row.token_ids, row.finish_reason) == (answer.text, answer.token_ids, answer.finish_reason)
    assert len({row.seed for row in rows}) == len(rows)


def test_a_response_depends_on_no_other_prompt() -> None:
    whole = {(row.prompt_id, row.language, row.sample): row for row in drawn(PROMPTS)}
    apart = [row for prompt in reversed(PROMPTS) for row in drawn([prompt])]
    assert {(row.prompt_id, row.language, row.sample): row for row in apart} == whole
    # Nor on how many are drawn: with a larger n the first ones stay.
    more = {(row.prompt_id, row.language, row.sample): row for row in drawn(PROMPTS, n=5)}
    assert len(more) == 20
    assert {key: more[key] for key in whole} == whole


def test_seeds_are_pinned() -> None:
    # Other values would change the responses of every run that is resumed.
    assert derive_seed(42, 1, "q1", "es", 0) == 8585996074930315935
    assert derive_seed(42, -1, "ü", "zh-hant", 9) == 7142730282669527737
    whole = hashlib.sha256(b"42\x1f1\x1fq1\x1fes\x1f0").digest()
    assert derive_seed(42, 1, "q1", "es", 0) == int.from_bytes(whole[:8], "big") // 2


def test_the_engine_gets_all_prompts_at_once_and_reports_progress() -> None:
    sampler = FakeSampler()
    seen: list[tuple[int, int]] = []
    sample(PROMPTS, sampler, Drawing(2, seed=1, iteration=1), lambda units, tokens: seen.append((units, tokens)))
    assert [instruction for instruction, _ in sampler.requests] == ["¿Uno?", "¿Dos?", "Moja?", "¿3?"]
    assert seen == [(8, 16)]


def test_a_conversation_is_asked_at_the_temperature_that_is_given() -> None:
    before = [{"role": "user", "content": "¿Uno?"}, {"role": "assistant", "content": "1"}]
    prompts = [PROMPTS[0], Prompt("q1.2", "es", [*before, {"role": "user", "content": "¿Dos?"}])]
    sampler = FakeSampler()
    rows = sample(prompts, sampler, Drawing(1, seed=7, iteration=0, temperature=0.1), lambda *_: None)
    asked = [instruction for instruction, _ in sampler.requests]
    assert asked == ["¿Uno?", [*before, {"role": "user", "content": "¿Dos?"}]]
    assert sampler.temperatures == [0.1]
    assert [row.seed for row in rows] == [derive_seed(7, 0, name, "es", 0) for name in ("q1", "q1.2")]
    drawn(PROMPTS, sampler)
    assert sampler.temperatures == [0.1, None]


def test_a_prompt_that_is_too_long_has_no_responses() -> None:
    rows = drawn(PROMPTS, FakeSampler(too_long="¿Dos?"))
    assert rows == [row for row in drawn(PROMPTS) if row.prompt_id != "q2"]


def test_an_engine_that_answers_too_much_or_too_little_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        drawn(PROMPTS, FakeSampler(extra=1))

    class Forgetful(FakeSampler):
        def sample(self, *given: Any) -> list[list[Sampled]]:
            return super().sample(*given)[1:]

    with pytest.raises(ValueError, match="zip"):
        drawn(PROMPTS, Forgetful())
