"""What win rates are computed from and consist of: comparisons, and the gamed table and difficulties as files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosspref.data.rows import Row, read_file, read_id
from crosspref.errors import DataError
from crosspref.suites.results import ModelChange
from crosspref.suites.settings import XAlpacaSettings

DIFFICULTY = "instruction_difficulty"
GAMED_COLUMNS = ("index", "preference", "std_delta_len", DIFFICULTY)
"""What is read of alpaca_eval's gamed table: ``index`` is an item's place from 0, ``preference`` is in [0, 1]."""
ADVICE = "Correct the file and give the same command again; no verdict is lost."


@dataclass(frozen=True, slots=True)
class Compared:
    """One item for which both answers are there. ``preference`` is in [1, 2], 2 where the model wins; None: failed."""

    item_id: str
    place: int
    preference: float | None
    length: int
    baseline_length: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Win rate and length-controlled win rate in percent, with 95% intervals; nan where there are none."""

    wr: float = math.nan
    wr_low: float = math.nan
    wr_high: float = math.nan
    lc: float = math.nan
    lc_low: float = math.nan
    lc_high: float = math.nan
    lc_kind: str = "none"


Key = tuple[str, str]
"""A model and a language."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The rates of every model and language, of every model the plain mean over languages, and what changed."""

    rates: Mapping[Key, Rates]
    means: Mapping[str, Rates]
    changes: Sequence[ModelChange]


@dataclass(frozen=True, slots=True)
class Controls:
    """What the length-controlled rate needs beside verdicts: rows of the gamed table, and difficulties.

    Difficulties are by item id, or by place (``by_place``). ``compat`` joins them by position among what was judged.
    """

    gamed: Sequence[Mapping[str, float]] | None = None
    difficulty: Mapping[str, float] | None = None
    by_place: Mapping[int, float] | None = None
    compat: bool = False

    def of(self, row: Compared) -> float | None:
        """Return an item's difficulty, or None where it is not known."""
        if self.difficulty is not None:
            return self.difficulty.get(row.item_id)
        return self.by_place.get(row.place) if self.by_place is not None else None


def read_controls(settings: XAlpacaSettings) -> Controls:
    """Read the gamed table and the difficulties, as far as they are named.

    Raises:
        DataError: a file cannot be read, lacks a column, or has something else where a number is needed.
    """
    rows = _table(settings.gamed, "xalpaca.gamed", GAMED_COLUMNS) if settings.gamed else []
    gamed = [{name: row.number_in(name, ADVICE) for name in GAMED_COLUMNS} for row in rows] if settings.gamed else None
    for row, numbers in zip(rows, gamed or (), strict=True):
        if not 0 <= numbers["preference"] <= 1:
            wrong = numbers["preference"]
            raise row.error(f"preference is {wrong:g}, and not from 0 to 1 (of one from 1 to 2 subtract 1)", ADVICE)
    if settings.difficulty is not None:
        rows = _table(settings.difficulty, "xalpaca.difficulty", (DIFFICULTY,))
        if all("id" in row.values for row in rows):
            by_id = {read_id(row.values["id"]): row.number_in(DIFFICULTY, ADVICE) for row in rows}
            known = {name: value for name, value in by_id.items() if name is not None}
            return Controls(gamed, known, None, settings.paper_compat)
    by_place: dict[int, float] = {}
    for row in rows:
        if "index" not in row.values:
            raise row.error("it has neither an id nor an index", ADVICE)
        by_place.setdefault(int(row.number_in("index", ADVICE)), row.number_in(DIFFICULTY, ADVICE))
    return Controls(gamed, None, by_place or None, settings.paper_compat)


def _table(path: str, what: str, needed: Sequence[str]) -> list[Row]:
    rows = read_file(Path(path), f"{what} {path}")
    missing = [name for name in needed if rows and name not in rows[0].values]
    if missing or not rows:
        raise DataError(f"{what}: {path} has no column {', '.join(missing or needed)}.")
    for row in rows:
        if row.broken:
            raise row.error(row.broken, ADVICE)
    return rows
