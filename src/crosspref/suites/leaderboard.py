"""One table of models by language, as Tables 2 and 3 of the paper, from the results of any number of runs."""

import csv
import hashlib
import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from crosspref.data.rows import parse_json
from crosspref.errors import DataError, RunError
from crosspref.escape import one_line, printable
from crosspref.languages import is_language
from crosspref.maths.estimate import UNKNOWN, Estimate
from crosspref.paths import existing, read_text
from crosspref.reports.comparison import run_names
from crosspref.reports.table import Report, csv_text
from crosspref.run.layout import RunDirectory
from crosspref.suites.mtbench.results import ALL
from crosspref.suites.results import MEAN, answered_as, decodings

NOREG = "LC-noreg"

DASH = "\N{EN DASH}"
"""The cell of an unknown number."""


@dataclass(frozen=True, slots=True)
class SuiteTable:
    """How a suite's results are shown: which ``columns`` of ``file`` each language has, and their names.

    Lines are comparable only if the columns ``alike`` of their results are the same. ``paper`` is the file with the
    paper's table, and ``quoted`` is the note on it.
    """

    title: str
    file: str
    columns: Mapping[str, str]
    alike: Sequence[str]
    meaning: str
    paper: str
    quoted: str


TABLES = {
    "xalpaca": SuiteTable(
        "X-AlpacaEval",
        "xalpaca/win_rates.json",
        {"lc": "LC", "wr": "WR", "length": "length"},
        ("baseline", "items"),
        "LC and WR: length-controlled and standard win rate over the baseline, in percent; length: mean characters of "
        "the answers.",
        "paper_table_2.csv",
        "quoted: from Table 2 of the paper, whose judge is gpt-4-1106-preview with a prompt of its own and whose "
        "baseline are answers of gpt-4-turbo-2024-04-09 in each language; its lengths are not published. Such rows "
        "give an idea, and no difference from the others can be read off.",
    ),
    "mtbench": SuiteTable(
        "MT-Bench",
        "mtbench/scores.json",
        {"overall": "score"},
        ("questions",),
        "score: mean grade of both turns, from 1 to 10.",
        "paper_table_3.csv",
        "quoted: from Table 3 of the paper, whose judge is gpt-4o-2024-08-06 with a prompt and references of its own. "
        "Such rows give an idea, and no difference from the others can be read off.",
    ),
}
"""The tables by the suite whose results they show."""


@dataclass(frozen=True, slots=True)
class Line:
    """One model: its numbers by language and column, where they come from, and how it was judged.

    ``kinds`` says whether a language's LC is LC or LC-noreg. ``mark`` is the letter of the footnote on how the model
    was judged; it is empty if all models were judged alike.
    """

    model: str
    source: str
    numbers: Mapping[tuple[str, str], Estimate]
    kinds: Mapping[str, str]
    judged: Mapping[str, str]
    quoted: bool = False
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """The lines of a table, its languages (including the mean), and the notes below it."""

    table: SuiteTable
    languages: Sequence[str]
    lines: Sequence[Line]
    notes: Sequence[str]

    @property
    def _places(self) -> list[tuple[str, str]]:
        return [(language, column) for language in self.languages for column in self.table.columns]

    def report(self, *, intervals: bool = False) -> Report:
        """Return the table, rounded, with a rule above the quoted rows."""
        header = ["model", *(f"{language}\n{self.table.columns[column]}" for language, column in self._places)]
        rows = [
            [printable(line.model), *(_cell(line, *place, intervals=intervals) for place in self._places)]
            for line in self.lines
        ]
        quoted = [number for number, line in enumerate(self.lines) if line.quoted][:1]
        marks = [line.mark for line in self.lines]
        return Report(self.table.title, header, rows, self.notes, 1, marks, quoted)

    def csv(self) -> str:
        """Return the unrounded table as CSV, with columns for how each row was judged; unknown numbers are empty."""
        ways = list(dict.fromkeys(name for line in self.lines for name in line.judged))
        ends: dict[str, tuple[str, ...]] = dict.fromkeys(self.table.columns, ("", "_low", "_high"))
        ends |= {"lc": ("", "_low", "_high", "_kind"), "length": ("",)}
        names = [f"{language}_{column}{end}" for language, column in self._places for end in ends[column]]
        rows: list[list[object]] = []
        for line in self.lines:
            ways_of_line = [line.judged.get(name, "") for name in ways]
            rows.append([line.model, line.source, str(line.quoted).lower(), *ways_of_line])
            for language, column in self._places:
                one = line.numbers.get((language, column), UNKNOWN)
                cells = (one.value, one.low, one.high, line.kinds.get(language, ""))[: len(ends[column])]
                rows[-1] += [None if cell != cell else cell for cell in cells]
        return csv_text(["model", "source", "quoted", *ways, *names], rows)


