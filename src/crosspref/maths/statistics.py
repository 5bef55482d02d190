"""Means, shares and their intervals; significance tests; agreement of rankings and of annotators.

The responses to one prompt resemble each other, so an interval that resamples them one by one is too narrow. Pass the
prompts as clusters: then all values of a prompt are drawn together.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, kendalltau, norm, permutation_test
from scipy.stats import t as student

from crosspref.maths.estimate import CONFIDENCE, Estimate

Floats = NDArray[np.float64]

_BATCH_NUMBERS = 2**22
"""How many values are resampled together. It bounds the memory and does not change the result."""


def mean_interval(
    values: ArrayLike,
    clusters: Iterable[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
    seed: int = 0,
    method: Literal["percentile", "BCa"] = "percentile",
) -> Estimate:
    """Return the mean of values (n,) and its bootstrap interval.

    ``clusters`` names the cluster of every value, for example its prompt_id. Then whole clusters are drawn, and the
    mean of a resample is over its values. The same arguments give the same interval. Raises ValueError when there are
    no values, when one is not finite, when ``clusters`` has another size, when the confidence is not between 0 and 1,
    or for fewer than one resample.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence is {confidence} and resamples is {resamples}. "
            "Pass a confidence between 0 and 1, such as 0.95, and at least one resample."
        )
    numbers = _finite("value", values)
    if not numbers.size:
        raise ValueError("There are no values, so there is no mean. Pass at least one value.")
    codes = np.arange(numbers.size) if clusters is None else _codes(clusters)
    if codes.size != numbers.size:
        raise ValueError(
            f"There are {numbers.size} values but {codes.size} cluster names. Pass the cluster of every value."
        )
    sums, counts = np.bincount(codes, weights=numbers), np.bincount(codes)
    mean = float(_ratio_of_sums(sums, counts))
    if sums.size == 1:
        return Estimate(mean, math.nan, math.nan, numbers.size)
    if (numbers == numbers[0]).all():
        value = float(numbers[0])
        return Estimate(value, value, value, numbers.size)
    interval = bootstrap(
        (sums, counts),
        _ratio_of_sums,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH_NUMBERS // sums.size),
        confidence_level=confidence,
        method=method,
        random_state=np.random.default_rng(seed),  # named ``rng`` since SciPy 1.15, which takes both
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), numbers.size)


def difference_interval(left: ArrayLike, right: ArrayLike) -> Estimate:
    """Return the mean of the paired differences left - right (n,) and its interval by Student's t.

    Meant for few values, such as one per seed. The interval is nan for fewer than two pairs. Raises ValueError when
    sizes differ, when there are no values, or when one is not finite.
    """
    first, second = _finite("left value", left), _finite("right value", right)
    if first.size != second.size or not first.size:
        raise ValueError(f"There are {first.size} left and {second.size} right values. Pass at least one pair of both.")
    gaps = first - second
    mean = float(gaps.mean())
    if gaps.size < 2:
        return Estimate(mean, math.nan, math.nan, gaps.size)
    reach = float(student.ppf((1 + CONFIDENCE) / 2, gaps.size - 1) * gaps.std(ddof=1) / math.sqrt(gaps.size))
    return Estimate(mean, mean - reach, mean + reach, gaps.size)


def win_rate(policy_rewards: ArrayLike, baseline_rewards: ArrayLike, tolerance: float = 0.0) -> Floats:
    """Return the outcome (n,) of every comparison: 1 if the policy wins, 0 if it loses, 0.5 for a tie.

    Both rewards (n,) are in the same unit. They tie if they differ by at most ``tolerance``. The mean of the outcomes
    is the win rate. Raises ValueError when sizes differ, when a reward is not finite, or for a negative tolerance.
    """
    policy, baseline = _finite("policy reward", policy_rewards), _finite("baseline reward", baseline_rewards)
    if policy.size != baseline.size:
        raise ValueError(
            f"There are {policy.size} policy rewards but {baseline.size} baseline rewards. "
            "Pass both for every comparison."
        )
    if not tolerance >= 0:
        raise ValueError(f"The tolerance of a tie is {tolerance}. Pass zero or a positive number.")
    gain = policy - baseline
    return np.where(np.abs(gain) <= tolerance, 0.5, (gain > 0).astype(np.float64))


