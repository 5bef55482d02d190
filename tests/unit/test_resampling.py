"""Intervals of win rates: joint over models and languages, and how often they hold what they should."""

import math
from itertools import product

import numpy as np
import pytest
from alpaca_world import draw_comparisons, draw_gamed, refitted

from crosspref.maths import resampling
from crosspref.maths.alpaca import Comparisons, WinRates, length_controlled_rates, win_rates
from crosspref.maths.estimate import Estimate
from crosspref.maths.resampling import (
    Draws,
    difference,
    mean_over,
    percentile_interval,
    rate_interval,
    resample,
    resample_means,
    shared_items,
    win_rate_interval,
)

C = 20.0


def plain(outcomes: list[float], items: str = "abcdefgh") -> tuple[Comparisons, WinRates]:
    size = len(outcomes)
    compared = Comparisons(tuple(items[:size]), np.array(outcomes), np.ones(size), np.ones(size), None, None)
    return compared, win_rates(compared)


def test_every_cell_sees_the_same_items() -> None:
    outcomes = [1.0, 0.5, 0.25]
    found = resample({"x": plain(outcomes), "y": plain([1 - one for one in outcomes])}, 50)
    assert found["x"].win_rate.values + found["y"].win_rate.values == pytest.approx(np.full(50, 100.0))
    possible = {round(100 * sum(drawn) / 3, 9) for drawn in product(outcomes, repeat=3)}
    assert set(np.round(found["x"].win_rate.values, 9).tolist()) <= possible
    assert found["x"].lc is None


def test_items_are_joined_by_id_and_not_by_place() -> None:
    found = resample({"x": plain([1.0, 0.0, 0.5], "abc"), "y": plain([0.5, 1.0, 0.0], "cab")}, 50)
    assert found["x"].win_rate.values.tolist() == found["y"].win_rate.values.tolist()
    gap = percentile_interval(difference(found["x"].win_rate, found["y"].win_rate))
    assert gap == Estimate(0.0, 0.0, 0.0, 3)


def test_all_resamples_are_equally_likely() -> None:
    # Two items: both the first, both the second, or one of each in half of the cases.
    values = resample({1: plain([1.0, 0.0])}, 4000)[1].win_rate.values
    assert [(values == rate).mean() for rate in (0, 50, 100)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_draws_of_lc_are_refits() -> None:
    compared, rates = refitted(draw_comparisons(np.random.default_rng(0), 30, [0.0], draw_gamed(30))[0], C)
    found = resample({"x": (compared, rates)}, 20, seed=3)["x"]
    assert found.lc is not None
    assert (found.lc.point, found.win_rate.point) == (rates.lc, rates.win_rate)
    drawn = np.random.default_rng(3).integers(30, size=(20, 30))
    counts = np.stack([np.bincount(rows, minlength=30) for rows in drawn]).astype(float)
    assert found.lc.values == pytest.approx(length_controlled_rates(compared, C, counts))
    assert found.win_rate.values == pytest.approx(100 * compared.outcomes[drawn].mean(axis=1))


def test_a_verdict_that_is_missing_is_not_counted() -> None:
    found = resample({"x": plain([1.0, math.nan, math.nan, 1.0])}, 200)["x"].win_rate
    assert found.n == 2
    known = found.values[np.isfinite(found.values)]
    assert set(known.tolist()) == {100.0}
    # Two of four items have no verdict, so one resample in sixteen has none at all: no interval.
    assert math.isnan(percentile_interval(found).low)


def test_only_shared_items_are_compared() -> None:
    first, second = plain([1.0, 0.0, math.nan, 0.5], "abcd")[0], plain([0.5, 1.0, 0.25], "dca")[0]
    left, right = shared_items(first, second)
    assert left.items == right.items == ("a", "d")
    assert (left.outcomes.tolist(), right.outcomes.tolist()) == ([1.0, 0.5], [0.25, 0.5])


def test_mean_over_languages() -> None:
    draws = [Draws(10.0, np.array([1.0, 2.0]), 5), Draws(20.0, np.array([3.0, 6.0]), 7)]
    found = mean_over(draws)
    assert (found.point, found.values.tolist(), found.n) == (15.0, [2.0, 4.0], 12)
    with pytest.raises(ValueError, match="There are no draws"):
        mean_over([])


def test_interval_of_a_win_rate() -> None:
    found = win_rate_interval(np.array([1, 0, 0.5, math.nan, 0.9, 0.2] * 20), resamples=4000)
    spread = np.std([1, 0, 0.5, 0.9, 0.2] * 20)
    assert (found.value, found.n) == (pytest.approx(52.0), 100)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 100 * spread / 10, rel=0.05)
    every = win_rate_interval(np.ones(4))  # n / (n + z^2), by Wilson
    assert every == Estimate(100.0, pytest.approx(100 * 4 / 7.841459), 100.0, 4)
    assert math.isnan(win_rate_interval(np.array([0.5, math.nan])).low)


