"""What the suites share of their results: differences between models, tables and their notes, and files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from crosspref.data.items import Problems
from crosspref.escape import json_text
from crosspref.maths.estimate import Change
from crosspref.maths.resampling import Draws, mean_over, percentile_interval
from crosspref.maths.statistics import holm
from crosspref.reports.table import Report, as_json, columns, without_repeats, write_table
from crosspref.run.store import write_text
from crosspref.suites.work import Evaluation

MEAN = "mean"
"""The "language" of the unweighted mean over languages."""

INTERVALS = (
    "Ranges are 95% bootstrap intervals over the items. They do not cover the judge, whose verdicts may be biased or "
    "come out otherwise another time, nor the sampling of the answers, nor the seed of a training."
)
AT_THE_ENDS = "A rate of 0 or 100 has Wilson's interval, since resamples of equal outcomes are all equal."
CHANGES = (
    "Differences in points, over the items that both were judged on, with 95% bootstrap intervals that resample items "
    "jointly for both models and all languages. p: two-sided, for {flipped} of a language by sign flips and else "
    "from the resamples, adjusted over languages by Holm. better and worse stand only where the "
    "interval and p (at most 0.05) say so."
)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelChange:
    """By how many points a rate of ``model`` differs from that of ``other``, on the items known of both.

    Its p-value is two-sided, adjusted over languages by Holm. ``rate`` is what was measured: WR, LC, the scores of turn
    1, of turn 2, or overall, or a task and its measure, such as ``arc acc_norm``.
    """

    model: str
    other: str
    language: str
    rate: str
    change: Change = field(metadata=columns("difference", "low", "high", "p_value", "verdict", "n"))


def pairs_of(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return which models are compared: each with the one before, and each later one with pi_0."""
    pairs = list(zip(models[1:], models, strict=False))
    later = models[models.index("pi_0") + 2 :] if "pi_0" in models else []
    return [*pairs, *((model, "pi_0") for model in later)]


def changes_of(
    model: str, other: str, rate: str, gaps: Mapping[str, Draws], p_values: Sequence[float], *, with_mean: bool = True
) -> list[ModelChange]:
    """Return by how much ``rate`` of ``model`` exceeds that of ``other``.

    ``gaps`` are the differences in each language, drawn jointly. ``p_values``, one per language and two-sided, are
    adjusted by Holm. ``with_mean`` says whether the mean over languages follows, where there are several.
    """
    adjusted = [float(p) for p in holm(p_values)] if p_values else []
    tested = [(language, gap, p) for (language, gap), p in zip(gaps.items(), adjusted, strict=True)]
    if with_mean and len(gaps) > 1:
        mean = mean_over(gaps.values())
        # Languages may share their items, so count no more of them than the largest language has.
        tested.append((MEAN, mean, max(two_sided(mean), _least(max(gap.n for gap in gaps.values())))))
    return [
        ModelChange(model, other, language, rate, Change.of(percentile_interval(gap), p_value))
        for language, gap, p_value in tested
    ]


def two_sided(draws: Draws) -> float:
    """Return the bootstrap's two-sided p-value of no difference; 1 if too many resamples have no value.

    It is never below the smallest p-value that sign flips of as many items can give.
    """
    known = draws.values[np.isfinite(draws.values)]
    if not known.size or known.size < 0.99 * draws.values.size:
        return 1.0
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, max(2 * (tail + 1) / (known.size + 1), _least(draws.n))))


def _least(items: int) -> float:
    """Return the smallest two-sided p-value that sign flips of this many items can give."""
    return 2.0 ** (1 - min(items, 1000))


def write_results(
    path: Path, kind: type, rows: Sequence[Any], changes: Sequence[Any], about: Mapping[str, Any],
    *, change_kind: type = ModelChange,
) -> None:  # fmt: skip
    """Write the rows to ``path`` and the changes beside them, as Parquet and CSV, and everything as JSON."""
    write_table(path, rows, kind)
    write_table(path.with_name("changes"), changes, change_kind)
    content = {**about, "rows": [as_json(row) for row in rows], "changes": [as_json(row) for row in changes]}
    write_text(path.with_name(f"{path.name}.json"), json_text(content, indent=1) + "\n")


def by_language(rows: Sequence[T]) -> list[T]:
    """Return the rows ordered by language, in the order of first appearance, with the mean last."""
    language = attrgetter("language")
    order = [*dict.fromkeys(language(row) for row in rows if language(row) != MEAN), MEAN]
    return sorted(rows, key=lambda row: order.index(language(row)))


def describe(
    work: Evaluation, suite: str, prompts: Mapping[str, Any], failures: Mapping[str, Mapping[str, int]],
    problems: Mapping[str, Problems],
) -> dict[str, Any]:  # fmt: skip
    """Return what the results' JSON says of judge, prompts, settings, and what could not be used."""
    settings = work.settings
    return {
        "suite": suite,
        "judge": work.judge.describe() if work.annotations is None else {"annotations": str(work.annotations)},
        **prompts,
        "answers": settings.answers.model_dump(mode="json") if work.given is None else {"files": work.sources},
        "settings": getattr(settings, suite).model_dump(mode="json"),
        "seed": settings.seed,
        "resamples": settings.resamples,
        "failures": {where: dict(counts) for where, counts in failures.items() if counts},
        "problems": {language: dict(one) for language, one in problems.items() if str(one)},
    }


def answered_as(judge: Mapping[str, Any]) -> str:
    """Return the other names under which a judge answered."""
    return ", ".join(name for name in judge.get("answered_as", []) if name != judge.get("judge"))


def decodings(judge: Mapping[str, Any]) -> str:
    """Return a judge's decoding settings as text."""
    return "; ".join(", ".join(f"{k} {v}" for k, v in one.items()) for one in judge.get("decoding", []))


def how_judged(name: str, between: str, judge: Mapping[str, Any]) -> str:
    """Return under what name, how and when a judge answered; ``between`` separates its names from the rest."""
    answered = f" (which answered as {answered_as(judge)})" if answered_as(judge) else ""
    dates = " to ".join(dict.fromkeys(judge["dates"]))
    return f"{name}{answered}{between}{decodings(judge)}, {dates}; {judge['failed']} verdicts failed"


def about_notes(about: Mapping[str, Any]) -> list[str]:
    """Return notes on who judged, how and when, and on what could not be used."""
    notes, judge = [], about["judge"]
    if "decoding" in judge:
        notes.append(f"Judge: {how_judged(judge['judge'], ', ', judge)}.")
    notes += answers_notes(about["answers"].get("files", {}))
    for by_place in (about["failures"], about["problems"]):
        for where, counts in by_place.items():
            notes.append(f"{where}: " + ", ".join(f"{count} {reason}" for reason, count in counts.items() if count))
    return notes


def answers_notes(sources: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the note on the files that models' answers were read from; none where models answered."""
    return [f"The answers of {model} were not sampled here: {', '.join(files)}." for model, files in sources.items()]


def changes_reports(title: str, changes: Sequence[ModelChange], note: str, digits: int = 1) -> list[Report]:
    """Return the table of what differs between models; none if there is nothing to compare."""
    if not changes:
        return []
    cells = []
    for row in changes:
        change = row.change
        p = "<0.001" if change.p_value < 0.001 else f"{change.p_value:.3f}"
        gap = change.text(f"+.{digits}f")
        cells.append([f"{row.model} - {row.other}", row.rate, row.language, gap, p, str(change.n), change.verdict])
    header = ["models", "rate", "language", "difference", "p", "n", "verdict"]
    return [Report(title, header, without_repeats(cells, 2), [note], left=3)]