def kendall_tau(first: ArrayLike, second: ArrayLike) -> float:
    """Return Kendall's tau-b of two lists of numbers (n,): 1 for the same order, -1 for the opposite order.

    It is nan if all numbers of a list are equal, because then there is no order. Raises ValueError when sizes differ or
    when a number is not finite.
    """
    left, right = _finite("first number", first), _finite("second number", second)
    if left.size != right.size:
        raise ValueError(f"There are {left.size} first numbers but {right.size} second ones. Pass both of every item.")
    if any(numbers.size < 2 or (numbers == numbers[0]).all() for numbers in (left, right)):
        return math.nan
    return float(kendalltau(left, right, variant="b").statistic)


def nominal_alpha(units: Iterable[Sequence[Hashable]]) -> tuple[float, float]:
    """Return the share of agreeing pairs of votes, and Krippendorff's alpha for nominal data, over units.

    A unit has any number of votes; a single vote is ignored. alpha is 1 if all votes of each unit agree, 0 if they
    agree as often as by chance, and nan if all votes are the same. Raises ValueError when no unit has two votes.
    Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C.
    """
    shared = [list(votes) for votes in units if len(votes) > 1]
    if not shared:
        raise ValueError("No unit has two votes, so nothing can agree. Pass the votes of at least two people.")
    total = sum(map(len, shared))
    every = Counter(vote for votes in shared for vote in votes)
    apart = sum(_differing(Counter(votes)) / (len(votes) - 1) for votes in shared)
    by_chance = _differing(every) / (total - 1)
    return 1 - apart / total, 1 - apart / by_chance if by_chance else math.nan


def _differing(counts: Counter[Hashable]) -> int:
    """Return the number of ordered pairs of different votes."""
    return counts.total() ** 2 - sum(count**2 for count in counts.values())


def _ratio_of_sums(sums: NDArray[np.number], counts: NDArray[np.number], axis: int = -1) -> Floats:
    """Return the mean of all values of the clusters along ``axis``, from the clusters' sums and counts."""
    ratio: Floats = sums.sum(axis=axis) / counts.sum(axis=axis)
    return ratio


def _codes(clusters: Iterable[Hashable]) -> NDArray[np.intp]:
    """Return the number (n,) of every value's cluster, counted from 0 in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.intp)


def _finite(name: str, values: ArrayLike) -> Floats:
    """Return values (n,) as an array. Raises ValueError for another shape or a value that is not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"The {name}s have shape {numbers.shape}. Pass a flat list of numbers.")
    if not np.isfinite(numbers).all():
        position = np.flatnonzero(~np.isfinite(numbers))[0]
        raise ValueError(f"The {name} at position {position} is {numbers[position]}. Leave it out, or find out why.")
    return numbers


def sign_flip_test(differences: ArrayLike, resamples: int = 9999, seed: int = 0) -> float:
    """Return the two-sided p-value of the mean of paired differences (n,), such as of outcomes on the same items.

    Under the null hypothesis each difference is as likely with the opposite sign. All sign combinations are tried if
    there are at most ``resamples`` of them, otherwise that many random ones. nan (an item without a verdict) is left
    out. The p-value is 1 if fewer than two differences are nonzero. Raises ValueError when there are no differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    known = values[~np.isnan(values)]
    if not known.size:
        raise ValueError("There are no differences, so nothing can be tested. Pass at least one.")
    changed = known[known != 0]  # a zero has no sign to flip
    if changed.size < 2:
        return 1.0
    test = permutation_test(
        (changed,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH_NUMBERS // changed.size),
        random_state=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def holm(p_values: ArrayLike) -> Floats:
    """Return p-values (m,) adjusted for multiple tests by Holm's method (1979): the k-th smallest times m - k + 1.

    Adjusted values keep the order of the p-values and do not exceed 1. If all values up to alpha are rejected, the
    probability of any false rejection is at most alpha. Raises ValueError for a p-value outside [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"Pass a flat list of p-values from 0 to 1, not {values.tolist()}.")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1)), 1)
    return adjusted


