"""The tables of MT-Bench for the screen and as Markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crosspref.reports.table import Report
from crosspref.suites.reports import INTERVALS, about_notes, by_language, with_range
from crosspref.suites.results import Scores

MEANT = (
    "Scores are means of a judge's grades, from 1 to 10: of the answers to the first turn, to the second, and of both "
    "together (overall). n: grades behind overall; left out: turns without a grade that can be read, without an "
    "answer, or without the reference answer that they need. The mean is the plain mean of languages."
)
RESAMPLED = "A question is drawn with both of its turns, so that n grades count as no more than there are questions."
FEW = "Overall scores by category, of ten questions each where all were judged; the tables have their intervals."


def make_report(rows: Sequence[Scores], about: Mapping[str, Any]) -> Report:
    """Return the scores of all categories together: languages in the order they come in, within each the models."""
    whole = [row for row in rows if row.category == "all"]
    cells = []
    for name, row in by_language(whole):
        graded = row.n_1 + row.n_2
        cells.append([
            name,
            row.model,
            with_range(row.turn_1, row.turn_1_low, row.turn_1_high, 2),
            with_range(row.turn_2, row.turn_2_low, row.turn_2_high, 2),
            with_range(row.overall, row.overall_low, row.overall_high, 2),
            str(graded),
            str(2 * row.questions - graded),
        ])  # fmt: skip
    header = ["language", "model", "turn 1", "turn 2", "overall", "n", "left\nout"]
    judges = ", ".join(dict.fromkeys(row.judge for row in whole if row.judge))
    notes = [MEANT, f"{INTERVALS} {RESAMPLED}", *about_notes(about)]
    return Report(f"MT-Bench: judged by {judges}", header, cells, notes)


def make_category_report(rows: Sequence[Scores]) -> Report:
    """Return the overall score of each category."""
    categories = list(dict.fromkeys(row.category for row in rows if row.category != "all"))
    found = {
        (row.language, row.model, row.category): f"{row.overall:.2f}" for row in rows if not math.isnan(row.overall)
    }
    cells = [
        [name, row.model, *(found.get((row.language, row.model, category), "") for category in categories)]
        for name, row in by_language([row for row in rows if row.category == "all"])
    ]
    return Report("MT-Bench by category", ["language", "model", *categories], cells, [FEW])
