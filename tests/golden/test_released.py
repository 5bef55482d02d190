"""The paper's released scripts, step by step in plain torch and plain Python, against the scorer and the grid for them.

The padded batches of three are really built here, with an attention mask, and the unshifted mask is really multiplied.
"""

import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engines import END, EOS, KINDS, NATS, RESOURCES, Models
from transformers import AutoTokenizer

from crosspref.data.records import FinishReason, Prompt, Response
from crosspref.engines import EngineSettings
from crosspref.engines.transformers.scorer import ModelScorer, ReleasedScorer, are_padded
from crosspref.maths.length_penalty import grid_length_penalty
from crosspref.models.locate import locate_model
from crosspref.protocols import LogProbs
from crosspref.recipe.files import PRESETS
from crosspref.recipe.sections import RewardSettings
from crosspref.stages.score import score
from crosspref.stages.select.flips import ZNLP_PENALTY, ZNLP_SELECT
from crosspref.stages.select.select import PairRules, select

PAD, USER = EOS, 3  # of the tiny tokenizer
SETTINGS = EngineSettings(reward=RewardSettings(counting="znlp", beta=1.0), resources=RESOURCES)

Requests = list[tuple[str, list[Response]]]
Row = tuple[list[int], list[int]]  # the ids of the prompt, and of the response with its end-of-turn token


@pytest.fixture(scope="module")
def scorers(tiny_models: Models) -> dict[str, ReleasedScorer]:
    return {kind: make_scorer(initial, aligned) for kind, (initial, aligned) in tiny_models.items()}


def make_scorer(initial: Path | None, aligned: Path) -> ReleasedScorer:
    reference = None if initial is None else locate_model(str(initial))
    return ReleasedScorer(SETTINGS, locate_model(str(aligned)), reference)


def answer(sample: int, text: str, finish_reason: FinishReason = "stop", ids: list[int] | None = None) -> Response:
    return Response("p", "es", sample, text, ids, finish_reason, None)


# The second batch has two prompts, and one prompt in the middle has no responses and so no place in any batch.
REQUESTS: Requests = [
    ("Hi!", [answer(0, "Hola."), answer(1, "  ¿Qué tal?\n\n"), answer(2, "", "length")]),
    ("Объясни простыми словами, почему небо голубое.", [answer(0, "Потому что воздух."), answer(1, "Не знаю")]),
    ("Nobody answered this.", []),
    ("Name a river.", [answer(0, "El Duero, que nace en", "length"), answer(1, "x"), answer(5, "Ebro")]),
    ("Why?", [answer(0, "Porque sí.", ids=[40, 41, 42, END]), answer(1, "Porque sí."), answer(2, " ")]),
    (
        "And who is to say so, and to whom, and at what time of the day?",
        [answer(1, "Nadie."), answer(0, "Yo"), answer(2, "")],
    ),
]


