"""One table for every evaluation: on the screen, as Markdown, LaTeX, CSV and Parquet.

People read a `Report`: cells that are texts already, and notes below them. Programs read rows of a dataclass whose
fields are texts, numbers, and `Estimate` or `Change` objects; `flat` spreads these over columns:

    @dataclass(frozen=True, slots=True)
    class TaskScore:
        model: str
        score: Estimate = field(metadata=columns("score", "low", "high", "n"))
        length: Estimate  # without metadata: the columns length, length_low and length_high

`write_table` writes such rows as Parquet and CSV. `csv_text` makes a CSV file of anything else.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from crosspref.errors import FileError
from crosspref.escape import escape_csv, escape_latex, escape_markdown, escape_paragraph, printable, printable_lines
from crosspref.languages import is_language, language_name
from crosspref.maths.estimate import Estimate
from crosspref.run.store import Unit, write_text
from crosspref.run.terminal import Terminal, say

FOLDED = 30
"""Width of the first column's text, in characters, on a screen that is too narrow for the table."""

_NUMBER = re.compile(r"[-+]?\d*+\.?\d*(e[-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Report:
    """A table of texts, and what is said below it. No text is markup, wherever it is shown or written.

    The first ``left`` columns are text, the others numbers. Cells and headings may have several lines. In LaTeX,
    neighbouring headings with the same first line share one heading above them. ``marks`` holds a footnote mark for
    each row. A line is drawn above the rows whose numbers are in ``rules``, or, if that is None, above each row whose
    first cell is not empty.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    left: int = 2
    marks: Sequence[str] = ()
    rules: Sequence[int] | None = None

    def table(self) -> Table:
        """Return the table for the screen; on a narrow one only the text of the first column is wrapped."""
        table = Table(
            title=Text(printable(self.title)),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for index, name in enumerate(self.header):
            justify: Literal["left", "right"] = "left" if index < self.left else "right"
            heading = Text(printable_lines(name))  # as text, here and below: rich takes nothing in it for markup
            table.add_column(heading, justify=justify, no_wrap=index > 0, overflow="fold")
        rows = self._marked()
        rules = {number for number, row in enumerate(rows) if row[0]} if self.rules is None else set(self.rules)
        for number, row in enumerate(rows, start=1):
            last = number == len(rows) or number in rules
            table.add_row(*(Text(printable_lines(cell)) for cell in row), end_section=last)
        return table

    @property
    def width(self) -> int:
        """The columns of a screen that the table needs so that nothing is cut."""
        longest = max((cell_len(line) for row in self._marked() for line in row[0].split("\n")), default=0)
        measured = Terminal(width=10_000, height=25).measure(self.table())
        return measured.maximum - max(0, longest - FOLDED)

    def show(self, terminal: Terminal) -> None:
        """Print the table and the notes; nothing is cut, even if the table is wider than the screen."""
        # Without a height, rich takes any width for 80 where the terminal is called dumb.
        wide = Terminal(file=terminal.file, width=max(terminal.width, self.width), height=terminal.height)
        wide.print(self.table())
        for note in self.notes:
            terminal.print(Text(printable(note)))

    def screen(self, width: int) -> str:
        """Return what ``show`` prints on a screen with ``width`` columns."""
        text = io.StringIO()
        self.show(Terminal(file=text, width=width))
        return "\n".join(line.rstrip() for line in text.getvalue().split("\n"))

    def markdown(self) -> str:
        """Return the report as Markdown, with a heading if it has a title."""
        rule = ["---"] * self.left + ["---:"] * (len(self.header) - self.left)
        header, *rows = [
            [escape_markdown(cell.replace("\n", " ")) for cell in row] for row in [self.header, *self._marked()]
        ]
        table = "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])
        heading = f"# {escape_markdown(self.title)}\n\n" if self.title else ""
        return heading + f"{table}\n\n" + "\n\n".join(map(escape_paragraph, self.notes)) + "\n"

    def latex(self) -> str:
        """Return the table as LaTeX, for booktabs, with the notes below it."""
        heads = [name.split("\n", 1) for name in self.header]
        above = []
        for name, group in groupby(heads, lambda head: head[0] if len(head) > 1 else ""):
            width = len(list(group))
            above += [rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(name)}}}"] if name else [""] * width
        below = [escape_latex(head[-1]) for head in heads]
        lines = [
            "% \\usepackage{booktabs}",
            rf"\begin{{tabular}}{{{'l' * self.left}*{{{len(heads) - self.left}}}{{r}}}}",
            r"\toprule",
            *([" & ".join(above) + r" \\"] if any(above) else []),
            " & ".join([below[0].capitalize(), *below[1:]]) + r" \\",
            r"\midrule",
        ]
        for number, row in enumerate(self.rows):
            if number and number in (self.rules or ()):
                lines.append(r"\midrule")
            mark = self.marks[number] if self.marks else ""
            first, *rest = (escape_latex(cell.replace("\n", " ")) for cell in row)
            lines.append(" & ".join([first + (rf"\textsuperscript{{{mark}}}" if mark else ""), *rest]) + r" \\")
        notes = [f"{escape_latex(note)}\\par" for note in self.notes]
        text = "\n".join([*lines, r"\bottomrule", r"\end{tabular}", "", r"{\par\footnotesize", *notes, "}"]) + "\n"
        if not text.isascii():
            text = f"% Not all is ASCII: compile with XeLaTeX or LuaLaTeX, and a font that has the letters.\n{text}"
        return text

    def _marked(self) -> list[list[str]]:
        """Return the rows with their marks after the first cell."""
        marks = [f" [{mark}]" if mark else "" for mark in self.marks or [""] * len(self.rows)]
        return [[first + mark, *rest] for (first, *rest), mark in zip(self.rows, marks, strict=True)]


def print_reports(reports: Iterable[Report]) -> None:
    """Print tables and notes on the screen."""
    for report in reports:
        report.show(Terminal())


def write_if_possible(path: Path, reports: Iterable[Report]) -> bool:
    """Write reports as Markdown and tell whether that worked; if not, say so: they may be about somebody else's run."""
    try:
        write_text(path, "\n".join(report.markdown() for report in reports))
    except FileError as error:
        say(f"note: {error}", Terminal(stderr=True))
        return False
    return True


def label(language: str) -> str:
    """Return a language's tag and its name, as tables show them."""
    return f"{language} {language_name(language)}" if is_language(language) else language


def without_repeats(rows: Sequence[Sequence[str]], same: int = 1) -> list[list[str]]:
    """Return the rows with an empty first cell where the first ``same`` cells repeat those of the row above."""
    repeated = [False, *(above[:same] == row[:same] for above, row in pairwise(rows))]
    return [["" if empty else row[0], *row[1:]] for row, empty in zip(rows, repeated, strict=False)]


def csv_text(header: Sequence[str], rows: Iterable[Iterable[object]], *, quoted: bool = True) -> str:
    """Return rows as CSV for people: None is an empty cell, and a spreadsheet takes no text for a formula.

    Programs read Parquet, where texts stay as they are. Pass ``quoted`` as False if all texts are our own. Then only
    texts that need quotes get them, though before Python 3.13 a text with a lone carriage return gets none, and "-" and
    numbers as text are written as they are.
    """

    def written(cell: object) -> object:
        if not isinstance(cell, str) or (not quoted and _NUMBER.fullmatch(cell)):
            return cell
        return escape_csv(cell)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if quoted else csv.QUOTE_MINIMAL)
    writer.writerows(map(written, row) for row in [header, *rows])
    return text.getvalue()


