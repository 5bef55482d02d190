"""The scorer against naive float32 forward passes, and what a score must not depend on."""

import random
import shutil
from pathlib import Path

import naive
import pytest
import torch
from tiny_engines import END, EOS, KINDS, NATS, Models, make_scorer

from crosspref.data.records import FinishReason, Response
from crosspref.engines.transformers.scorer import TransformersScorer
from crosspref.protocols import LogProbs

# Ten tokens with the template, and some eighty: both longer than the Gemma-2-like model's window of eight.
INSTRUCTIONS = ["Hi!", "Объясни простыми словами, почему небо голубое.\n\n¿Y por qué se pone rojo al atardecer?"]


@pytest.fixture(scope="module")
def scorers(tiny_models: Models) -> dict[str, TransformersScorer]:
    return {kind: make_scorer(aligned, initial) for kind, (initial, aligned) in tiny_models.items()}


def response(ids: list[int] | None, finish_reason: FinishReason = "stop") -> Response:
    return Response("p", "es", 0, "", ids, finish_reason, None)


def random_ids(count: int, seed: int) -> list[int]:
    return [random.Random(seed + position).randrange(6, 380) for position in range(count)]


def group() -> list[Response]:
    """Responses of 1 to 41 tokens: most end their turn in one of two ways, two were cut."""
    ends: list[list[int]] = [[END], [EOS], [], [END], [END], [], [EOS]]
    lengths = [40, 1, 9, 0, 17, 1, 23]
    return [
        response([*random_ids(length, 100 * index), *end], "stop" if end else "length")
        for index, (length, end) in enumerate(zip(lengths, ends, strict=True))
    ]


def naive_scores(directory: Path, instruction: str, rows: list[list[int]]) -> list[float]:
    model, prompt = naive.load(directory), naive.prompt_ids(directory, instruction)
    with torch.no_grad():
        return [float(naive.sequence_logprob(model, prompt, row)) for row in rows]


def ids_of(responses: list[Response]) -> list[list[int]]:
    return [row.token_ids or [] for row in responses]


