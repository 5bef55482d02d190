"""Items of an evaluation and what people bring for them, joined by id and never by position.

What cannot be used is counted, and the rest is used.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from crosspref.data.rows import Row, column_names, is_unicode, read_id, text_problem
from crosspref.data.sources import ID_COLUMNS, TEXT_COLUMNS, first_of
from crosspref.errors import DataError
from crosspref.escape import listed

T = TypeVar("T")

ANSWER_COLUMNS = ("output", "response", "answer", "completion", "generation")
MODEL_COLUMNS = ("generator", "model", "model_id")


@dataclass(frozen=True, slots=True)
class Item:
    """One instruction; ``place`` is its position in its file, from 0, whatever else is missing.

    An item that is not ``named`` has no id in its file: its id is its position, from 1.
    """

    item_id: str
    place: int
    instruction: str
    named: bool = True


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


def read_items(rows: Sequence[Row], problems: Problems, where: str) -> list[Item]:
    """Return the instructions of one language, without those whose id has two different instructions.

    Where no row has an id, as in what alpaca_eval publishes, an item's id is its position, from 1.

    Raises:
        DataError: there is no column of instructions; ``where`` begins the message.
    """
    there = column_names(rows)
    if there and not {*there} & {*TEXT_COLUMNS}:
        raise columns_error(where, rows, "no column with instructions", TEXT_COLUMNS)
    named = any(id_of(row) is not None for row in rows)

    def items() -> Iterator[tuple[str, str, Item]]:
        for place, row in enumerate(rows):
            item_id, text = id_of(row) if named else str(place + 1), first_of(row, TEXT_COLUMNS)
            if item_id is None or not isinstance(text, str) or text_problem(text):
                problems["items without id or text"] += 1
            else:
                yield item_id, text, Item(item_id, place, text, named)

    return list(unique(items(), problems).values())


def join(rows: Sequence[Row], items: Sequence[Item], column: str, problems: Problems) -> dict[str, Row]:
    """Return the row of each item id: by id where rows have one, else by instruction, the k-th for the k-th.

    Where items have no ids of their own, a row that has an instruction is joined by that. There is none for an item
    that has two rows with different values in ``column``. A row whose id and instruction are of two items is left out.
    """
    ids, named = {item.item_id for item in items}, all(item.named for item in items)
    by_text: dict[str, list[str]] = {}
    for item in items:
        by_text.setdefault(item.instruction.strip(), []).append(item.item_id)
    given, met = [], Counter[str]()
    for row in rows:
        instruction = first_of(row, TEXT_COLUMNS)
        text = instruction.strip() if isinstance(instruction, str) else ""
        item_id, same = id_of(row) if named or not text else None, by_text.get(text, [])
        if item_id is None and met[text] < len(same):
            item_id = same[met[text]]
            met[text] += len(same) > 1
        if item_id is None or column not in row.values:
            problems[f"rows without item or {column}"] += 1
        elif item_id in ids and same and item_id not in same:  # as where one file counts from 0, and the other from 1
            problems["rows whose id is of one item and whose instruction is of another"] += 1
        elif item_id in ids:
            given.append((item_id, row.values[column], row))
    return unique(given, problems, "duplicated rows")


def join_answers(
    rows: Sequence[Row], items: Sequence[Item], where: str, problems: Problems
) -> tuple[dict[str, str], dict[str, Row]]:
    """Return the answers by item id, and the row of each that was joined; ``where`` begins messages.

    Raises:
        DataError: the rows have no column with answers, or several, or none that tells which item they are of.
    """
    there = column_names(rows)
    if not there:
        return {}, {}
    found = [column for column in ANSWER_COLUMNS if column in there]
    if not found or (len(found) > 1 and found[0] != ANSWER_COLUMNS[0]):
        which = f"several columns with answers ({', '.join(found)})" if found else "no column with answers"
        raise columns_error(where, rows, which, ANSWER_COLUMNS)
    if not {*there} & {*ID_COLUMNS, *TEXT_COLUMNS}:
        which = "neither ids nor instructions to tell which items these are answers to"
        raise columns_error(where, rows, which, (*ID_COLUMNS, *TEXT_COLUMNS))
    joined = join(rows, items, found[0], problems)
    outputs = {key: row.values[found[0]] for key, row in joined.items()}
    return {key: text for key, text in outputs.items() if isinstance(text, str) and is_unicode(text)}, joined


def columns_error(where: str, rows: Sequence[Row], which: str, looked_for: Sequence[str]) -> DataError:
    """Return the error of a file whose columns do not fit: ``which`` ones it has or lacks; ``where`` named it."""
    file, there = rows[0].file.removeprefix(f"{where} "), listed(column_names(rows))
    return DataError(
        f"{where}: {file} has {which}. Looked for: {', '.join(looked_for)}. Columns there: {there}. Rename one."
    )
