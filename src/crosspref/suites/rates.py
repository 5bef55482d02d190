"""What win rates are computed from and consist of: comparisons, and the gamed table and difficulties as files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosspref.errors import DataError
from crosspref.stages.prompt_files import Row, read_file
from crosspref.suites.results import Change
from crosspref.suites.settings import XAlpacaSettings

DIFFICULTY = "instruction_difficulty"
GAMED_COLUMNS = ("index", "preference", "std_delta_len", DIFFICULTY)
"""What is read of alpaca_eval's gamed table: ``index`` is an item's place from 0, ``preference`` is in [0, 1]."""


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
    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Controls:
    """What the length-controlled rate needs beside verdicts: rows of the gamed table, and difficulties.

    Difficulties are by item id, or by place (``by_place``). ``compat`` joins them by position among what was judged.
    """

    gamed: Sequence[Mapping[str, object]] | None = None
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
        DataError: a file cannot be read, or lacks a column.
    """
    gamed = _columns(settings.gamed, "xalpaca.gamed", GAMED_COLUMNS) if settings.gamed else None
    if settings.difficulty is not None:
        rows = _columns(settings.difficulty, "xalpaca.difficulty", (DIFFICULTY,))
        if all("id" in row for row in rows):
            return Controls(
                gamed, {str(row["id"]): number(row[DIFFICULTY]) for row in rows}, None, settings.paper_compat
            )
        source = "xalpaca.difficulty"
    else:
        rows, source = gamed or [], "xalpaca.gamed"
    by_place: dict[int, float] = {}
    for row in rows:
        if "index" not in row:
            raise DataError(f"{source}: a row has neither an id nor an index: {dict(row)!r}")
        by_place.setdefault(int(number(row["index"])), number(row[DIFFICULTY]))
    return Controls(gamed, None, by_place or None, settings.paper_compat)


def _columns(path: str, what: str, needed: Sequence[str]) -> list[Mapping[str, object]]:
    rows = [row.values for row in read_file(Path(path), f"{what} {path}") if isinstance(row, Row)]
    missing = [name for name in needed if not rows or name not in rows[0]]
    if missing:
        raise DataError(f"{what}: {path} has no column {', '.join(missing)}.")
    return list(rows)


def number(value: object) -> float:
    """Return the number that stands in a file.

    Raises:
        DataError: it is none.
    """
    try:
        return float(str(value))
    except ValueError as error:
        raise DataError(
            f"{value!r} stands where a number is expected in the gamed table or the difficulties."
        ) from error
