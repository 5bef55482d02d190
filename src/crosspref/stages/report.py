"""Reporting: one table per language of what was measured, for the screen and as Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from crosspref.languages import LANGUAGES
from crosspref.records import Measure
from crosspref.stages.evaluate import MEASURES, WIN_RATE

TITLE = "Held-out responses, per language and policy"
COLUMNS = {
    "right_language": "right\nlanguage",
    "repetition": "repeats",
    "truncated": "cut off",
    "characters": "length",
    WIN_RATE: "win rate\nover pi_0*",
}
INTERVALS = (
    "Ranges are 95% bootstrap intervals over the held-out prompts. They do not cover the choice of training prompts or "
    "of the seed."
)


@dataclass(frozen=True, slots=True)
class Report:
    """The table's cells, and what is said below it."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]

    def table(self) -> Table:
        """Return the table for the screen."""
        table = Table(title=TITLE, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)  # fits 80 columns
        for index, name in enumerate(self.header):
            table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
        for number, row in enumerate(self.rows):
            last = number + 1 == len(self.rows) or self.rows[number + 1][0] != ""
            table.add_row(*map(Text, row), end_section=last)  # as text: no cell is taken for markup
        return table

    def markdown(self) -> str:
        """Return the report as Markdown."""
        header = [name.replace("\n", " ") for name in self.header]
        lines = [header, ["---"] * 2 + ["---:"] * (len(self.header) - 2), *self.rows]
        escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
        table = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
        notes = "\n\n".join(note.replace("*", r"\*") for note in self.notes)
        return f"# {TITLE}\n\n{table}\n\n{notes}\n"


def make_report(measures: Sequence[Measure]) -> Report:
    """Return the report of an evaluation of pi_0 and later policies; languages stand in the order they come in."""
    found = {(row.language, row.iteration, row.measure): row for row in measures}
    languages = list(dict.fromkeys(row.language for row in measures))
    iterations = sorted({row.iteration for row in measures})
    rows = []
    for language in languages:
        for iteration in iterations:
            name = f"{language} {LANGUAGES.get(language, '')}".strip() if iteration == iterations[0] else ""
            cells = [_cell(found.get((language, iteration, measure)), measure) for measure in COLUMNS]
            rows.append([name, f"pi_{iteration}", *cells])
    prompts = sorted({row.prompts for row in measures})
    notes = [
        f"* {MEASURES[WIN_RATE]}. 50% is no difference.",
        f"right language: {MEASURES['right_language']}. repeats: mean {MEASURES['repetition']}. "
        f"cut off: {MEASURES['truncated']}. length: {MEASURES['characters']}.",
        f"{' to '.join(str(count) for count in dict.fromkeys([prompts[0], prompts[-1]]))} held-out prompts per "
        f"language. {INTERVALS}",
    ]
    return Report(["language", "policy", *COLUMNS.values()], rows, notes)


def _cell(row: Measure | None, measure: str) -> str:
    if row is None:
        return ""
    if measure == "characters":
        return f"{row.mean:.0f}"
    value = f"{row.mean:.0%}"
    if measure == WIN_RATE and not math.isnan(row.low):
        return f"{value} [{row.low:.0%}, {row.high:.0%}]"
    return value