def test_a_rate_of_0_or_100_has_wilsons_interval() -> None:
    """z^2 / (n + z^2) of 10 items; two languages share their items, so that their mean is of no more."""
    draws = resample_means({tag: dict.fromkeys(range(10), 100.0) for tag in ("en", "es")}, 50)
    mean = rate_interval(mean_over(draws.values()), 10)
    assert (mean.value, mean.high, mean.n) == (100.0, 100.0, 20)
    assert mean.low == pytest.approx(100 - 100 * 3.841459 / 13.841459, abs=1e-5)
    assert rate_interval(draws["es"], 10).low == mean.low
    assert win_rate_interval(np.zeros(10)).high == pytest.approx(100 - mean.low)
    others = resample_means({"en": {1: 0.0, 2: 100.0, 3: 0.0}, "es": dict.fromkeys(range(3), 50.0)}, 50)
    for one in others.values():
        assert rate_interval(one, 3) == percentile_interval(one)
    assert math.isnan(rate_interval(resample_means({"en": {1: 0.0}}, 50)["en"], 1).low)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="no values"):
        win_rate_interval(np.array([math.nan]))
    with pytest.raises(ValueError, match="resamples is 0"):
        resample({}, 0)
    assert resample({}) == {}


def test_means_are_resampled_as_win_rates_are(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {"x": plain([1.0, 0.0, 0.5], "abc"), "y": plain([0.5, 1.0, 0.0, 1.0], "cbad")}
    expected = {key: one.win_rate for key, one in resample(outcomes, 40, seed=3).items()}
    values = {
        key: {item: 100 * float(value) for item, value in zip(one.items, one.outcomes, strict=True)}
        for key, (one, _) in outcomes.items()
    }
    for batch in (resampling._BATCH_NUMBERS, 28):
        monkeypatch.setattr(resampling, "_BATCH_NUMBERS", batch)
        found = resample_means(values, 40, seed=3)
        for key, draws in found.items():
            assert (draws.point, draws.n) == (pytest.approx(expected[key].point), expected[key].n)
            assert draws.values == pytest.approx(expected[key].values, nan_ok=True)


def test_a_cell_of_differences_is_the_difference_of_two() -> None:
    draw = np.random.default_rng(0)
    left, right = ({item: float(value) for item, value in enumerate(draw.random(30))} for _ in range(2))
    found = resample_means({"left": left, "right": right, "gap": {i: left[i] - right[i] for i in left}}, 200)
    gap = difference(found["left"], found["right"])
    assert found["gap"].values == pytest.approx(gap.values)
    assert found["gap"].point == pytest.approx(gap.point)


def test_no_mean_without_items_or_resamples() -> None:
    with pytest.raises(ValueError, match="'x' has no items"):
        resample_means({"x": {}})
    with pytest.raises(ValueError, match="resamples is 0"):
        resample_means({"x": {"a": 1.0}}, 0)
    assert resample_means({}) == {}
