"""From comparisons to win rates, and to what differs between models: what calls the mathematics of AlpacaEval."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from crosspref.engines import find_engine
from crosspref.errors import MissingLibraryError
from crosspref.maths.alpaca import Comparisons, Gamed, WinRates, comparisons, win_rates
from crosspref.maths.estimate import Estimate
from crosspref.maths.resampling import (
    Draws,
    RateDraws,
    difference,
    mean_over,
    percentile_interval,
    resample,
    shared_items,
    win_rate_interval,
)
from crosspref.maths.statistics import sign_flip_test
from crosspref.suites.differences import changes_of, pairs_of, two_sided
from crosspref.suites.results import ModelChange
from crosspref.suites.xalpaca.rates import DIFFICULTY, GAMED_COLUMNS, Compared, Controls, Key, Measured, Rates

FEWEST = 5
"""Rows that the five folds of the length-controlled rate need."""

Fit = Callable[..., Any] | None


def measure(
    cells: Mapping[Key, Sequence[Compared]],
    controls: Controls,
    *,
    resamples: int,
    seed: int,
    say: Callable[[str], None],
) -> Measured:
    """Return the rates of every model in every language, the plain means over languages, and what changed.

    Items are resampled jointly over models and languages. Where the library that fits the length-controlled rate is
    missing, ``say`` says so, and the win rate alone is returned.
    """
    gamed = _gamed(controls.gamed)
    for (model, language), rows in cells.items():
        without = [row.item_id for row in rows if controls.of(row) is None]
        if without and not controls.compat and (controls.difficulty or controls.by_place):
            say(
                f"xalpaca {language}: {len(without):,} of {len(rows):,} items of {model} have no difficulty, such as "
                f"{without[0]!r}, so that there is no LC, nor its mean over languages."
            )
    compared = {
        key: _comparisons(rows, controls, gamed)
        for key, rows in cells.items()
        if any(row.preference is not None for row in rows)
    }
    fit: Fit = find_engine("fit", "liblinear")
    try:
        both = {key: (one, _win_rates(one, fit)) for key, one in compared.items()}
    except MissingLibraryError as error:
        say(f"{error}\nUntil then there are win rates alone. Every verdict is kept: give the same command again.")
        fit = None
        both = {key: (one, _win_rates(one, fit)) for key, one in compared.items()}
    draws = _resampled(both, resamples, seed)
    rates = dict.fromkeys(cells, Rates())
    for key, (one, measured) in both.items():
        # Alone a win rate has a bootstrap that allows for skewness; what is paired or joint needs the common draws.
        wr = win_rate_interval(one.outcomes, resamples=resamples, seed=seed)
        rates[key] = _rates(wr, draws[key], measured)
    models = list(dict.fromkeys(model for model, _ in cells))
    means = {
        model: _mean(
            [one for (name, _), one in draws.items() if name == model],
            {rates[key].lc_kind for key in draws if key[0] == model},
        )
        for model in models
    }
    pairs = pairs_of(models)
    changes = [change for pair in pairs for change in _changes(compared, *pair, fit, resamples=resamples, seed=seed)]
    return Measured(rates, means, changes)


def _gamed(rows: Sequence[Mapping[str, float]] | None) -> Gamed | None:
    if rows is None:
        return None
    columns = {name: np.array([row[name] for row in rows]) for name in GAMED_COLUMNS}
    items = tuple(int(place) for place in columns["index"])
    return Gamed(items, columns["preference"], columns["std_delta_len"], columns[DIFFICULTY])


def _comparisons(rows: Sequence[Compared], controls: Controls, gamed: Gamed | None) -> Comparisons:
    """Return the items of one cell; without difficulties where one of them has none."""
    difficulty: dict[Hashable, float]
    if controls.compat:
        given: Mapping[Any, float] = controls.difficulty or controls.by_place or {}
        difficulty = dict(given)
        whole = len(difficulty) >= len(rows)
    else:
        known = {row.item_id: controls.of(row) for row in rows}
        difficulty = {name: value for name, value in known.items() if value is not None}
        whole = len(difficulty) == len(rows)
    return comparisons(
        [row.item_id for row in rows],
        [row.preference for row in rows],
        [row.length for row in rows],
        [row.baseline_length for row in rows],
        gamed=gamed if whole else None,
        difficulty=difficulty if whole else None,
        by_position=controls.compat and whole,
    )


def _win_rates(compared: Comparisons, fit: Fit) -> WinRates:
    """Return the rates, with LC where there are difficulties and enough verdicts for its folds."""
    rows = int((~np.isnan(compared.outcomes)).sum()) + (len(compared.gamed.items) if compared.gamed else 0)
    return win_rates(compared, fit if compared.difficulty is not None and rows >= FEWEST else None)


def _resampled(cells: Mapping[Key, tuple[Comparisons, WinRates]], resamples: int, seed: int) -> dict[Key, RateDraws]:
    """Return the draws of every cell; those of an LC whose every weight was shrunk to 0 have no values.

    Such an LC is 50 whatever the items: an interval of no width would say that it is known exactly.
    """
    found = resample(cells, resamples, seed)
    for key, (_, measured) in cells.items():
        lc = found[key].lc
        if lc is not None and not any(measured.weights.values()):
            found[key] = RateDraws(found[key].win_rate, Draws(lc.point, np.full(resamples, np.nan), lc.n))
    return found


def _rates(wr: Estimate, draws: RateDraws, measured: WinRates) -> Rates:
    if measured.lc is None or math.isnan(measured.lc):
        return Rates(wr.value, wr.low, wr.high)
    lc = percentile_interval(draws.lc) if draws.lc is not None else Estimate(measured.lc, math.nan, math.nan, wr.n)
    return Rates(wr.value, wr.low, wr.high, lc.value, lc.low, lc.high, measured.lc_name)


def _mean(draws: Sequence[RateDraws], kinds: set[str]) -> Rates:
    """Return the plain mean over languages; of LC only where every language has one of the same kind."""
    if not draws:
        return Rates()
    wr = percentile_interval(mean_over(one.win_rate for one in draws))
    every = [one.lc for one in draws if one.lc is not None]
    if len(kinds) != 1 or kinds == {"none"} or len(every) < len(draws):
        return Rates(wr.value, wr.low, wr.high)
    lc = percentile_interval(mean_over(every))
    return Rates(wr.value, wr.low, wr.high, lc.value, lc.low, lc.high, *kinds)


def _changes(
    compared: Mapping[Key, Comparisons], model: str, other: str, fit: Fit, *, resamples: int, seed: int
) -> list[ModelChange]:
    """Return the differences of two models, by language and as their mean, over the items that both were judged on."""
    cells: dict[Key, tuple[Comparisons, WinRates]] = {}
    flips: dict[str, float] = {}
    for language in dict.fromkeys(language for _, language in compared):
        if (model, language) in compared and (other, language) in compared:
            left, right = shared_items(compared[model, language], compared[other, language])
            if left.items:
                cells[model, language] = left, _win_rates(left, fit)
                cells[other, language] = right, _win_rates(right, fit)
                flips[language] = sign_flip_test(left.outcomes - right.outcomes, seed=seed)
    if not cells:
        return []
    draws = _resampled(cells, resamples, seed)
    gaps = {language: _gaps(draws[model, language], draws[other, language]) for language in flips}
    found = []
    for rate in ("WR", "LC"):
        known = {language: gap[rate] for language, gap in gaps.items() if rate in gap}
        raw = [flips[language] if rate == "WR" else two_sided(gap) for language, gap in known.items()]
        found += changes_of(model, other, rate, known, raw, with_mean=len(known) == len(gaps))
    return found


def _gaps(left: RateDraws, right: RateDraws) -> dict[str, Draws]:
    gaps = {"WR": difference(left.win_rate, right.win_rate)}
    if left.lc is not None and right.lc is not None:
        gaps["LC"] = difference(left.lc, right.lc)
    return gaps
