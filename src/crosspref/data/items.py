"""Items of an evaluation and what people bring for them, joined by id and never by position.

What cannot be used is counted, and the rest is used.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from crosspref.data.rows import Row, read_id
from crosspref.data.sources import ID_COLUMNS, TEXT_COLUMNS, first_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """One instruction; ``place`` is its position in its file, from 0, whatever else is missing."""

    item_id: str
    place: int
    instruction: str


class Problems(Counter[str]):
    """What could not be used, counted by reason."""

    def __str__(self) -> str:
        """Return the counts as words."""
        return ", ".join(f"{count} {reason}" for reason, count in self.items() if count)


def id_of(row: Row) -> str | None:
    """Return the id that a row names."""
    return read_id(first_of(row, ID_COLUMNS))


def unique(given: Iterable[tuple[str, object, T]], problems: Problems, what: str = "duplicated ids") -> dict[str, T]:
    """Return the first value of each (id, content, value) by id; none for an id with two different contents."""
    first: dict[str, tuple[object, T]] = {}
    ambiguous = set()
    for name, content, value in given:
        if name in first:
            problems[what] += 1
            if first[name][0] != content:
                ambiguous.add(name)
        else:
            first[name] = content, value
    return {name: value for name, (_, value) in first.items() if name not in ambiguous}


def join(rows: Sequence[Row], items: Sequence[Item], column: str, problems: Problems) -> dict[str, Row]:
    """Return the row of each item id: by id where rows have one, else by instruction, the k-th for the k-th.

    There is none for an item that has two rows with different values in ``column``.
    """
    ids = {item.item_id for item in items}
    by_text: dict[str, list[str]] = {}
    for item in items:
        by_text.setdefault(item.instruction.strip(), []).append(item.item_id)
    given, met = [], Counter[str]()
    for row in rows:
        item_id, text = id_of(row), str(first_of(row, TEXT_COLUMNS) or "").strip()
        same = by_text.get(text, [])
        if item_id is None and met[text] < len(same):
            item_id = same[met[text]]
            met[text] += len(same) > 1
        if item_id is None or column not in row.values:
            problems[f"rows without item or {column}"] += 1
        elif item_id in ids:
            given.append((item_id, row.values[column], row))
    return unique(given, problems, "duplicated rows")
