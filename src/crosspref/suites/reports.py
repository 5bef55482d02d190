"""What the reports of suites share: how languages are ordered, notes about judge and input, and what differs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from crosspref.languages import LANGUAGES
from crosspref.reports.table import Report
from crosspref.suites.results import MEAN, ModelChange

INTERVALS = (
    "Ranges are 95% bootstrap intervals over the items. They do not cover the judge, whose verdicts may be biased or "
    "come out otherwise another time, nor the sampling of the answers, nor the seed of a training."
)
CHANGES = (
    "Differences in points, over the items that both were judged on, with 95% bootstrap intervals that resample items "
    "jointly for both models and all languages. p: two-sided, for {flipped} of a language by sign flips and else "
    "from the resamples, adjusted over languages by Holm. better and worse stand only where the "
    "interval and p (at most 0.05) say so."
)

T = TypeVar("T")


def by_language(rows: Sequence[T]) -> Iterator[tuple[str, T]]:
    """Yield each row with its language's name, which stands at its first row alone.

    Languages come in the order of the rows, within each the models; the mean comes last.
    """
    languages = [*dict.fromkeys(language for row in rows if (language := _language(row)) != MEAN), MEAN]
    before = ""
    for row in sorted(rows, key=lambda row: languages.index(_language(row))):
        language = _language(row)
        yield f"{language} {LANGUAGES.get(language, '')}".strip() if language != before else "", row
        before = language


def _language(row: Any) -> str:
    return str(row.language)


def with_range(value: float, low: float, high: float, digits: int = 1) -> str:
    """Return a figure and its interval, as far as there are any."""
    if math.isnan(value):
        return ""
    return f"{value:.{digits}f}" + ("" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def about_notes(about: Mapping[str, Any]) -> list[str]:
    """Return who judged how and when, and what could not be used."""
    notes, judge = [], about["judge"]
    if "decoding" in judge:
        decodings = "; ".join(", ".join(f"{k} {v}" for k, v in one.items()) for one in judge["decoding"])
        names = [name for name in judge["answered_as"] if name != judge["judge"]]
        answered = f" (which answered as {', '.join(names)})" if names else ""
        dates = " to ".join(dict.fromkeys(judge["dates"]))
        notes.append(f"Judge: {judge['judge']}{answered}, {decodings}, {dates}; {judge['failed']} verdicts failed.")
    for where, failures in about["failures"].items():
        notes.append(f"{where}: " + ", ".join(f"{count} {reason}" for reason, count in failures.items()))
    for language, counts in about["problems"].items():
        notes.append(f"{language}: " + ", ".join(f"{count} {reason}" for reason, count in counts.items() if count))
    return notes


def make_changes_report(title: str, changes: Sequence[ModelChange], note: str, digits: int = 1) -> Report:
    """Return what differs between models: languages in the order they come in, the mean last."""
    cells = []
    for number, row in enumerate(changes):
        pair = f"{row.model} - {row.other}"
        before = changes[number - 1] if number else None
        first = before is None or (before.model, before.other, before.rate) != (row.model, row.other, row.rate)
        change, name = row.change, pair if first else ""
        gap = change.text(f"+.{digits}f")
        cells.append([name, row.rate, row.language, gap, _p(change.p_value), str(change.n), change.verdict])
    header = ["models", "rate", "language", "difference", "p", "n", "verdict"]
    return Report(title, header, cells, [note], left=3)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
