"""Bootstrap intervals of win rates and scores over items: for models, differences and means over languages.

All models and languages of a table are resampled together: in a resample, an item occurs equally often in all of them.
So a difference is over the same items, and an item that is hard in all languages does not average out. The intervals
cover the sampling of items, given the judge and the trained model. They do not cover another judgement of the same
answers, another sampling of answers, or another training seed.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TypeVar

import numpy as np

from crosspref.maths.alpaca import Comparisons, Floats, WinRates, length_controlled_rates
from crosspref.maths.estimate import CONFIDENCE, Estimate
from crosspref.maths.statistics import share_interval, wilson_interval

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item", bound=Hashable)
_BATCH_NUMBERS = 2**22
"""How many items are drawn together. It bounds the memory and does not change the result."""


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """A statistic, its value (resamples,) in every resample in the same unit, and its number of items.

    The draws of one call of ``resample`` belong together: differences and means are paired by resample.
    """

    point: float
    values: Floats
    n: int


@dataclass(frozen=True, slots=True, eq=False)
class RateDraws:
    """The draws of one model in one language, in percent. ``lc`` is None if it was not measured."""

    win_rate: Draws
    lc: Draws | None


def resample(
    cells: Mapping[Key, tuple[Comparisons, WinRates]], resamples: int = 2000, seed: int = 0
) -> dict[Key, RateDraws]:
    """Return the win rate and LC of every cell in every resample of the items. A cell is a model in a language.

    Items are joined over cells by id and drawn uniformly from the items of all cells. LC is refitted at the C of the
    cell's ``WinRates``; its point is the LC given there. An LC whose weights were all shrunk to 0 has no values: it is
    50 for any items, and an interval without width would say that it is known exactly. The same arguments give the same
    draws. Raises ValueError for fewer than one resample.
    """
    _check_resamples(resamples)
    places = _places(compared.items for compared, _ in cells.values())
    of_all = _counts(np.random.default_rng(seed).integers(max(len(places), 1), size=(resamples, len(places))))
    draws = {}
    for key, (compared, rates) in cells.items():
        counts = of_all[:, [places[item] for item in compared.items]]
        judged = ~np.isnan(compared.outcomes)
        of_judged = counts[:, judged]
        with np.errstate(invalid="ignore"):
            values = 100 * (of_judged @ compared.outcomes[judged]) / of_judged.sum(axis=1)
        lc = None
        if rates.lc is not None and rates.C is not None:
            shrunk = rates.weights and not any(rates.weights.values())
            refitted = np.full(resamples, np.nan) if shrunk else length_controlled_rates(compared, rates.C, counts)
            lc = Draws(rates.lc, refitted, rates.n)
        draws[key] = RateDraws(Draws(rates.win_rate, values, rates.n), lc)
    return draws


def resample_means(
    cells: Mapping[Key, Mapping[Item, float | Sequence[float]]], resamples: int = 2000, seed: int = 0
) -> dict[Key, Draws]:
    """Return the mean of each cell's values, in their unit, in every resample of the items.

    A cell has one or several values per item, such as the scores of a question's turns. Items are drawn with all of
    their values, uniformly from the items of all cells. A mean is over values, and ``n`` counts items. The same
    arguments give the same draws. Raises ValueError for fewer than one resample, or for a cell without items.
    """
    _check_resamples(resamples)
    for key, cell in cells.items():
        if not cell:
            raise ValueError(f"{key!r} has no items, so it has no mean. Leave it out.")
    places = _places(cells.values())
    sums, sizes = np.zeros((len(places), len(cells))), np.zeros((len(places), len(cells)))
    for column, cell in enumerate(cells.values()):
        for item, value in cell.items():
            values = np.atleast_1d(value)
            sums[places[item], column], sizes[places[item], column] = values.sum(), values.size
    draw, drawn = np.random.default_rng(seed), np.empty((resamples, len(cells)))
    size = max(1, _BATCH_NUMBERS // max(1, len(places)))
    for start in range(0, resamples, size):
        counts = _counts(draw.integers(max(1, len(places)), size=(min(size, resamples - start), len(places))))
        with np.errstate(invalid="ignore"):  # a resample may have no items of a small cell
            drawn[start : start + size] = (counts @ sums) / (counts @ sizes)
    points = sums.sum(axis=0) / sizes.sum(axis=0)
    return {
        key: Draws(float(points[column]), drawn[:, column], len(cell))
        for column, (key, cell) in enumerate(cells.items())
    }


def difference(left: Draws, right: Draws) -> Draws:
    """Return left - right, resample by resample."""
    return Draws(left.point - right.point, left.values - right.values, min(left.n, right.n))


def mean_over(draws: Iterable[Draws]) -> Draws:
    """Return the plain mean of several statistics, such as one per language, resample by resample.

    ``n`` is their sum. Raises ValueError when there are no statistics.
    """
    parts = list(draws)
    if not parts:
        raise ValueError("There are no draws, so there is no mean. Pass the draws of at least one language.")
    values = np.mean([part.values for part in parts], axis=0)
    return Draws(float(np.mean([part.point for part in parts])), values, sum(part.n for part in parts))


def percentile_interval(draws: Draws) -> Estimate:
    """Return the statistic and its percentile interval, which has no width if all draws are equal.

    The ends are nan for fewer than two items, or if more than 1% of the resamples have no value.
    """
    known = draws.values[np.isfinite(draws.values)]
    if draws.n < 2 or known.size < 0.99 * draws.values.size:
        return Estimate(draws.point, math.nan, math.nan, draws.n)
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(draws.point, float(low), float(high), draws.n)


def rate_interval(draws: Draws, items: int) -> Estimate:
    """Return a rate in percent and its percentile interval, or Wilson's if the rate is 0 or 100 in all draws.

    ``items`` is the largest number of different items behind it, which for a mean over languages is less than ``n``.
    """
    found = percentile_interval(draws)
    if found.low != found.high or found.value not in (0.0, 100.0):
        return found
    share = wilson_interval(np.full(min(items, draws.n), draws.point / 100))
    return Estimate(found.value, 100 * share.low, 100 * share.high, found.n)


def win_rate_interval(outcomes: Floats, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Return 100 mean(outcome) and its interval, in percent, for one model in one language.

    It is the BCa bootstrap interval, or Wilson's if all outcomes are 0 or all are 1. ``outcomes`` (n,) are in [0, 1],
    or nan without a verdict. The ends are nan for a single verdict. Raises ValueError when there is none.
    """
    share = share_interval(outcomes[~np.isnan(outcomes)], resamples=resamples, seed=seed, method="BCa")
    return Estimate(100 * share.value, 100 * share.low, 100 * share.high, share.n)


