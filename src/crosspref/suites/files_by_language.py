"""Files that a person gives to a suite: one per language, or one for all; rows are joined by id, never by position.

What cannot be used is counted, and the rest is used.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from crosspref.data.prompts import ID_COLUMNS, LANGUAGE_COLUMNS, TEXT_COLUMNS
from crosspref.data.rows import READERS, Row, read_file, read_id
from crosspref.data.sources import as_tag
from crosspref.errors import DataError
from crosspref.languages import LANGUAGES, language_name

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """One instruction; ``place`` is where it stands in its file, from 0, whatever else is missing."""

    item_id: str
    place: int
    instruction: str


@dataclass
class Problems:
    """What could not be used, counted by reason."""

    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Return the counts as words."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.items() if count)


def read_languages(source: str, what: str, asked: Sequence[str] | None, inside: str) -> dict[str, list[Row]]:
    """Return the rows of each language: of ``DIR/es.json``, ``DIR/es/model_outputs.json``, or by a column language.

    ``inside`` is what a language's file, or a folder with this one file in it, is called in a folder of its own. A file
    without such a column is taken for the one language that is asked for.

    Raises:
        DataError: there is nothing to read, or a file cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = language_files(path, inside)
        if not files:
            raise DataError(f"{what}: the directory {source} has no file of a language, such as es.json.")
        found = {language: rows_of(file) for language, file in files.items()}
    elif path.is_file():
        found = _by_column(rows_of(path), source, what, asked)
    else:
        raise DataError(f"{what}: there is no file or directory {source}.")
    return found if asked is None else {language: rows for language, rows in found.items() if language in asked}


def language_files(directory: Path, name: str | None = None) -> dict[str, Path]:
    """Return the file of each language that a directory has: ``es.json``, or, with a name, ``es/NAME.json``."""
    found = {}
    for entry in sorted(directory.iterdir()):
        tag = as_tag(entry.stem if entry.is_file() else entry.name)
        if tag not in LANGUAGES:
            continue
        if entry.is_file() and entry.suffix in READERS:
            found[tag] = entry
        elif entry.is_dir() and name is not None:
            existing = [file for suffix in READERS if (file := entry / f"{name}{suffix}").is_file()]
            existing = existing or [file for file in sorted((entry / name).glob("*")) if file.suffix in READERS]
            if len(existing) > 1 and existing[0].parent != entry:
                raise DataError(f"{entry / name} has several files: {', '.join(f.name for f in existing)}. Leave one.")
            if existing:
                found[tag] = existing[0]
    return found


def rows_of(file: Path) -> list[Row]:
    """Return the rows of a file; a broken line becomes an empty row, which is then counted as unusable."""
    return [row if isinstance(row, Row) else Row(row.file, row.number, {}) for row in read_file(file, str(file))]


def _by_column(rows: Iterable[Row], source: str, what: str, asked: Sequence[str] | None) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    given = list(rows)
    tags = [as_tag(tag) if isinstance(tag := first_of(row, LANGUAGE_COLUMNS), str) else None for row in given]
    for place, (row, tag) in enumerate(zip(given, tags, strict=True)):
        # A broken row is counted in the language that it stands in: items are found by their place there.
        tag = tag or (None if row.values else _language_around(tags, place, f"{what}: row {row.number} of {source}"))
        if tag is not None:
            if asked is None:
                try:
                    language_name(tag)
                except DataError as error:
                    raise DataError(f"{what}: row {row.number} of {source}: {error}") from None
            found.setdefault(tag, []).append(row)
        elif asked is not None and len(asked) == 1:
            found.setdefault(asked[0], []).append(row)
        elif row.values:
            raise DataError(
                f"{what}: row {row.number} of {source} names no language. Add a column language, give a directory with "
                "a file per language, or choose one with --languages."
            )
    return found


def _language_around(tags: Sequence[str | None], place: int, where: str) -> str | None:
    """Return the language of the rows before and after a broken one."""
    before = next((tag for tag in reversed(tags[:place]) if tag), None)
    after = next((tag for tag in tags[place + 1 :] if tag), None)
    if before and after and before != after:
        raise DataError(
            f"{where} is broken, and its language cannot be told: it is {before} before it and {after} after it. Mend "
            "the row or take it out, or give a directory with a file per language."
        )
    return before or after


def first_of(row: Row, columns: Sequence[str]) -> object:
    """Return the first of some columns that is there and not empty."""
    return next((row.values[column] for column in columns if row.values.get(column) is not None), None)


def id_of(row: Row) -> str | None:
    """Return the id that a row names."""
    return read_id(first_of(row, ID_COLUMNS))


def unique(given: Iterable[tuple[str, object, T]], problems: Problems) -> list[T]:
    """Return the first of each (id, content, value); of an id with two different contents, none."""
    found: dict[str, tuple[object, T]] = {}
    ambiguous = set()
    for name, content, value in given:
        if name in found:
            problems.counts["duplicated ids"] += 1
            if found[name][0] != content:
                ambiguous.add(name)
        else:
            found[name] = content, value
    return [value for name, (_, value) in found.items() if name not in ambiguous]


def join(rows: Sequence[Row], items: Sequence[Item], column: str, problems: Problems) -> dict[str, Row]:
    """Return the row of each item id: by id where rows have one, else by instruction, the k-th for the k-th.

    Of an item that has two rows with different values in ``column``, there is none.
    """
    ids = {item.item_id for item in items}
    by_text: dict[tuple[str, int], str] = {}
    seen = Counter[str]()
    for item in items:
        instruction = item.instruction.strip()
        by_text[instruction, seen[instruction]] = item.item_id
        seen[instruction] += 1
    found: dict[str, Row] = {}
    ambiguous, met = set(), Counter[str]()
    for row in rows:
        item_id, text = id_of(row), first_of(row, TEXT_COLUMNS)
        if item_id is None and isinstance(text, str):
            item_id = by_text.get((text.strip(), met[text.strip()]))
            if seen[text.strip()] > 1:
                met[text.strip()] += 1
        if item_id is None or column not in row.values:
            problems.counts[f"rows without item or {column}"] += 1
        elif item_id in ids:
            first = found.setdefault(item_id, row)
            if first is not row:
                problems.counts["duplicated rows"] += 1
                if first.values.get(column) != row.values.get(column):
                    ambiguous.add(item_id)
    return {item_id: row for item_id, row in found.items() if item_id not in ambiguous}
