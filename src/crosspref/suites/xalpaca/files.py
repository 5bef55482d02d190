"""Files in alpaca_eval's formats: instructions, preferences, and what the length-controlled rate also needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crosspref.data.rows import Row, read_file, read_id
from crosspref.errors import DataError
from crosspref.escape import json_text
from crosspref.maths.alpaca import Gamed
from crosspref.paths import expanded
from crosspref.run.store import write_text
from crosspref.suites.settings import XAlpacaSettings

OUTPUTS, ANNOTATIONS = "model_outputs", "annotations"
"""Names of a language's file where each language has a folder."""

DIFFICULTY = "instruction_difficulty"
GAMED_COLUMNS = ("index", "preference", "std_delta_len", DIFFICULTY)
"""What is read of alpaca_eval's gamed table: ``index`` is an item's place from 0, ``preference`` is in [0, 1]."""
ADVICE = "Correct the file and give the same command again; no verdict is lost."


def read_preference(value: object) -> float | None:
    """Return a preference in [1, 2], 1.5 for a tie (which some files write as 0), or None if there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if value == 0:
        return 1.5
    return float(value) if 1 <= value <= 2 else None


def write_json(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as alpaca_eval does: one JSON list."""
    write_text(path, json_text(rows, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class Controls:
    """What the length-controlled rate needs in addition to verdicts: the gamed table and the items' difficulties.

    Difficulties are by the item's id (a text), or by its place (a number). ``compat`` joins them by position among the
    judged items, as the paper does; that is wrong if an item in between is missing.
    """

    gamed: Gamed | None = None
    difficulties: Mapping[Any, float] = field(default_factory=dict)
    compat: bool = False

    def of_items(self, items: Sequence[tuple[str, int]]) -> Sequence[float | None]:
        """Return the difficulty of each item, given by its id and place, or None where it is not known.

        With ``compat`` there are fewer if the table ends before the items do.
        """
        if self.compat:
            return [*self.difficulties.values()][: len(items)]
        return [self.difficulties.get(item_id, self.difficulties.get(place)) for item_id, place in items]


def read_controls(settings: XAlpacaSettings) -> Controls:
    """Read the gamed table and the difficulties that the settings name.

    Raises:
        DataError: a file cannot be read, lacks a column, or has no number where one is needed.
    """
    rows = _read(settings.gamed, "xalpaca.gamed", GAMED_COLUMNS) if settings.gamed else []
    gamed = _gamed(rows) if settings.gamed else None
    if settings.difficulty is not None:
        rows = _read(settings.difficulty, "xalpaca.difficulty", (DIFFICULTY,))
        if all("id" in row.values for row in rows):
            by_id = {read_id(row.values["id"]): row.number_in(DIFFICULTY, ADVICE) for row in rows}
            known = {name: value for name, value in by_id.items() if name is not None}
            return Controls(gamed, known, settings.paper_compat)
    by_place: dict[int, float] = {}
    for row in rows:
        if "index" not in row.values:
            raise row.error("it has neither an id nor an index", ADVICE)
        by_place.setdefault(int(row.number_in("index", ADVICE)), row.number_in(DIFFICULTY, ADVICE))
    return Controls(gamed, by_place, settings.paper_compat)


def _read(path: str, setting: str, needed: Sequence[str]) -> list[Row]:
    rows = read_file(expanded(path), f"{setting} {path}")
    missing = [name for name in needed if rows and name not in rows[0].values]
    if missing or not rows:
        raise DataError(f"{setting}: {path} has no column {', '.join(missing or needed)}.")
    for row in rows:
        if row.broken:
            raise row.error(row.broken, ADVICE)
    return rows


def _gamed(rows: Sequence[Row]) -> Gamed:
    _, *columns = zip(*([row.number_in(name, ADVICE) for name in GAMED_COLUMNS] for row in rows), strict=True)
    for row, preference in zip(rows, columns[0], strict=True):
        if not 0 <= preference <= 1:
            wrong = f"preference is {preference:g}, and not from 0 to 1 (of one from 1 to 2 subtract 1)"
            raise row.error(wrong, ADVICE)
    return Gamed(*map(np.array, columns))