def columns(value: str, *others: str) -> Mapping[str, str]:
    """Return the metadata of a field with an estimate: the name of its value's column, and its other columns."""
    return {"value": value, **{name: name for name in others}}


def column_types(kind: type) -> dict[str, type]:
    """Return the columns of a kind of row, with the type of each: str, int or float."""
    return {column: of for part in fields(kind) for column, _, of in _spread(part)}


def flat(row: Any) -> dict[str, Any]:
    """Return a row's values by column."""
    cells = {}
    for part in fields(row):
        value = getattr(row, part.name)
        for column, attribute, _ in _spread(part):
            cells[column] = getattr(value, attribute) if attribute else value
    return cells


def as_json(row: Any) -> dict[str, Any]:
    """Return a row's values by column, with None for nan."""
    return {name: None if value != value else value for name, value in flat(row).items()}


def _spread(part: "Field[Any]") -> list[tuple[str, str, Any]]:
    """Return each column of a field: its name, the attribute of the estimate ("" for the value itself), its type."""
    if not (isinstance(part.type, type) and issubclass(part.type, Estimate)):
        return [(part.name, "", part.type)]
    types = {attribute.name: attribute.type for attribute in fields(part.type)}
    name = part.name
    names = part.metadata or {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
    return [(column, attribute, types[attribute]) for attribute, column in names.items()]


_ARROW: dict[type, pa.DataType] = {str: pa.string(), int: pa.int32(), float: pa.float64()}


def write_table(path: Path, rows: Sequence[Any], kind: type) -> None:
    """Write rows of one kind as PATH.parquet and PATH.csv; in CSV nan is an empty cell."""
    types = column_types(kind)
    schema = pa.schema([(name, _ARROW[of]) for name, of in types.items()])
    table = pa.Table.from_pylist([flat(row) for row in rows], schema=schema)
    Unit(path.with_name(f"{path.name}.parquet")).write_table(table)
    text = csv_text(list(types), (as_json(row).values() for row in rows))
    write_text(path.with_name(f"{path.name}.csv"), text)
