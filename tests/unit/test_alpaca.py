"""Win rates and their length-controlled twin, by hand, by a naive minimiser and by the fit that alpaca-eval uses."""

import math
import sys
from typing import Any

import numpy as np
import pytest
from alpaca_world import draw_comparisons, draw_gamed
from scipy.optimize import minimize

from crosspref.engines import liblinear
from crosspref.errors import MissingLibraryError
from crosspref.maths.alpaca import (
    GAMED_WEIGHT,
    Comparisons,
    Floats,
    comparisons,
    length_controlled_rates,
    win_rates,
)


def compare(preferences: list[float | None], **options: Any) -> Comparisons:
    count = len(preferences)
    lengths = options.pop("lengths", ([10.0] * count, [10.0] * count))
    return comparisons(options.pop("items", range(count)), preferences, *lengths, **options)


def test_win_rate_by_hand() -> None:
    # Outcomes 1, 0, 0.5, 0.5, 0.25, whose mean is 0.45. The sixth has no verdict.
    rates = win_rates(compare([2.0, 1.0, 1.5, 1.5, 1.25, None]))
    assert (rates.n, rates.win_rate) == (5, pytest.approx(45.0))
    assert (rates.lc, rates.C, rates.weights) == (None, None, {})
    rates = win_rates(compare([2.0, math.nan]))
    assert (rates.win_rate, rates.n) == (100.0, 1)


def test_equal_lengths_leave_the_shrunken_mean() -> None:
    # Without differences of length there is one weight c, and |c| + C sum CE is smallest where
    # C n (mean - sigma(c)) = 1: sigma(c) = 0.75 - 1 / 16 for n = 4 and C = 4.
    compared = compare([2.0, 2.0, 2.0, 1.0])
    assert length_controlled_rates(compared, 4.0, np.ones((1, 4))) == pytest.approx([68.75])
    # The last item drawn twice and the first not: the mean is 0.5, and c is 0. Drawn thrice: below it.
    counts = np.array([[0.0, 1, 1, 2], [0, 0, 1, 3], [0, 1, 1, 1]])
    expected = [50.0, 25 + 6.25, 100 * (2 / 3 - 1 / 12)]
    assert length_controlled_rates(compared, 4.0, counts) == pytest.approx(expected)
    # Where C n |mean - 1/2| < 1, nothing is worth a weight.
    assert length_controlled_rates(compared, 0.5, np.ones((1, 4))) == pytest.approx([50.0])


def test_length_is_held_equal() -> None:
    # The model wins 80% where it is shorter by 5 and 40% where it is longer by 5. Without a penalty to speak of, the
    # logits are met: c is the mean of log(0.8 / 0.2) and log(0.4 / 0.6), whatever the units of D.
    preferences = [1.8] * 50 + [1.4] * 50
    c = (math.log(4) + math.log(2 / 3)) / 2
    for unit in (1, 7):
        compared = compare(preferences, lengths=([10 * unit] * 50 + [20 * unit] * 50, [15 * unit] * 100))
        found = length_controlled_rates(compared, 1e8, np.ones((1, 100)))
        assert found == pytest.approx([100 / (1 + math.exp(-c))], abs=1e-4)


def naive_rate(compared: Comparisons, penalty: float) -> float:
    """The notes' formula, minimised over positive and negative parts of the weights."""
    differences = compared.baseline_lengths - compared.model_lengths
    features = np.stack(
        [np.tanh(differences / differences.std(ddof=1)), compared.difficulty, np.ones(len(differences))]
    )
    held = np.stack([np.tanh(compared.gamed.lengths), compared.gamed.difficulty, 0 * compared.gamed.lengths])
    judged = ~np.isnan(compared.outcomes)
    rows = np.concatenate([features[:, judged], held], axis=1)
    outcomes = np.concatenate([compared.outcomes[judged], compared.gamed.outcomes])
    weights = np.concatenate([np.ones(judged.sum()), np.full(held.shape[1], GAMED_WEIGHT)])

    def loss(parts: Floats) -> float:
        logits = (parts[:3] - parts[3:]) @ rows
        return parts.sum() + penalty * (weights * (np.logaddexp(0, logits) - outcomes * logits)).sum()

    best = minimize(loss, np.full(6, 0.1), bounds=[(0, None)] * 6, options={"ftol": 1e-15, "gtol": 1e-10})
    found = best.x[:3] - best.x[3:]
    return 100 * float((1 / (1 + np.exp(-(found[1] * compared.difficulty + found[2])))).mean())


