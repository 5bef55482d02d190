"""A leaderboard for the terminal, as Markdown, as CSV and as LaTeX."""

import csv
import io
import math
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosspref.reports.table import inert, printable
from crosspref.suites.leaderboard import NOREG, Leaderboard, Line, Number

DASH = "\N{EN DASH}"
"""Stands for a number that is not known."""

NAMES = 30
"""Columns of the screen that names get; longer ones are broken."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line's end it would begin an option
    "`": "{`}",  # two of them would be a quotation mark
    "\N{REPLACEMENT CHARACTER}": "?",
    DASH: "--",
    **{character: f"\\{character}" for character in "{}$&#_%"},
}
_MARKDOWN = "\\`*_{}[]<>#|~!"


def terminal(board: Leaderboard, *, intervals: bool = False, width: int = 0) -> str:
    """Return the table for a screen of ``width`` columns, which it runs over rather than be cut, and the notes."""
    table = Table(
        title=board.table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("model", overflow="fold")
    for language, name in _heads(board):
        table.add_column(f"{language}\n{name}", justify="right", no_wrap=True)
    for line, below in zip(board.lines, [*board.lines[1:], None], strict=True):
        cells = [printable(_name(line)), *_cells(board, line, intervals=intervals, between="\n")]
        last = below is not None and below.quoted != line.quoted
        table.add_row(*map(Text, cells), end_section=last)  # as text: no cell is taken for markup
    longest = max(cell_len(_name(line)) for line in board.lines)
    needed = Console(width=10_000).measure(table).maximum - max(0, longest - NAMES)
    text = io.StringIO()
    Console(file=text, width=max(width, needed)).print(table)
    for note in board.notes:
        Console(file=text, width=max(width, 80)).print(printable(note), markup=False, highlight=False)
    return "\n".join(row.rstrip() for row in text.getvalue().split("\n"))


def markdown(board: Leaderboard, *, intervals: bool = False) -> str:
    """Return the table as Markdown, with the notes below it."""
    rows = [
        ["model", *(f"{language} {name}" for language, name in _heads(board))],
        ["---", *["---:"] * len(_heads(board))],
        *(
            [escape_markdown(_name(line)), *map(escape_markdown, _cells(board, line, intervals=intervals))]
            for line in board.lines
        ),
    ]
    notes = [escape_markdown(note) for note in board.notes]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n\n" + "\n\n".join(notes) + "\n"


def latex(board: Leaderboard, *, intervals: bool = False) -> str:
    """Return the table as LaTeX, for booktabs, with the notes below it."""
    each = len(board.table.columns)
    over = " & ".join(rf"\multicolumn{{{each}}}{{c}}{{{escape_latex(language)}}}" for language in board.languages)
    lines = [
        "% \\usepackage{booktabs}",
        rf"\begin{{tabular}}{{l*{{{each * len(board.languages)}}}{{r}}}}",
        r"\toprule",
        rf" & {over} \\",
        " & ".join(["Model", *(name for _, name in _heads(board))]) + r" \\",
        r"\midrule",
    ]
    for number, line in enumerate(board.lines):
        if number and line.quoted and not board.lines[number - 1].quoted:
            lines.append(r"\midrule")
        mark = rf"\textsuperscript{{{line.mark}}}" if line.mark else ""
        cells = [escape_latex(cell) for cell in _cells(board, line, intervals=intervals)]
        lines.append(" & ".join([escape_latex(line.model) + mark, *cells]) + r" \\")
    notes = [f"{escape_latex(note)}\\par" for note in board.notes]
    text = "\n".join([*lines, r"\bottomrule", r"\end{tabular}", "", r"{\par\footnotesize", *notes, "}"]) + "\n"
    if not text.isascii():
        text = f"% Not all is ASCII: compile with XeLaTeX or LuaLaTeX, and a font that has the letters.\n{text}"
    return text


def comma_separated(board: Leaderboard) -> str:
    """Return the table as CSV, unrounded: how each row was judged is in columns, and what is not known is empty."""
    ways = list(dict.fromkeys(name for line in board.lines for name in line.judged))
    heads = [(language, column) for language in board.languages for column in board.table.columns]
    ends: dict[str, tuple[str, ...]] = dict.fromkeys(board.table.columns, ("", "_low", "_high"))
    ends |= {"lc": ("", "_low", "_high", "_kind"), "length": ("",)}
    names = [f"{language}_{column}{end}" for language, column in heads for end in ends[column]]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # for names with a carriage return
    table.writerow(["model", "source", "quoted", *ways, *names])
    for line in board.lines:
        cells: list[object] = []
        for language, column in heads:
            one = line.numbers.get((language, column), Number(math.nan))
            values = (one.value, one.low, one.high, one.kind)[: len(ends[column])]
            cells += ["" if value != value else value for value in values]
        about = [inert(line.judged.get(name, "")) for name in ways]
        table.writerow([inert(line.model), inert(line.source), str(line.quoted).lower(), *about, *cells])
    return text.getvalue()


ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex"}
"""The formats that a file's ending stands for."""


def escape_latex(text: str) -> str:
    """Return a text as LaTeX that shows it."""
    plain = printable(text)
    shown = "{}" if plain.startswith("*") else ""  # it would be taken for a part of the row's end before it
    for before, character in zip(f" {plain}", plain, strict=False):
        shown += "{}" if before == character == "-" else ""  # two of them would be a dash
        shown += _LATEX.get(character, character)
    return shown


def escape_markdown(text: str) -> str:
    """Return a text as Markdown that shows it, in a table's cell, too."""
    return "".join(f"\\{character}" if character in _MARKDOWN else character for character in printable(text))


def _heads(board: Leaderboard) -> list[tuple[str, str]]:
    return [(language, name) for language in board.languages for name in board.table.columns.values()]


def _name(line: Line) -> str:
    return f"{line.model} [{line.mark}]" if line.mark else line.model


def _cells(board: Leaderboard, line: Line, *, intervals: bool, between: str = " ") -> Sequence[str]:
    found = []
    for language in board.languages:
        for column in board.table.columns:
            one = line.numbers.get((language, column), Number(math.nan))
            if math.isnan(one.value):
                found.append(DASH)
                continue
            cell = f"{one.value:.0f}" if column == "length" else f"{one.value:.2f}"
            cell += "*" if one.kind == NOREG else ""
            if intervals and not math.isnan(one.low):
                digits = 2 if column == "overall" else 1  # grades are from 1 to 10, rates from 0 to 100
                cell += f"{between}[{one.low:.{digits}f}, {one.high:.{digits}f}]"
            found.append(cell)
    return found
