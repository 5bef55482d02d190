"""One table of models by language, as Table 2 of the paper: from the results of any number of runs and models."""

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from crosspref.comparison import run_names
from crosspref.errors import DataError, RunError
from crosspref.languages import LANGUAGES
from crosspref.store import EVALUATION, RunDirectory
from crosspref.suites.results import MEAN

RATES = ("lc", "wr")
COLUMNS = {"lc": "LC", "wr": "WR", "length": "length"}
"""What the table has of each language, and its name."""

NOREG = "LC-noreg"
PAPER = "quoted from the paper (Table 2), not measured here"
ABOUT_PAPER = (
    "quoted: from Table 2 of the paper, whose judge is gpt-4-1106-preview with a prompt of its own and whose baseline "
    "are answers of gpt-4-turbo-2024-04-09 in each language; its lengths are not published. Such rows give an idea, and "
    "no difference from the others can be read off."
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its interval, nan where there is none; ``kind`` is LC or LC-noreg for the rate LC, and else ""."""

    value: float
    low: float = math.nan
    high: float = math.nan
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One model: its numbers by language and column, where they come from, and how it was judged.

    ``mark`` is the letter of the footnote that says how it was judged, where not all lines were judged alike.
    """

    model: str
    source: str
    numbers: Mapping[tuple[str, str], Number]
    judged: Mapping[str, str]
    quoted: bool = False
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """The lines of a table, its languages, the mean among them, and what is said below it."""

    languages: Sequence[str]
    lines: Sequence[Line]
    notes: Sequence[str] = field(default=())


def leaderboard(places: Sequence[str | Path], *, quoted: bool = False) -> Leaderboard:
    """Return one table of what the suite xalpaca measured in runs and folders of results.

    Args:
        places: run directories, or folders that ``crosspref evaluate --out`` wrote.
        quoted: whether the paper's rows stand below, marked as quoted.

    Raises:
        RunError: a place is not there or given twice, or none has results.
        DataError: results cannot be read.
    """
    paths = [Path(place).expanduser().resolve() for place in places]
    for number, path in enumerate(paths):
        if not path.is_dir():
            raise RunError(f"{places[number]} is no directory. Name runs, or folders that crosspref evaluate wrote.")
        if path in paths[:number]:
            raise RunError(f"{places[number]} is given twice. Name each place once.")
    lines: list[Line] = []
    empty = []
    for place, path, name in zip(places, paths, run_names(paths), strict=True):
        run = RunDirectory(path)
        file = (run.root / EVALUATION if run.recipe.is_file() else path) / "xalpaca" / "win_rates.json"
        if file.is_file():
            lines += _read(file, name, of_run=run.recipe.is_file() and len(paths) > 1)
        else:
            empty.append(f"{place} has no results of the suite xalpaca.")
    if not lines:
        raise RunError("\n".join([*empty, "Measure a run first: crosspref evaluate RUN --suite xalpaca"]))
    lines, notes = _marked(_told_apart(lines))
    if quoted:
        lines += paper_lines()
        notes.append(ABOUT_PAPER)
    languages = list(dict.fromkeys(language for line in lines for language, _ in line.numbers if language != MEAN))
    if any(number.kind == NOREG for line in lines for number in line.numbers.values()):
        notes.insert(0, f"* {NOREG}: fitted without alpaca_eval's gamed rows; not comparable with other LC.")
    return Leaderboard([*languages, MEAN], lines, [*_meaning(lines), *notes, *empty])


def _meaning(lines: Sequence[Line]) -> list[str]:
    rates = [
        "LC and WR: length-controlled and standard win rate over the baseline, in percent; length: mean characters of "
        f"the answers. {MEAN}: the plain mean of a row's languages."
    ]
    sets = {tuple(sorted({language for language, _ in line.numbers} - {MEAN})) for line in lines}
    if len(sets) > 1:
        rates.append(f"Not all rows have the same languages, so their {MEAN}s are over different ones.")
    return rates


def _read(file: Path, source: str, *, of_run: bool) -> list[Line]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        by_model: dict[str, list[dict[str, Any]]] = {}
        for row in content["rows"]:
            if row["language"] not in (*LANGUAGES, MEAN):
                raise ValueError(f"there is no language {row['language']!r}")
            by_model.setdefault(str(row["model"]), []).append(row)
        return [
            Line(
                f"{model} ({source})" if of_run else model,
                source,
                {(row["language"], column): _number(row, column) for row in rows for column in COLUMNS},
                _judged(content, rows),
            )
            for model, rows in by_model.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} cannot be read as results of the suite xalpaca: {error!r}\nTo write it anew, give the command "
            "again that made it; no verdict is asked for twice."
        ) from error


