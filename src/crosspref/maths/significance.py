"""Whether a difference is there: sign flips, several tests at once, the word for a table; and intervals of shares."""

import math
from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, permutation_test

from crosspref.maths.statistics import Interval

Floats = NDArray[np.float64]


def sign_flip_test(differences: ArrayLike, resamples: int = 9999, seed: int = 0) -> float:
    """Return the two-sided p-value of the mean of paired differences (n,), such as of outcomes on the same items.

    If the two sides were alike, a difference would be as likely with the other sign. All signs are tried where that
    takes no more than ``resamples``, else so many random ones. nan (an item without verdict) is left out. The value is
    1 where fewer than two differences are not zero. Raises ValueError when there is none at all.
    """
    given = np.asarray(differences, dtype=np.float64)
    known = given[~np.isnan(given)]
    if not known.size:
        raise ValueError("There are no differences, so nothing can be tested. Pass at least one.")
    changed = known[known != 0]  # a zero has no sign to flip, and only makes fewer of the rest
    if changed.size < 2:
        return 1.0
    found = permutation_test(
        (changed,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2**22 // changed.size),
        random_state=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: ArrayLike) -> Floats:
    """Return p-values (m,) adjusted for there being m of them, by Holm (1979): the k-th smallest times m - k + 1.

    None falls below a smaller one's, and none exceeds 1. Rejecting what is at most alpha makes a false rejection
    anywhere at most alpha likely. Raises ValueError for a p-value outside [0, 1].
    """
    given = np.asarray(p_values, dtype=np.float64)
    if given.ndim != 1 or not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"Pass a flat list of p-values from 0 to 1, not {given.tolist()}.")
    order = np.argsort(given, kind="stable")
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(given.size, 0, -1)), 1)
    return adjusted


def verdict(gap: Interval, p_value: float | None = None, level: float = 0.05) -> str:
    """Return "better" or "worse" where the interval of a difference lies on one side of zero, and else "".

    With a ``p_value``, such as one adjusted by ``holm``, it must be at most ``level`` too. An unknown interval or
    p-value (nan) says nothing.
    """
    if p_value is not None and not p_value <= level:
        return ""
    if gap.low > 0:
        return "better"
    return "worse" if gap.high < 0 else ""


def wilson_interval(
    outcomes: ArrayLike, clusters: Iterable[Hashable] | None = None, confidence: float = 0.95
) -> Interval:
    """Return the mean of outcomes (n,) in [0, 1] and its interval by Wilson (1927), as shares from 0 to 1.

    An outcome of one half is a tie; it makes the interval a little too wide. ``clusters`` names what belongs together,
    such as the item that was judged in both orders: n is then replaced by how many independent outcomes would tell as
    much, n / (variance of the mean by clusters / that of independent outcomes), which is kept between the number of
    clusters and n. ``n`` of the result stays the number of outcomes.

    Raises ValueError when there are no outcomes, one is outside [0, 1], or ``clusters`` is of another size.
    """
    given = np.asarray(outcomes, dtype=np.float64)
    if given.ndim != 1 or not given.size or not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"Pass at least one outcome from 0 to 1 in a flat list, not {given.tolist()[:5]} ...")
    if not 0 < confidence < 1:
        raise ValueError(f"The confidence is {confidence}. Pass a number between 0 and 1, such as 0.95.")
    mean = float(given.mean())
    size = float(given.size) if clusters is None else _independent_outcomes(given, list(clusters))
    quantile = float(norm.ppf((1 + confidence) / 2))
    shrink = 1 + quantile**2 / size
    middle = (mean + quantile**2 / (2 * size)) / shrink
    reach = quantile / shrink * math.sqrt(mean * (1 - mean) / size + quantile**2 / (4 * size**2))
    return Interval(mean, max(0.0, middle - reach), min(1.0, middle + reach), given.size)


def newcombe_interval(left: Interval, right: Interval) -> Interval:
    """Return the difference of two independent shares, left - right, and its interval from both of theirs.

    By Newcombe (1998), method 10, where theirs are Wilson's: the distances from each share to the end of its interval
    are added as if they were standard errors. Where the two are on some of the same items and rise and fall together,
    it is too wide. ``n`` is that of both.
    """
    gap = left.mean - right.mean
    low = gap - math.hypot(left.mean - left.low, right.high - right.mean)
    high = gap + math.hypot(left.high - left.mean, right.mean - right.low)
    return Interval(gap, low, high, left.n + right.n)


def _independent_outcomes(outcomes: Floats, clusters: list[Hashable]) -> float:
    """Return how many independent outcomes would say as much about the mean as these in clusters do."""
    if len(clusters) != outcomes.size:
        raise ValueError(f"There are {outcomes.size} outcomes but {len(clusters)} cluster names.")
    numbers: dict[Hashable, int] = {}
    codes = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    count, mean = len(numbers), float(outcomes.mean())
    if count == 1 or mean in (0.0, 1.0):
        return float(count)
    of_clusters = np.bincount(codes, weights=outcomes - mean)
    variance = float((of_clusters**2).sum()) * count / (count - 1) / outcomes.size**2
    return float(np.clip(mean * (1 - mean) / variance if variance > 0 else math.inf, count, outcomes.size))