def rows_of(directory: Path, requests: Requests) -> dict[tuple[int, int], Row]:
    """By prompt and sample: stripped, tokenised again, and an end-of-turn token even behind what was cut."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return {
        (index, row.sample): (
            naive.prompt_ids(directory, instruction),
            [*tokenizer(row.text.strip(), add_special_tokens=False)["input_ids"], END],
        )
        for index, (instruction, responses) in enumerate(requests)
        for row in responses
    }


def batch_sums(directory: Path, rows: list[Row], pad: int) -> list[tuple[float, int]]:
    """The sum of each row of one padded batch, and how many of its positions the mask let through."""
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.full((len(rows), width), pad)
    attention, mask = torch.zeros(len(rows), width), torch.ones(len(rows), width)
    for number, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids[number, :end] = torch.tensor(prompt + response)
        attention[number, :end] = 1
        mask[number, : len(prompt)] = 0
    mask[ids == pad] = 0  # wherever it stands; the scripts' mask of the end-of-turn token does nothing
    with torch.no_grad():
        logits = naive.load(directory)(input_ids=ids, attention_mask=attention, use_cache=False).logits.float()
    shifted = torch.log_softmax(logits, dim=-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    unshifted = mask[:, :-1]
    return list(zip((shifted * unshifted).sum(-1).tolist(), unshifted.sum(-1).int().tolist(), strict=True))


def step_by_step(directory: Path, requests: Requests, pad: int = PAD) -> dict[tuple[int, int], tuple[float, int]]:
    """By prompt and sample: three prompts that have responses side by side, one pass per sample."""
    rows, found = rows_of(directory, requests), {}
    answered = [index for index, (_, responses) in enumerate(requests) if responses]
    for start in range(0, len(answered), 3):
        for sample in range(10):
            keys = [(index, sample) for index in answered[start : start + 3] if (index, sample) in rows]
            if keys:
                found.update(zip(keys, batch_sums(directory, [rows[key] for key in keys], pad), strict=True))
    return found


def by_key(requests: Requests, found: Iterable[list[LogProbs]]) -> dict[tuple[int, int], LogProbs]:
    return {
        (index, row.sample): value
        for index, ((_, responses), values) in enumerate(zip(requests, found, strict=True))
        for row, value in zip(responses, values, strict=True)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_scripts_step_by_step(kind: str, tiny_models: Models, scorers: dict[str, ReleasedScorer]) -> None:
    initial, aligned = tiny_models[kind]
    found = by_key(REQUESTS, scorers[kind].score_each(REQUESTS))
    policy, reference = step_by_step(aligned, REQUESTS), step_by_step(initial, REQUESTS)
    assert found.keys() == policy.keys()
    for key, value in found.items():
        assert value.policy == pytest.approx(policy[key][0], abs=NATS), key
        assert value.reference == pytest.approx(reference[key][0], abs=NATS), key
        assert value.tokens == policy[key][1] == reference[key][1], key
    # An empty response: nothing where its row is the longest of its batch, log p(PAD) where it is padded.
    assert [found[key].tokens for key in [(0, 2), (4, 2), (5, 2)]] == [0, 1, 0]
    assert (found[0, 2].policy, found[0, 2].reference) == (0.0, 0.0)


def padding_with(pad_token: str | None, models: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    for name, source in zip(("initial", "aligned"), models, strict=True):
        shutil.copytree(source, folder / name)
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        tokenizer.pad_token = pad_token
        tokenizer.save_pretrained(folder / name)
    return folder / "initial", folder / "aligned"


@pytest.mark.parametrize(("pad_token", "pad"), [("<|end|>", END), ("<|eos|>", PAD)])
def test_the_preset_makes_the_pairs_of_the_scripts(
    pad_token: str, pad: int, tiny_models: Models, tmp_path: Path
) -> None:
    """From texts to pairs, alpha included: the scripts' sums, lengths, grid and choice, one step after the other."""
    # This way round rewards grow with length, so that the grid has something to find.
    directories = padding_with(pad_token, tiny_models["llama"][::-1], tmp_path)
    requests = [(instruction, rows) for instruction, rows in REQUESTS if rows]
    ids = [f"p{number}" for number in range(len(requests))]
    reference, policy = (step_by_step(directory, requests, pad) for directory in directories)
    rewards, lengths = [], []
    for number, (_, rows) in enumerate(requests):
        keys = [(number, row.sample) for row in rows]
        rewards.append([policy[key][0] - reference[key][0] for key in keys])
        lengths.append([len(row.text.strip()) for row in rows])
    alpha = naive_grid(rewards, lengths)
    expected = {}
    for prompt_id, (_, rows), reward, length in zip(ids, requests, rewards, lengths, strict=True):
        penalised = [r - alpha * n for r, n in zip(reward, length, strict=True)]
        expected[prompt_id] = tuple(rows[penalised.index(end(penalised))].sample for end in (max, min))

    responses = [
        replace(row, prompt_id=prompt_id) for prompt_id, (_, rows) in zip(ids, requests, strict=True) for row in rows
    ]
    instructions = {prompt_id: instruction for prompt_id, (instruction, _) in zip(ids, requests, strict=True)}
    prompts = [Prompt(prompt_id, "es", text) for prompt_id, text in instructions.items()]
    settings = RewardSettings(**PRESETS["znlp"]["reward"])
    scorer = make_scorer(*directories)
    scores = score(responses, prompts, scorer, settings=settings, reward="multilingual", advance=lambda *_: None)
    rules = PairRules("es", instructions, ZNLP_PENALTY, ZNLP_SELECT)
    found = select(responses, scores, rules)
    assert found.alpha == alpha > 0
    assert {pair.prompt_id: (pair.chosen_sample, pair.rejected_sample) for pair in found.pairs} == expected


@pytest.mark.parametrize(("pad_token", "pad"), [("<|end|>", END), (None, EOS), ("<|user|>", USER)])
def test_equals_the_scripts_whatever_the_model_pads_with(
    pad_token: str | None, pad: int, tiny_models: Models, tmp_path: Path
) -> None:
    """Where that is the end-of-turn token it is masked, so that no padding counts. Without any it is the eos token."""
    directories = padding_with(pad_token, tiny_models["llama"], tmp_path)
    found = by_key(REQUESTS, make_scorer(*directories).score_each(REQUESTS))
    reference, policy = (step_by_step(directory, REQUESTS, pad) for directory in directories)
    for key, value in found.items():
        assert value.policy == pytest.approx(policy[key][0], abs=NATS), key
        assert value.reference == pytest.approx(reference[key][0], abs=NATS), key
        assert value.tokens == policy[key][1], key
    assert found[4, 2].tokens == (0 if pad == END else 1)  # an empty response in a padded row


def test_without_a_reference(tiny_models: Models, scorers: dict[str, ReleasedScorer]) -> None:
    found = by_key(REQUESTS, make_scorer(None, tiny_models["qwen"][1]).score_each(REQUESTS))
    expected = by_key(REQUESTS, scorers["qwen"].score_each(REQUESTS))
    assert found == {key: LogProbs(value.policy, None, value.tokens) for key, value in expected.items()}