def _number(row: Mapping[str, Any], column: str) -> Number:
    value, low, high = (row.get(f"{column}{end}") for end in ("", "_low", "_high"))
    known = [math.nan if one is None else float(one) for one in (value, low, high)]
    return Number(*known, kind=row["lc_kind"] if column == "lc" and value is not None else "")


def _judged(content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what decides whether two lines can be compared, by name."""
    languages = [row for row in rows if row["language"] != MEAN]

    def every(name: str) -> str:
        return ", ".join(dict.fromkeys(str(row[name]) for row in languages))

    judge = content["judge"]
    by_file = "annotations" in judge
    answered = ", ".join(name for name in judge.get("answered_as", []) if name != judge.get("judge"))
    decoding = "; ".join(", ".join(f"{k} {v}" for k, v in one.items()) for one in judge.get("decoding", []))
    prompt = hashlib.sha256(json.dumps(content["prompt"]).encode()).hexdigest()[:8]
    settings = content["settings"]
    return {
        "judge": every("judge") + (f" (answered as {answered})" if answered else ""),
        "decoding": "unknown" if by_file else decoding,
        "prompt": "unknown" if by_file else prompt,
        "baseline": every("baseline"),
        "difficulty": "by position (paper_compat)" if settings.get("paper_compat") else "by item",
        "items": every("items"),
    }


def _told_apart(lines: Sequence[Line]) -> list[Line]:
    """Return the lines, with the source in the names that more than one has."""
    names = [line.model for line in lines]
    return [
        Line(f"{line.model} ({line.source})", line.source, line.numbers, line.judged)
        if names.count(line.model) > 1
        else line
        for line in lines
    ]


def _marked(lines: Sequence[Line]) -> tuple[list[Line], list[str]]:
    """Return the lines with a letter each where they were judged otherwise, and the notes that say how."""
    ways = list(dict.fromkeys(tuple(line.judged.items()) for line in lines))
    said = [", ".join(f"{name} {value}" for name, value in way) for way in ways]
    if len(ways) == 1:
        return list(lines), [f"Judged with: {said[0]}."]
    marks = {way: _letters(number) for number, way in enumerate(ways)}
    differing = [name for name in dict(ways[0]) if len({dict(way)[name] for way in ways}) > 1]
    marked = [
        Line(line.model, line.source, line.numbers, line.judged, mark=marks[tuple(line.judged.items())])
        for line in lines
    ]
    warning = f"Rows with different letters are not to be compared: they differ in {', '.join(differing)}."
    return marked, [warning, *(f"[{marks[way]}] {text}." for way, text in zip(ways, said, strict=True))]


def _letters(number: int) -> str:
    """Return a, b ... z, aa, ab ..."""
    more, last = divmod(number, 26)
    return (_letters(more - 1) if more else "") + chr(ord("a") + last)


def paper_lines() -> list[Line]:
    """Return Table 2 of the paper as it is printed."""
    text = files("crosspref").joinpath("data", "paper_table_2.csv").read_text(encoding="utf-8")
    lines = []
    for row in csv.DictReader(text.splitlines()):
        numbers = {}
        for name, value in row.items():
            language, _, rate = name.rpartition("_")
            if rate in RATES:
                numbers[language, rate] = Number(float(value), kind="LC" if rate == "lc" else "")
        lines.append(Line(row["model"], PAPER, numbers, {}, quoted=True, mark="quoted"))
    return lines
