"""Bootstrap intervals against their textbook width, outcomes of comparisons and orders against tables."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from crosspref.maths import statistics
from crosspref.maths.estimate import Estimate
from crosspref.maths.statistics import kendall_tau, mean_interval, share_interval, win_rate

pytestmark = pytest.mark.filterwarnings("error")


def half_width(interval: Estimate) -> float:
    return (interval.high - interval.low) / 2


def test_worked_example() -> None:
    # Values 0 and 1: a resample of two has the mean 0, 0.5 or 1 with chances 1/4, 1/2 and 1/4. The 5% and 95%
    # quantiles are 0 and 1; the 30% and 70% quantiles are 0.5.
    assert mean_interval([0.0, 1.0], confidence=0.9) == Estimate(0.5, 0.0, 1.0, 2)
    assert mean_interval([0.0, 1.0], confidence=0.4) == Estimate(0.5, 0.5, 0.5, 2)


def test_clusters_of_unequal_size_are_drawn_whole() -> None:
    # Clusters a = (0, 0, 0) and b = (1): a resample is aa, ab, ba or bb, with the means 0, 1/4, 1/4 and 1. Drawing
    # values one by one would also give 1/2 and 3/4; a mean of cluster means would give 1/2 for ab.
    found = mean_interval([0, 0, 1, 0], clusters=["a", "a", "b", "a"], confidence=0.4)
    assert found == Estimate(0.25, 0.25, 0.25, 4)
    found = mean_interval([0, 0, 1, 0], clusters=["a", "a", "b", "a"], confidence=0.9)
    assert found == Estimate(0.25, 0.0, 1.0, 4)


@pytest.mark.parametrize(("confidence", "quantile"), [(0.95, 1.960), (0.8, 1.282)])
def test_width_is_that_of_the_normal_distribution(confidence: float, quantile: float) -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    found = mean_interval(values, confidence=confidence, resamples=4000)
    expected = quantile * values.std() / math.sqrt(2000)
    assert half_width(found) == pytest.approx(expected, rel=0.05)
    assert (found.low + found.high) / 2 == pytest.approx(values.mean(), abs=0.1 * expected)
    assert (found.value, found.n) == (pytest.approx(values.mean()), 2000)


def test_copies_within_a_cluster_add_no_certainty() -> None:
    values = np.random.default_rng(1).normal(size=100)
    single = mean_interval(values)
    copies = mean_interval(np.repeat(values, 9), clusters=np.repeat(np.arange(100), 9))
    assert (copies.low, copies.high) == (pytest.approx(single.low), pytest.approx(single.high))
    assert half_width(mean_interval(np.repeat(values, 9))) == pytest.approx(half_width(single) / 3, rel=0.1)


def test_the_seed_and_nothing_else_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    first = mean_interval(values, seed=1)
    np.random.seed(9)
    assert mean_interval(values, seed=1) == first
    assert mean_interval(values, seed=2) != first
    assert mean_interval(values, clusters=[("p", i) for i in range(50)], seed=1) == first
    monkeypatch.setattr(statistics, "_BATCH_NUMBERS", 120)
    assert mean_interval(values, seed=1) == first


@pytest.mark.parametrize(("values", "clusters"), [([2.5], None), ([2.0, 3.0], ["a", "a"]), ([2.5, 2.5], ["a", "a"])])
def test_one_value_or_cluster_has_no_interval(values: list[float], clusters: list[str] | None) -> None:
    found = mean_interval(values, clusters)
    assert (found.value, found.n) == (2.5, len(values))
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_equal_values_have_an_interval_without_width() -> None:
    # 0.1 + 0.1 + 0.1 is not 0.3 in floats; the mean must still be 0.1.
    assert mean_interval([0.1] * 3) == Estimate(0.1, 0.1, 0.1, 3)
    assert mean_interval([0.1] * 3, clusters=[1, 1, 2]) == Estimate(0.1, 0.1, 0.1, 3)
    # Different values, but every cluster has the same mean.
    assert mean_interval([0, 1, 1, 0], clusters=[1, 1, 2, 2]) == Estimate(0.5, 0.5, 0.5, 4)


@pytest.mark.parametrize(
    ("tolerance", "outcomes"),
    [(0.0, [1.0, 0.0, 0.5, 1.0, 0.0]), (0.25, [1.0, 0.0, 0.5, 0.5, 0.5]), (3.0, [0.5] * 5)],
)
def test_win_rate(tolerance: float, outcomes: list[float]) -> None:
    # Gains: 3, -3, 0, 0.25 (a tie at a tolerance of just that), -0.25.
    found = win_rate([1, -2, 4, -0.5, 0.5], [-2, 1, 4, -0.75, 0.75], tolerance)
    assert found.tolist() == outcomes


def test_a_share_of_none_or_all_has_wilsons_interval() -> None:
    """0 of 12: z^2 / (n + z^2) = 3.8415 / 15.8415 by hand; four prompts with three responses each count as four."""
    none, every = share_interval([0.0] * 12), share_interval([1.0] * 12)
    assert (none.value, none.low, none.n) == (0.0, 0.0, 12)
    assert none.high == pytest.approx(0.242493, abs=1e-5)
    assert (every.low, every.high) == pytest.approx((1 - none.high, 1.0))
    clustered = share_interval([0.0] * 12, [*"abcd"] * 3)
    assert clustered.high == pytest.approx(3.841459 / (4 + 3.841459), abs=1e-6)
    assert math.isnan(share_interval([0.0]).low)
    some = [0.0, 1.0, 1.0, 0.5, 1.0]
    assert share_interval(some, seed=3, method="BCa") == mean_interval(some, seed=3, method="BCa")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        # Pairs of items: 1-2 and 1-3 stand in the same order, 2-3 do not: (2 - 1) / 3.
        ([1, 2, 3], [1, 3, 2], 1 / 3),
        # Two pairs in the same order, one of three tied on the left: 2 / sqrt(2 * 3). tau-a would be 2 / 3.
        ([1, 1, 2], [1, 2, 3], 2 / math.sqrt(6)),
        # Of six pairs, two are tied on the left and three on the right; item 1 stands below items 3 and 4 on both
        # sides, and that is all.
        ([0, 0, 1, 1], [0, 1, 1, 1], 2 / math.sqrt(4 * 3)),
    ],
)
def test_kendall_tau(first: list[float], second: list[float], expected: float) -> None:
    assert kendall_tau(first, second) == pytest.approx(expected)
    assert kendall_tau(second, first) == pytest.approx(expected)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [1]), ([2, 2], [1, 3]), ([1, 3], [2, 2])])
def test_without_an_order_there_is_no_tau(first: list[float], second: list[float]) -> None:
    assert math.isnan(kendall_tau(first, second))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "no values"),
        (lambda: mean_interval([1.0, math.nan]), "value at position 1 is nan"),
        (lambda: mean_interval([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: mean_interval([1, 2], ["a"]), "2 values but 1 cluster names"),
        (lambda: mean_interval([1, 2], confidence=0), "confidence is 0"),
        (lambda: mean_interval([1, 2], confidence=95), "confidence is 95"),
        (lambda: mean_interval([1, 2], resamples=0), "resamples is 0"),
        (lambda: win_rate([1, 2], [1]), "2 policy rewards but 1 baseline"),
        (lambda: win_rate([1], [math.inf]), "baseline reward at position 0 is inf"),
        (lambda: win_rate([1], [1], -1), "tolerance of a tie is -1"),
        (lambda: win_rate([1], [1], math.nan), "tolerance of a tie is nan"),
        (lambda: kendall_tau([1, 2], [1]), "2 first numbers but 1 second"),
        (lambda: kendall_tau([1, 2], [1, math.nan]), "second number at position 1 is nan"),
    ],
)
def test_errors_say_where(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
