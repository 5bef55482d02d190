"""Agreement of two rewards, with orders and pairs counted by hand."""

import math
import random
from dataclasses import astuple
from typing import Any

import pytest

from crosspref.data.records import Agreement, Pair, Score
from crosspref.stages.select.agree import RewardResult, agree

# a: (1, 2, 3) against (1, 3, 2): of three pairs of responses two stand in the same order and one does not: 1/3.
# b: (1, 2) against (9, 5): -1.  c: the other reward is the same for both, so there is no order.
FIRST = {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0], "c": [1.0, 2.0]}
SECOND = {"a": [0.1, 0.3, 0.2], "b": [9.0, 5.0], "c": [4.0, 4.0]}
# Under both: a the same pair, b exchanged, c the same chosen, d and g the same rejected; what is chosen in h is what
# the other rejects, but not the other way round. e and f are there once only.
PAIRS = {"a": (0, 1), "b": (0, 1), "c": (0, 1), "d": (0, 1), "g": (0, 1), "h": (0, 1), "e": (0, 1)}
OTHER_PAIRS = {"a": (0, 1), "b": (1, 0), "c": (0, 2), "d": (2, 1), "g": (2, 1), "h": (2, 0), "f": (0, 1)}


def scores(rewards: dict[str, list[float | None]], reward: str = "crosslingual") -> list[Score]:
    return [
        Score(prompt_id, "es", sample, reward, None, None, 5, 20, value)
        for prompt_id, values in rewards.items()
        for sample, value in enumerate(values)
    ]


def pairs(chosen: dict[str, tuple[int | None, int | None]]) -> list[Pair]:
    return [Pair(key, "es", [], [], [], *samples, None, None, None, None, None) for key, samples in chosen.items()]


def agreement(
    first: Any = (), second: Any = (), own: Any = (), others: Any = (), resamples: int = 500, seed: int = 0
) -> Agreement:
    return agree(
        2,
        "es",
        RewardResult("crosslingual", scores(dict(first)) if isinstance(first, dict) else list(first), pairs(dict(own))),
        RewardResult(
            "multilingual", scores(dict(second)) if isinstance(second, dict) else list(second), pairs(dict(others))
        ),
        resamples=resamples,
        seed=seed,
    )


def values(found: Agreement) -> list[str]:
    return [repr(value) for value in astuple(found)]  # as text, since nan is not nan


def test_worked_example() -> None:
    found = agreement(FIRST, SECOND, PAIRS, OTHER_PAIRS)
    assert (found.iteration, found.language, found.reward, found.other) == (2, "es", "crosslingual", "multilingual")
    assert found.tau == pytest.approx((1 / 3 - 1) / 2)
    assert found.prompts == 2
    # Both prompts are drawn again with replacement: a quarter of the resamples is b twice, a quarter a twice.
    assert (found.low, found.high) == (pytest.approx(-1), pytest.approx(1 / 3))
    assert found.pairs == 6
    assert (found.same_pair, found.same_chosen, found.same_rejected, found.swapped) == (1 / 6, 2 / 6, 3 / 6, 1 / 6)


def test_responses_are_joined_by_key_and_the_order_of_rows_says_nothing() -> None:
    left, right = scores(FIRST), scores(SECOND)
    mixed_left, mixed_right = left[:], right[:]
    random.Random(1).shuffle(mixed_left)
    random.Random(2).shuffle(mixed_right)
    assert values(agreement(mixed_left, mixed_right)) == values(agreement(left, right))


def test_responses_without_a_finite_reward_under_both_are_left_out() -> None:
    # Samples 0 and 4 remain, in the same order; without the rule the others would disturb it.
    first = {"a": [1.0, None, math.nan, 9.0, 2.0, 0.0]}
    second = {"a": [1.0, -5.0, 0.0, math.inf, 2.0]}  # and one response has no such score at all
    found = agreement(first, second)
    assert (found.tau, found.prompts) == (1.0, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        (FIRST, {}),
        ({"a": [1.0]}, {"a": [1.0]}),
        ({"a": [1.0, 1.0]}, {"a": [1.0, 2.0]}),
        ({"a": [None]}, FIRST),
    ],
)
def test_no_order_is_no_tau(first: dict[str, list[float | None]], second: dict[str, list[float | None]]) -> None:
    found = agreement(first, second)
    assert (found.prompts, found.pairs) == (0, 0)
    for name in ("tau", "low", "high", "same_chosen", "same_rejected", "same_pair", "swapped"):
        assert math.isnan(getattr(found, name)), name


def test_pairs_without_sample_numbers_are_not_the_same() -> None:
    unknown = {"a": (None, None), "b": (0, None)}
    found = agreement(own={**unknown, "c": (0, 1)}, others={**unknown, "c": (0, 1)})
    assert (found.pairs, found.same_pair) == (1, 1.0)


def test_the_seed_decides_the_interval() -> None:
    noise = random.Random(0)
    first, second = ({str(key): [noise.random() for _ in range(4)] for key in range(30)} for _ in range(2))
    once = values(agreement(first, second, seed=1))
    assert values(agreement(first, second, seed=1)) == once
    assert values(agreement(first, second, seed=2)) != once
    assert values(agreement(first, second, seed=1, resamples=20)) != once