def wilson_interval(outcomes: ArrayLike, clusters: Iterable[Hashable] | None = None) -> Estimate:
    """Return the mean of outcomes (n,) in [0, 1] and its interval by Wilson (1927), as shares from 0 to 1.

    An outcome of one half is a tie, and makes the interval slightly too wide. ``clusters`` names the cluster of every
    outcome, such as an item that was judged in both orders. Then n is replaced by the effective number of independent
    outcomes: n / (variance of the mean by clusters / that of independent outcomes), limited to the range from the
    number of clusters to n. ``n`` of the result is still the number of outcomes.

    Raises ValueError when there are no outcomes, one is outside [0, 1], or ``clusters`` has another size.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim != 1 or not values.size or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"Pass at least one outcome from 0 to 1 in a flat list, not {values.tolist()[:5]} ...")
    mean = float(values.mean())
    size = float(values.size) if clusters is None else _independent_outcomes(values, list(clusters))
    quantile = float(norm.ppf((1 + CONFIDENCE) / 2))
    shrink = 1 + quantile**2 / size
    middle = (mean + quantile**2 / (2 * size)) / shrink
    reach = quantile / shrink * math.sqrt(mean * (1 - mean) / size + quantile**2 / (4 * size**2))
    # Rounding must not put an end on the wrong side of the mean.
    return Estimate(mean, max(0.0, min(mean, middle - reach)), min(1.0, max(mean, middle + reach)), values.size)


def share_interval(
    outcomes: ArrayLike,
    clusters: Iterable[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    method: Literal["percentile", "BCa"] = "percentile",
) -> Estimate:
    """Return the mean of outcomes (n,) in [0, 1] with its bootstrap interval, or Wilson's if all are 0 or all are 1.

    Resamples of equal outcomes are all equal: by the bootstrap, 0 of 12 would be known exactly. A single cluster has no
    interval. Arguments and errors are those of `mean_interval`.
    """
    names = None if clusters is None else list(clusters)
    found = mean_interval(outcomes, names, resamples=resamples, seed=seed, method=method)
    is_certain = found.low == found.high and found.value in (0.0, 1.0)
    return wilson_interval(outcomes, names) if is_certain else found


def newcombe_interval(left: Estimate, right: Estimate) -> Estimate:
    """Return the difference of two independent shares, left - right, and its interval.

    Method 10 of Newcombe (1998), for Wilson intervals: the distances from each share to the end of its interval are
    combined like standard errors. If both shares come from some of the same items and are positively correlated, the
    interval is too wide. ``n`` is the sum of both.
    """
    gap = left.value - right.value
    low = gap - math.hypot(left.value - left.low, right.high - right.value)
    high = gap + math.hypot(left.high - left.value, right.value - right.low)
    return Estimate(gap, low, high, left.n + right.n)


def _independent_outcomes(outcomes: Floats, clusters: list[Hashable]) -> float:
    """Return the effective number of independent outcomes of clustered outcomes."""
    if len(clusters) != outcomes.size:
        raise ValueError(f"There are {outcomes.size} outcomes but {len(clusters)} cluster names.")
    codes = _codes(clusters)
    count, mean = int(codes.max()) + 1, float(outcomes.mean())
    if count == 1 or mean in (0.0, 1.0):
        return float(count)
    of_clusters = np.bincount(codes, weights=outcomes - mean)
    variance = float((of_clusters**2).sum()) * count / (count - 1) / outcomes.size**2
    return float(np.clip(mean * (1 - mean) / variance if variance > 0 else math.inf, count, outcomes.size))
