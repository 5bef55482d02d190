"""By how much two models differ on the same items, per language and over languages: tests, verdicts and the table."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from crosspref.maths.resampling import Draws, mean_over, percentile_interval
from crosspref.maths.significance import holm, verdict
from crosspref.stages.report import Report
from crosspref.suites.results import MEAN, Change

NO_DIFFERENCE = "no difference shown"


def changes_over_languages(
    model: str, other: str, rate: str, gaps: Mapping[str, Draws], p_values: Mapping[str, float], *, mean: bool
) -> list[Change]:
    """Return the differences in one rate by language, their p-values adjusted by Holm, and their plain mean at the end.

    Args:
        model: the model.
        other: the one that it is compared with.
        rate: what is compared.
        gaps: the draws of the difference in points, model - other, by language.
        p_values: two-sided and unadjusted, by language.
        mean: whether the mean is wanted; there is none of a single language.
    """
    adjusted = holm([p_values[language] for language in gaps])
    tested = [(language, gap, float(p)) for (language, gap), p in zip(gaps.items(), adjusted, strict=True)]
    if mean and len(gaps) > 1:
        over = mean_over(gaps.values())
        tested.append((MEAN, over, two_sided(over)))
    return [_change(model, other, language, rate, gap, p) for language, gap, p in tested]


def _change(model: str, other: str, language: str, rate: str, gap: Draws, p_value: float) -> Change:
    interval = percentile_interval(gap)
    said = verdict(interval, p_value) or NO_DIFFERENCE
    return Change(model, other, language, rate, interval.mean, interval.low, interval.high, p_value, said, interval.n)


def two_sided(draws: Draws) -> float:
    """Return the bootstrap's two-sided p-value of no difference; 1 where too many resamples have no value."""
    known = draws.values[np.isfinite(draws.values)]
    if not known.size or known.size < 0.99 * draws.values.size:
        return 1.0
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (known.size + 1)))


def make_changes_report(changes: Sequence[Change], title: str, note: str) -> Report:
    """Return what differs between models: languages in the order they come in, the mean last."""
    cells = []
    for number, row in enumerate(changes):
        pair = f"{row.model} - {row.other}"
        before = changes[number - 1] if number else None
        first = before is None or (before.model, before.other, before.rate) != (row.model, row.other, row.rate)
        gap = f"{row.difference:+.1f}"
        if not math.isnan(row.low):
            gap += f" [{row.low:+.1f}, {row.high:+.1f}]"
        cells.append([pair if first else "", row.rate, row.language, gap, _p(row.p_value), str(row.n), row.verdict])
    header = ["models", "rate", "language", "difference", "p", "n", "verdict"]
    return Report(title, header, cells, [note], left=3)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