def _cell(line: Line, language: str, column: str, *, intervals: bool) -> str:
    one = line.numbers.get((language, column), UNKNOWN)
    if math.isnan(one.value):
        return DASH
    cell = f"{one.value:.0f}" if column == "length" else f"{one.value:.2f}"
    cell += "*" if column == "lc" and line.kinds.get(language) == NOREG else ""
    if intervals and not math.isnan(one.low):
        digits = 2 if column == "overall" else 1  # grades are from 1 to 10, rates from 0 to 100
        cell += f"\n[{one.low:.{digits}f}, {one.high:.{digits}f}]"
    return cell


def leaderboard(places: Sequence[str | Path], suite: str = "xalpaca", *, quoted: bool = False) -> Leaderboard:
    """Return one table of what a suite measured in runs and folders of results.

    Args:
        places: run directories, or folders that ``crosspref evaluate --out`` wrote.
        suite: which suite, one of ``TABLES``.
        quoted: whether the paper's rows follow, marked as quoted.

    Raises:
        RunError: a place is not there or given twice, or none has results that can be read.
    """
    paths: list[Path] = []
    for given in places:
        folder = existing(given)
        if folder is None or not folder.is_dir():
            raise RunError(f"{given} is no directory. Name runs, or folders that crosspref evaluate wrote.")
        if folder.resolve() in paths:
            raise RunError(f"{given} is given twice. Name each place once.")
        paths.append(folder.resolve())
    table, lines, empty = TABLES[suite], list[Line](), []
    for place, path, name in zip(places, paths, run_names(paths), strict=True):
        run = RunDirectory(path)
        file = (run.suites if run.recipe.is_file() else path) / table.file
        if file.is_file():
            try:
                lines += _read(table, file, name, of_run=run.recipe.is_file() and len(paths) > 1)
            except DataError as error:
                empty.append(one_line(error))
        else:
            empty.append(f"{place} has no results of the suite {suite}.")
    if not lines:
        raise RunError("\n".join([*empty, f"Measure a run first: crosspref evaluate RUN --suite {suite}"]))
    names = [line.model for line in lines]
    lines = [
        replace(line, model=f"{line.model} ({line.source})") if names.count(line.model) > 1 else line for line in lines
    ]
    lines, notes = _marked(lines)
    if quoted:
        lines += paper_lines(table)
        notes.append(table.quoted)
    languages = list(dict.fromkeys(language for line in lines for language, _ in line.numbers if language != MEAN))
    if any(NOREG in line.kinds.values() for line in lines):
        notes.insert(0, f"* {NOREG}: fitted without alpaca_eval's gamed rows; not comparable with other LC.")
    return Leaderboard(table, [*languages, MEAN], lines, [*_meaning(table, lines), *notes, *empty])


def _meaning(table: SuiteTable, lines: Sequence[Line]) -> list[str]:
    """Return what the columns mean, and whether the means of the lines are over the same languages."""
    notes = [f"{table.meaning} {MEAN}: the plain mean of a row's languages."]
    judged = {
        # Lengths are there also where there is no verdict.
        frozenset(
            language
            for (language, column), one in line.numbers.items()
            if column != "length" and language != MEAN and not math.isnan(one.value)
        )
        for line in lines
    }
    if len(judged) > 1:
        notes.append(f"Not all rows have the same languages, so their {MEAN}s are over different ones.")
    return notes