def test_nothing_to_score(scorers: dict[str, ReleasedScorer]) -> None:
    assert list(scorers["llama"].score_each([])) == []
    assert list(scorers["llama"].score_each([("Why?", []), ("Who?", [])])) == [[], []]


def test_which_rows_are_padded() -> None:
    # (sample, length); the prompt without responses does not count, so the fifth is the first of the second batch.
    lengths = [
        [(0, 5), (1, 9)],
        [],
        [(0, 7), (1, 8)],
        [(0, 7), (2, 4)],
        [(1, 3), (0, 6), (2, 2)],
        [(2, 3)],
    ]
    assert are_padded(lengths) == [[True, False], [], [False, True], [False, False], [False, False, True], [False]]
    assert are_padded([]) == []


def test_tokens_that_do_not_count_are_left_out_on_every_path(tiny_models: Models) -> None:
    model = naive.load(tiny_models["gemma"][1])
    prompt, rows = [0, *range(20, 40)], [[30], list(range(50, 60)), [], [9, 8], [7, 6, 5]]
    with torch.no_grad():
        values = [naive.token_logprobs(model, prompt, row).tolist() if row else [] for row in rows]
    scorer = ModelScorer(model, RewardSettings(batch_tokens=64))
    for packed, tiled in ((True, True), (False, True), (False, False)):
        scorer.packed, scorer.tiled = packed, tiled
        found = scorer.logprobs(prompt, rows, lambda ids: [number % 3 > 0 for number in range(len(ids))])
        left = [[value for number, value in enumerate(row) if number % 3] for row in values]
        assert found == pytest.approx([math.fsum(row) for row in left], abs=NATS)


def naive_grid(rewards: list[list[float]], lengths: list[list[int]]) -> float:
    """Every alpha of the grid in plain Python; ``index`` gives the first of tied responses."""
    sizes = []
    for step in range(1000):
        total = 0
        for reward, length in zip(rewards, lengths, strict=True):
            penalised = [r - step / 1000 * n for r, n in zip(reward, length, strict=True)]
            total += length[penalised.index(max(penalised))] - length[penalised.index(min(penalised))]
        sizes.append(abs(total / len(rewards)))
    return sizes.index(min(sizes)) / 1000


def grid(rewards: list[list[float]], lengths: list[list[int]]) -> float:
    offsets = np.cumsum([0, *map(len, rewards)])
    return grid_length_penalty(np.concatenate(rewards), np.concatenate(lengths), offsets)


# Eighths tie on the grid's points at 0.125, 0.25, 0.375, 0.5, 0.625 and 0.75 without any rounding.
PROMPTS = st.lists(
    st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 9)), min_size=1, max_size=5), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(PROMPTS, st.sampled_from([0.125, 0.1, 0.37]))
def test_the_grid_equals_a_naive_loop(prompts: list[list[tuple[int, int]]], unit: float) -> None:
    rewards = [[unit * reward for reward, _ in prompt] for prompt in prompts]
    lengths = [[length for _, length in prompt] for prompt in prompts]
    assert grid(rewards, lengths) == naive_grid(rewards, lengths)


@pytest.mark.parametrize(
    ("rewards", "lengths", "alpha"),
    [
        # 2 - 10 a and 1 - 2 a cross at 1/8: there they tie, the first is best and worst, and the difference is 0.
        ([[2.0, 1.0]], [[10, 2]], 0.125),
        # With 3 - 6 a and 1 - 2 a beside it the total is 12 below 1/8, 0 + 4 on it, -8 + 4 up to 1/2: 4 comes first.
        ([[2.0, 1.0], [1.0, 3.0]], [[10, 2], [2, 6]], 0.125),
        # 2.05 - 10 a and 1 - 2 a cross at 0.13125: no point of the grid is a tie, and 0 beats all others, being first.
        ([[2.05, 1.0]], [[10, 2]], 0.0),
        # Two prompts of 8 that cross at 0.13125 and 0.25625 balance between them: 0.132 is the first point there.
        ([[2.05, 1.0], [3.05, 1.0]], [[10, 2], [10, 2]], 0.132),
        # They balance at alpha = -1/8 only, which the grid does not have; -8 is nearest to zero everywhere on it.
        ([[1.0, 2.0]], [[10, 2]], 0.0),
        # 20 - 10 a and 1 - 2 a cross at 2.375, above the grid.
        ([[20.0, 1.0]], [[10, 2]], 0.0),
        # One response, and equal ones: always 0.
        ([[1.0], [2.0, 2.0]], [[7], [4, 4]], 0.0),
    ],
)
def test_grid_by_hand(rewards: list[list[float]], lengths: list[list[int]], alpha: float) -> None:
    assert grid(rewards, lengths) == alpha == naive_grid(rewards, lengths)
