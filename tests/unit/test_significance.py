"""Sign flips, Holm, verdicts and Wilson's interval, by hand and by counting all cases."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from crosspref.maths.estimate import NO_DIFFERENCE, Change, Estimate
from crosspref.maths.resampling import resample_means
from crosspref.maths.statistics import holm, sign_flip_test, wilson_interval
from crosspref.suites.results import MEAN, changes_of, two_sided


def test_sign_flips_by_hand() -> None:
    # Of the 8 signings of 1, 2, 3 the sums are 6, 4, 2, 0, 0, -2, -4, -6: two are as far out as 6, four as 4.
    assert sign_flip_test([1, 2, 3]) == pytest.approx(2 / 8)
    assert sign_flip_test([-1, 2, 3]) == pytest.approx(4 / 8)
    # A zero flips into itself, and a missing verdict is no difference.
    assert sign_flip_test([1, 2, 0, math.nan, 3]) == pytest.approx(2 / 8)
    assert sign_flip_test([0.0, 0.0]) == 1.0
    # One difference alone shows nothing.
    assert sign_flip_test([0.0, 0.5, 0.0, math.nan]) == 1.0


def test_sign_flips_of_many_are_drawn() -> None:
    draw = np.random.default_rng(0)
    # With a true shift of three standard errors, the two-sided p-value of the normal distribution is about 0.0027.
    values = draw.normal(0, 1, 400)
    values += 3 * values.std() / 20 - values.mean()
    assert 0.001 < sign_flip_test(values, resamples=19_999) < 0.005
    assert sign_flip_test(values + 1) == pytest.approx(2 / 10_000)
    assert sign_flip_test(values, seed=1) == sign_flip_test(values, seed=1)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.6: times 4, 3, 2, 1 gives 0.04, 0.06, 0.06, 0.6.
    assert holm([0.03, 0.6, 0.01, 0.02]) == pytest.approx([0.06, 0.6, 0.04, 0.06])
    # 0.01 * 3 = 0.03, then 0.012 * 2 = 0.024, which is raised to 0.03; 0.9 stays.
    assert holm([0.01, 0.012, 0.9]) == pytest.approx([0.03, 0.03, 0.9])
    assert holm([0.7, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]).size == 0


@pytest.mark.parametrize(
    ("low", "high", "p_value", "expected"),
    [
        (0.1, 2.0, None, "better"),
        (-2.0, -0.1, None, "worse"),
        (-0.1, 2.0, None, ""),
        (0.0, 2.0, None, ""),
        (math.nan, math.nan, None, ""),
        (0.1, 2.0, 0.05, "better"),
        (0.1, 2.0, 0.051, ""),
        (-2.0, -0.1, 0.01, "worse"),
        (-0.1, 2.0, 0.01, ""),
        (0.1, 2.0, math.nan, ""),
    ],
)
def test_verdict(low: float, high: float, p_value: float | None, expected: str) -> None:
    assert Change.of(Estimate(1.0, low, high, 9), p_value).verdict == (expected or NO_DIFFERENCE)


def test_wilson_by_hand() -> None:
    # z^2 = 3.8415, n = 100: the middle is (0.61 + 0.019207) / 1.038415 = 0.60593, the reach
    # 1.95996 / 1.038415 * sqrt(0.61 * 0.39 / 100 + 3.8415 / 40000) = 0.09390.
    found = wilson_interval([1] * 61 + [0] * 39)
    assert (found.value, found.n) == (0.61, 100)
    assert (found.low, found.high) == (pytest.approx(0.51203, abs=2e-5), pytest.approx(0.69983, abs=2e-5))
    assert (round(found.low, 2), round(found.high, 2)) == (0.51, 0.70)
    # All of n: the low end is n / (n + z^2).
    found = wilson_interval([1] * 10)
    assert (found.low, found.high) == (pytest.approx(10 / 13.8415, abs=1e-5), pytest.approx(1.0))


def test_copies_within_a_cluster_add_no_certainty() -> None:
    once = [1] * 61 + [0] * 39
    found = wilson_interval(np.repeat(once, 2), np.repeat(np.arange(100), 2))
    expected = wilson_interval(once)
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=1e-3), pytest.approx(expected.high, abs=1e-3))
    assert found.n == 200


def test_clusters_of_one_change_nothing() -> None:
    once = [1] * 7 + [0] * 3
    found, expected = wilson_interval(once, range(10)), wilson_interval(once)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_a_judge_that_always_takes_the_first_does_not_look_certain() -> None:
    # In one order it is right, in the other wrong: items do not differ, but there are no more than 20 outcomes.
    found = wilson_interval([1, 0] * 10, np.repeat(np.arange(10), 2))
    expected = wilson_interval([1, 0] * 10)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    # Of items that are all right, both orders are counted as one.
    assert wilson_interval([1] * 20, np.repeat(np.arange(10), 2)).low == pytest.approx(wilson_interval([1] * 10).low)


def test_coverage_of_wilson() -> None:
    # No simulation: the chance of every count of successes, for a mean over shares around those of the paper.
    for size in (100, 500):
        known = [wilson_interval([1.0] * count + [0.0] * (size - count)) for count in range(size + 1)]
        shares = []
        for truth in np.linspace(0.5, 0.9, 41):
            held = [interval.low <= truth <= interval.high for interval in known]
            shares.append(float(binom.pmf(np.arange(size + 1), size, truth) @ held))
        assert 0.945 <= np.mean(shares) <= 0.955
        assert 0.93 <= min(shares) <= max(shares) <= 0.97


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval([]), "at least one outcome"),
        (lambda: wilson_interval([0.5, 1.5]), "from 0 to 1"),
        (lambda: wilson_interval([1, 0], ["a"]), "2 outcomes but 1 cluster names"),
        (lambda: holm([0.5, 1.5]), "from 0 to 1"),
        (lambda: holm([math.nan]), "from 0 to 1"),
        (lambda: sign_flip_test([math.nan]), "no differences"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_of_few_items_a_mean_over_languages_shows_no_difference() -> None:
    cells = {name: {item: 1.0 + item / 10 for item in range(3)} for name in ("de", "fr")}
    gaps = resample_means(cells, 2000)
    *_, mean = changes_of("a", "b", "overall", gaps, [0.25, 0.25])
    assert (mean.language, mean.change.p_value, mean.change.verdict) == (MEAN, 0.25, NO_DIFFERENCE)
    many = resample_means({name: dict.fromkeys(range(9), 1.0) for name in cells}, 2000)
    assert changes_of("a", "b", "overall", many, [0.004, 0.004])[-1].change.verdict == "better"
    assert two_sided(many["de"]) == pytest.approx(2**-8)