def assert_same(found: list[LogProbs], expected: list[LogProbs]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.policy == pytest.approx(theirs.policy, abs=NATS)
        assert ours.reference == pytest.approx(theirs.reference, abs=NATS)
        assert ours.tokens == theirs.tokens


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_naive_forward_passes(
    kind: str, instruction: str, tiny_models: Models, scorers: dict[str, TransformersScorer]
) -> None:
    initial, aligned = tiny_models[kind]
    scorer, responses = scorers[kind], group()
    assert scorer.policy.packed and scorer.reference.packed  # noqa: PT018 - the fast path is what is tested here
    found = scorer.score(instruction, responses)
    assert [row.policy for row in found] == pytest.approx(
        naive_scores(aligned, instruction, ids_of(responses)), abs=NATS
    )
    assert [row.reference for row in found] == pytest.approx(
        naive_scores(initial, instruction, ids_of(responses)), abs=NATS
    )
    assert [row.tokens for row in found] == [41, 2, 9, 1, 18, 1, 24]


@pytest.mark.parametrize("batch_tokens", [1, 45, 100, 1_000_000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_changes_no_score(kind: str, batch_tokens: int, tiny_models: Models) -> None:
    initial, aligned = tiny_models[kind]
    scorer, responses = make_scorer(aligned, initial, batch_tokens=batch_tokens), group()
    alone = [scorer.score(INSTRUCTIONS[1], [row])[0] for row in responses]
    assert_same(scorer.score(INSTRUCTIONS[1], responses), alone)
    shuffled = random.Random(1).sample(range(len(responses)), len(responses))
    assert_same(
        scorer.score(INSTRUCTIONS[1], [responses[index] for index in shuffled]), [alone[index] for index in shuffled]
    )
    # Ten copies of one response have one score, and so has a response that was scored before.
    copies = scorer.score(INSTRUCTIONS[1], [responses[4]] * 10)
    assert_same(copies, [alone[4]] * 10)
    scorer.score(INSTRUCTIONS[0], responses)
    assert_same(scorer.score(INSTRUCTIONS[1], responses), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_policy_and_reference_of_one_model_differ_by_exactly_0(kind: str, tiny_models: Models, tmp_path: Path) -> None:
    initial, _ = tiny_models[kind]
    copy = shutil.copytree(initial, tmp_path / "copy")
    for row in make_scorer(copy, initial).score(INSTRUCTIONS[1], group()):
        assert row.policy == row.reference
        assert row.policy < 0


def test_what_is_known_is_not_computed(scorers: dict[str, TransformersScorer], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, responses, computed = scorers["llama"], group()[:4], []
    expected = scorer.score(INSTRUCTIONS[0], responses)
    for part in (scorer.policy, scorer.reference):
        path = part._pack
        monkeypatch.setattr(
            part, "_pack", lambda prompt, rows, path=path: (computed.append(len(rows)), path(prompt, rows))[1]
        )
    known = [(None, row.reference) for row in expected]
    assert_same(scorer.score(INSTRUCTIONS[0], responses, known), expected)
    assert computed == [4]  # by the policy alone
    computed.clear()
    part_known = [(None, None), (-1.5, None), (None, -2.5), (-3.0, -4.0)]
    found = scorer.score(INSTRUCTIONS[0], responses, part_known)
    assert_same(found[:1], expected[:1])
    assert (found[1].policy, found[2].reference, found[3]) == (-1.5, -2.5, LogProbs(-3.0, -4.0, expected[3].tokens))
    assert computed == [2, 2]
    # Equal responses are computed once.
    computed.clear()
    scorer.score(INSTRUCTIONS[0], responses[:1] * 5)
    assert computed == [1, 1]


@pytest.mark.parametrize("end", [EOS, END])
def test_the_end_of_turn_setting(end: int, tiny_models: Models, scorers: dict[str, TransformersScorer]) -> None:
    initial, aligned = tiny_models["qwen"]
    ids = random_ids(12, seed=5)
    with_end, without = naive_scores(aligned, INSTRUCTIONS[0], [[*ids, end], ids])
    assert abs(with_end - without) > 0.05
    stopped, cut = response([*ids, end], "stop"), response(ids, "length")

    counted = scorers["qwen"].score(INSTRUCTIONS[0], [stopped, cut])
    assert [row.policy for row in counted] == pytest.approx([with_end, without], abs=NATS)
    assert [row.tokens for row in counted] == [13, 12]

    never = make_scorer(aligned, initial, end_of_turn="never").score(INSTRUCTIONS[0], [stopped, cut])
    assert [row.policy for row in never] == pytest.approx([without, without], abs=NATS)
    assert [row.tokens for row in never] == [12, 12]


def test_responses_without_tokens(tiny_models: Models, scorers: dict[str, TransformersScorer]) -> None:
    nothing = LogProbs(0.0, 0.0, 0)
    full = response(random_ids(5, seed=1), "length")
    only_end, empty, blank = response([END]), response([], "length"), response(None, "length")
    found = scorers["gemma"].score(INSTRUCTIONS[0], [empty, full, only_end, blank])
    assert found[0] == found[3] == nothing
    assert_same([found[1]], scorers["gemma"].score(INSTRUCTIONS[0], [full]))
    expected = naive_scores(tiny_models["gemma"][1], INSTRUCTIONS[0], [[END]])
    assert (found[2].policy, found[2].tokens) == (pytest.approx(expected[0], abs=NATS), 1)
    assert scorers["gemma"].score(INSTRUCTIONS[0], [empty]) == [nothing]
    assert scorers["gemma"].score(INSTRUCTIONS[0], []) == []
    never = make_scorer(*reversed(tiny_models["gemma"]), end_of_turn="never")
    assert never.score(INSTRUCTIONS[0], [only_end, response(None, "stop")]) == [nothing, nothing]