def _read(table: SuiteTable, file: Path, source: str, *, of_run: bool) -> list[Line]:
    try:
        content = parse_json(read_text(file))
        by_model: dict[str, list[dict[str, Any]]] = {}
        for row in content["rows"]:
            if row["language"] != MEAN and not is_language(row["language"]):
                raise ValueError(f"there is no language {row['language']!r}")
            if row.get("category", ALL) == ALL:
                by_model.setdefault(str(row["model"]), []).append(row)
        return [
            Line(
                f"{model} ({source})" if of_run else model,
                source,
                {(row["language"], column): _number(row, column) for row in rows for column in table.columns},
                {row["language"]: row["lc_kind"] for row in rows if "lc" in table.columns and row["lc"] is not None},
                _judged(table, content, rows),
            )
            for model, rows in by_model.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{file} cannot be read as results: {error!r}\nTo write it anew, give the command again that made it; no "
            "verdict is asked for twice."
        ) from error


def _number(row: Mapping[str, Any], column: str) -> Estimate:
    given = (row.get(f"{column}{end}") for end in ("", "_low", "_high"))
    value, low, high = (math.nan if one is None else float(one) for one in given)
    if value < 0 or any(math.isinf(number) for number in (value, low, high)):
        raise ValueError(f"{column} is {value} [{low}, {high}]")
    return Estimate(value, low, high, operator.index(row.get("n", 0)))


def _judged(table: SuiteTable, content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return by name what must be the same for two lines to be comparable."""
    languages = [row for row in rows if row["language"] != MEAN]

    def every(name: str) -> str:
        return ", ".join(dict.fromkeys(str(row[name]) for row in languages if row[name] != ""))

    judge, prompt = content["judge"], content["prompt" if "prompt" in content else "prompts"]
    by_file = "annotations" in judge
    answered = answered_as(judge)
    digest = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:8]
    judged = {
        "judge": every("judge") + (f" (answered as {answered})" if answered else ""),
        "decoding": "unknown" if by_file else decodings(judge),
        "prompt": "unknown" if by_file else digest,
        **{name: every(name) for name in table.alike},
    }
    if any("no_reference" in row for row in languages):
        words = {"no_reference": "left out", "plain": "judged plainly"}
        without = [word for name, word in words.items() if any(row[name] for row in languages)]
        judged["without reference"] = ", ".join(without) or "none"
    if "paper_compat" in content["settings"]:
        compat = content["settings"]["paper_compat"]
        judged["difficulty"] = "by position (paper_compat)" if compat else "by item"
    return judged


def _marked(lines: Sequence[Line]) -> tuple[list[Line], list[str]]:
    """Return the lines and the notes on how they were judged; if that differs, each line has a letter."""
    ways = list(dict.fromkeys(tuple(line.judged.items()) for line in lines))
    said = [", ".join(f"{name} {value}" for name, value in way) for way in ways]
    if len(ways) == 1:
        return list(lines), [f"Judged with: {said[0]}."]
    marks = {way: _letters(number) for number, way in enumerate(ways)}
    differing = [name for name in dict(ways[0]) if len({dict(way)[name] for way in ways}) > 1]
    marked = [replace(line, mark=marks[tuple(line.judged.items())]) for line in lines]
    warning = f"Rows with different letters are not to be compared: they differ in {', '.join(differing)}."
    return marked, [warning, *(f"[{marks[way]}] {text}." for way, text in zip(ways, said, strict=True))]


def _letters(number: int) -> str:
    """Return a, b ... z, aa, ab ..."""
    more, last = divmod(number, 26)
    return (_letters(more - 1) if more else "") + chr(ord("a") + last)


def paper_lines(table: SuiteTable) -> list[Line]:
    """Return the lines of the paper's own table."""
    text = files("crosspref").joinpath("data", table.paper).read_text(encoding="utf-8")
    lines = []
    for row in csv.DictReader(text.splitlines()):
        model, numbers = row.pop("model"), {}
        for name, value in row.items():
            language, _, column = name.partition("_")
            numbers[language, column or next(iter(table.columns))] = Estimate(float(value), math.nan, math.nan, 0)
        kinds = {language: "LC" for language, column in numbers if column == "lc"}
        lines.append(Line(model, "the paper", numbers, kinds, {}, quoted=True, mark="quoted"))
    return lines
