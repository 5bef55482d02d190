"""From judged items to win rates and differences between models, by the mathematics in ``maths.alpaca``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from crosspref.engines import find_engine
from crosspref.errors import MissingLibraryError
from crosspref.maths.alpaca import Comparisons, Fit, Gamed, WinRates, comparisons, win_rates
from crosspref.maths.estimate import UNKNOWN, Estimate
from crosspref.maths.resampling import (
    RateDraws,
    difference,
    mean_over,
    percentile_interval,
    rate_interval,
    resample,
    shared_items,
    win_rate_interval,
)
from crosspref.maths.statistics import sign_flip_test
from crosspref.suites.results import MEAN, ModelChange, changes_of, pairs_of, two_sided
from crosspref.suites.xalpaca.files import Controls

FEWEST = 5
"""Rows that the five folds of the length-controlled rate need."""

Place = tuple[str, str]
"""A model and a language, or the mean over languages."""


class Compared(NamedTuple):
    """An item with both answers: the preference in [1, 2], where 2 is the model's, or None; lengths in characters."""

    item_id: str
    place: int
    preference: float | None
    length: int
    baseline_length: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Win rate and length-controlled win rate in percent."""

    wr: Estimate = UNKNOWN
    lc: Estimate = UNKNOWN
    lc_kind: str = "none"


def measure(
    given: Mapping[Place, Sequence[Compared]],
    controls: Controls,
    *,
    resamples: int,
    seed: int,
    say: Callable[[str], None],
) -> tuple[dict[Place, Rates], list[ModelChange]]:
    """Return the rates of every model in every language and on average over languages, and the changes.

    Items are resampled jointly over models and languages. If the library that fits the length-controlled rate is
    missing, ``say`` says so, and there are only win rates.
    """
    difficulties = {place: controls.of_items([row[:2] for row in rows]) for place, rows in given.items()}
    for (model, language), rows in given.items():
        known = difficulties[model, language]
        without = [row.item_id for row, difficulty in zip(rows, known, strict=False) if difficulty is None]
        if without and controls.difficulties:
            say(
                f"xalpaca {language}: {len(without):,} of {len(rows):,} items of {model} have no difficulty, such as "
                f"{without[0]!r}, so that there is no LC, nor its mean over languages."
            )
    compared = {
        place: _comparisons(rows, difficulties[place], controls.gamed)
        for place, rows in given.items()
        if any(row.preference is not None for row in rows)
    }
    fit: Fit | None = find_engine("fit", "liblinear")
    try:
        fitted = {place: (one, _win_rates(one, fit)) for place, one in compared.items()}
    except MissingLibraryError as error:
        say(f"{error}\nUntil then there are win rates alone. Every verdict is kept: give the same command again.")
        fit = None
        fitted = {place: (one, _win_rates(one, fit)) for place, one in compared.items()}
    draws = resample(fitted, resamples, seed)
    rates = dict.fromkeys(given, Rates())
    for place, (one, fit_of_one) in fitted.items():
        # A single win rate has a bootstrap that allows for skewness; differences and means need the common draws.
        wr = win_rate_interval(one.outcomes, resamples=resamples, seed=seed)
        lc = draws[place].lc
        rates[place] = Rates(wr) if lc is None else Rates(wr, percentile_interval(lc), fit_of_one.lc_name)
    models = list(dict.fromkeys(model for model, _ in given))
    means = {model: _mean([(draws[place], rates[place]) for place in draws if place[0] == model]) for model in models}
    changes = [
        change for pair in pairs_of(models) for change in _changes(compared, *pair, fit, resamples=resamples, seed=seed)
    ]
    return rates | {(model, MEAN): mean for model, mean in means.items()}, changes


def _comparisons(rows: Sequence[Compared], difficulties: Sequence[float | None], gamed: Gamed | None) -> Comparisons:
    """Return the items of one model and language, without difficulties if any of them has none."""
    items, _, preferences, lengths, baseline_lengths = zip(*rows, strict=True)
    known = [difficulty for difficulty in difficulties if difficulty is not None]
    if len(known) < len(rows):
        return comparisons(items, preferences, lengths, baseline_lengths)
    return comparisons(items, preferences, lengths, baseline_lengths, known, gamed)


def _win_rates(compared: Comparisons, fit: Fit | None) -> WinRates:
    """Return the rates, with LC if there are difficulties and enough verdicts for its folds."""
    rows = int((~np.isnan(compared.outcomes)).sum()) + (len(compared.gamed.outcomes) if compared.gamed else 0)
    return win_rates(compared, fit if compared.difficulty is not None and rows >= FEWEST else None)


def _mean(languages: Sequence[tuple[RateDraws, Rates]]) -> Rates:
    """Return the plain mean over languages, with LC only if every language has one of the same kind."""
    if not languages:
        return Rates()
    wr = rate_interval(
        mean_over(draws.win_rate for draws, _ in languages), max(draws.win_rate.n for draws, _ in languages)
    )
    kinds = {rates.lc_kind for _, rates in languages}
    if len(kinds) != 1 or kinds == {"none"}:
        return Rates(wr)
    return Rates(wr, percentile_interval(mean_over(draws.lc for draws, _ in languages if draws.lc)), *kinds)


def _changes(
    compared: Mapping[Place, Comparisons], model: str, other: str, fit: Fit | None, *, resamples: int, seed: int
) -> list[ModelChange]:
    """Return the differences of two models, by language and on average, over the items judged for both."""
    fitted: dict[Place, tuple[Comparisons, WinRates]] = {}
    flips: dict[str, float] = {}
    for language in dict.fromkeys(language for _, language in compared):
        if (model, language) in compared and (other, language) in compared:
            left, right = shared_items(compared[model, language], compared[other, language])
            if left.items:
                fitted[model, language] = left, _win_rates(left, fit)
                fitted[other, language] = right, _win_rates(right, fit)
                flips[language] = sign_flip_test(left.outcomes - right.outcomes, seed=seed)
    draws = resample(fitted, resamples, seed)
    pairs = {language: (draws[model, language], draws[other, language]) for language in flips}
    wr = {language: difference(one.win_rate, two.win_rate) for language, (one, two) in pairs.items()}
    lc = {language: difference(one.lc, two.lc) for language, (one, two) in pairs.items() if one.lc and two.lc}
    return [
        *changes_of(model, other, "WR", wr, list(flips.values())),
        *changes_of(model, other, "LC", lc, [*map(two_sided, lc.values())], with_mean=len(lc) == len(flips)),
    ]