@pytest.mark.parametrize("penalty", [0.01, 0.3, 20.0])
def test_refit_minimises_the_loss(penalty: float) -> None:
    compared = draw_comparisons(np.random.default_rng(0), 80, [-1.0], draw_gamed(60))[0]
    compared.outcomes[[3, 11, 40]] = math.nan
    assert length_controlled_rates(compared, penalty, np.ones((1, 80))) == pytest.approx(
        [naive_rate(compared, penalty)], abs=1e-3
    )


def test_a_count_is_a_copy() -> None:
    compared = draw_comparisons(np.random.default_rng(1), 40, [0.5], draw_gamed(40))[0]
    compared.outcomes[[5, 6]] = math.nan
    drawn = np.random.default_rng(2).integers(40, size=(6, 40))
    copies = [
        Comparisons(
            tuple(range(40)),
            *(column[rows] for column in (compared.outcomes, compared.model_lengths)),
            compared.baseline_lengths[rows],
            compared.difficulty[rows],
            compared.gamed,
        )
        for rows in drawn
    ]
    expected = [length_controlled_rates(copy, 5.0, np.ones((1, 40)))[0] for copy in copies]
    counts = np.stack([np.bincount(rows, minlength=40) for rows in drawn]).astype(float)
    assert length_controlled_rates(compared, 5.0, counts) == pytest.approx(expected, abs=1e-6)


def test_no_verdict_drawn_has_no_rate() -> None:
    compared = compare([2.0, None, 1.0], lengths=([1, 2, 3], [3, 5, 2]))
    found = length_controlled_rates(compared, 1.0, np.array([[0.0, 3, 0], [1, 1, 1]]))
    assert np.isnan(found).tolist() == [True, False]


def test_refit_is_the_fit_of_alpaca_eval_taken_further() -> None:
    pytest.importorskip("sklearn")
    for seed, skill in enumerate((-4.0, -1.0, 1.0)):
        compared = draw_comparisons(np.random.default_rng(seed), 300, [skill], draw_gamed(300))[0]
        found = win_rates(compared, liblinear.fit_by_cross_validation)
        assert found.lc_name == "LC"
        assert list(found.weights) == ["length", "difficulty", "not_gamed"]
        assert length_controlled_rates(compared, found.C, np.ones((1, 300))) == pytest.approx([found.lc], abs=0.01)


@pytest.mark.parametrize("preference", [1.0, 2.0])
def test_verdicts_that_are_all_the_same_have_no_fit(preference: float) -> None:
    def fit(design: Floats, outcomes: Floats, weights: Floats) -> tuple[Floats, float]:
        raise AssertionError("there is nothing to fit")

    found = win_rates(compare([preference] * 9), fit)
    assert math.isnan(found.lc)
    assert found.win_rate == 100 * (preference - 1)


def test_fit_needs_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sklearn", "sklearn.linear_model", "sklearn.model_selection"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibraryError, match=r"crosspref\[eval\]"):
        win_rates(compare([1.0, 2.0] * 5), liblinear.fit_by_cross_validation)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare([1.0, 0.5]), "preference at position 1 is 0.5"),
        (lambda: compare([2.5]), "preference at position 0 is 2.5"),
        (lambda: compare([1.0, 2.0], items=["x", "x"]), "'x' is a duplicate"),
        (lambda: compare([1.0], items=["x", "y"]), "2 items"),
        (lambda: compare([1.0, 2.0], lengths=([1, 2], [3])), r"shapes \[\(2,\), \(2,\), \(1,\)\]"),
        (lambda: compare([1.0], lengths=([-1], [3])), "item 0 is -1"),
        (lambda: compare([1.0, 2.0], difficulty=[0.5]), r"shapes \[\(2,\), \(2,\), \(2,\), \(1,\)\]"),
        (lambda: win_rates(compare([None, None])), "No item has a verdict"),
        (lambda: win_rates(compare([1.0, 2.0]), liblinear.fit_by_cross_validation), "there are 2"),
        (lambda: length_controlled_rates(compare([1.0]), 1.0, np.ones((1, 2))), r"shape \(1, 2\)"),
        (lambda: length_controlled_rates(compare([1.0]), 0.0, np.ones((1, 1))), "C is 0.0"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