def shared_items(*compared: Comparisons) -> tuple[Comparisons, ...]:
    """Return all comparisons restricted to the items with a verdict in each of them, in the first one's order.

    The restricted lengths have a different sd(D), so compute ``win_rates`` again. There may be no shared items.
    """
    judged = [set(compress(part.items, ~np.isnan(part.outcomes))) for part in compared]
    shared = [item for item in compared[0].items if all(item in items for items in judged)] if compared else []
    return tuple(_restricted(part, shared) for part in compared)


def _restricted(compared: Comparisons, items: Sequence[Hashable]) -> Comparisons:
    places = {item: place for place, item in enumerate(compared.items)}
    rows = np.array([places[item] for item in items], dtype=np.intp)
    return replace(
        compared,
        items=tuple(items),
        outcomes=compared.outcomes[rows],
        model_lengths=compared.model_lengths[rows],
        baseline_lengths=compared.baseline_lengths[rows],
        difficulty=None if compared.difficulty is None else compared.difficulty[rows],
    )


def _places(cells: Iterable[Iterable[Item]]) -> dict[Item, int]:
    """Return the column of each item of any cell."""
    return {item: place for place, item in enumerate(dict.fromkeys(item for cell in cells for item in cell))}


def _counts(drawn: np.ndarray) -> Floats:
    """Return how often (resamples, items) each item was drawn. ``drawn`` has the same shape."""
    resamples, total = drawn.shape
    flat = drawn + total * np.arange(resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=resamples * total).reshape(resamples, total).astype(np.float64)


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"The number of resamples is {resamples}. Pass at least one, such as 2000.")
