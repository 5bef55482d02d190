"""The rows of prompt and preference files, read from JSONL, JSON, CSV and Parquet, and what can be wrong with them.

A row that cannot be read becomes a `BrokenRow`, so that the caller can name it and go on; what makes a whole file
unreadable is a `DataError`. Nothing here knows which columns matter.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.parquet as pq

from crosspref.errors import DataError

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One record: ``number`` is its 1-based line in a text file (its first line), its 1-based position elsewhere."""

    file: str
    number: int
    values: dict[str, object]


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A line that is not a record, and why."""

    file: str
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the input that cannot be used.

    ``reason`` is one of a few, so that problems can be counted by it; ``detail`` is for the person who mends the file.
    ``affects`` are the languages in which the prompt cannot be used. Of a row without a readable id, ``prompt_id`` is
    None.
    """

    file: str
    row: int
    language: str | None
    prompt_id: str | None
    reason: str
    detail: str
    affects: tuple[str, ...]

    def __str__(self) -> str:
        """Return one line: file, row, language and id as far as they are known, and what is wrong."""
        language = f", language {self.language}" if self.language else ""
        prompt_id = f", id {self.prompt_id!r}" if self.prompt_id is not None else ""
        return f"{self.file}, row {self.row}{language}{prompt_id}: {self.detail}"


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: str
    broken: str | None


def _lines(file: Path, name: str) -> list[_Line]:
    r"""Return the lines of a UTF-8 file, split at ``\n`` only; a line in another encoding carries what is wrong."""
    data = file.read_bytes()
    if data.startswith(_UTF16_BOMS):
        raise DataError(f"{name} is UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 {file.name} > NEW")
    offset = len(_BOM) if data.startswith(_BOM) else 0
    lines = []
    for number, line in enumerate(data[offset:].split(b"\n"), start=1):
        try:
            lines.append(_Line(number, line.decode(), None))
        except UnicodeDecodeError as error:
            broken = (
                f"not UTF-8: byte 0x{line[error.start]:02X} at byte offset {offset + error.start} of the file. Save it "
                f"as UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8 (or whichever encoding it was written in)"
            )
            lines.append(_Line(number, line.decode(errors="replace"), broken))
        offset += len(line) + 1
    return lines if lines[-1].text else lines[:-1]


def _read_jsonl(file: Path, name: str) -> Iterator[Row | BrokenRow]:
    """Yield one record per line; blank lines are skipped."""
    for line in _lines(file, name):
        if line.broken:
            yield BrokenRow(name, line.number, line.broken)
        elif line.text.strip():
            try:
                yield _as_row(name, line.number, json.loads(line.text))
            except ValueError as error:
                yield BrokenRow(name, line.number, f"the line is not valid JSON: {error}")


def _read_json(file: Path, name: str) -> Iterator[Row | BrokenRow]:
    """Yield the items of a file that is one JSON list of objects; their number is the position in the list."""
    lines = _lines(file, name)
    for line in lines:
        if line.broken:
            raise DataError(f"{name}, row {line.number}: {line.broken}")
    try:
        items = json.loads("\n".join(line.text for line in lines))
    except ValueError as error:
        raise DataError(f"{name} is not valid JSON: {error}. If each line is an object, name it .jsonl.") from error
    if not isinstance(items, list):
        raise DataError(f"{name} must hold a JSON list of objects, not {type(items).__name__}.")
    for number, item in enumerate(items, start=1):
        yield _as_row(name, number, item)


def _as_row(name: str, number: int, value: object) -> Row | BrokenRow:
    if isinstance(value, dict):
        return Row(name, number, value)
    return BrokenRow(name, number, f"a row must be a JSON object, not {type(value).__name__}")


def _read_csv(file: Path, name: str) -> Iterator[Row | BrokenRow]:
    """Yield the records below the header; a record's number is the line it starts in. Blank lines are skipped."""
    lines = _lines(file, name)
    broken = {line.number: line.broken for line in lines if line.broken}
    records = _csv_records([line.text + "\n" for line in lines])
    _, _, header = next(records, (1, 1, []))
    if isinstance(header, str) or 1 in broken:
        raise DataError(f"{name}, row 1: the header cannot be read: {broken.get(1, header)}")
    doubles = sorted({column for column in header if header.count(column) > 1})
    if doubles:
        raise DataError(f"{name}, row 1: the header names a column more than once: {', '.join(doubles)}. Rename one.")
    for first, last, fields in records:
        bad = [broken[line] for line in range(first, last + 1) if line in broken]
        if bad:
            yield BrokenRow(name, first, bad[0])
        elif isinstance(fields, str):
            yield BrokenRow(name, first, f"not valid CSV: {fields}")
        elif len(fields) != len(header):
            yield BrokenRow(name, first, f"{len(fields)} fields, but the header has {len(header)}")
        else:
            yield Row(name, first, dict(zip(header, fields, strict=True)))


def _csv_records(lines: list[str]) -> Iterator[tuple[int, int, list[str] | str]]:
    """Yield first line, last line, and fields of each record, or in the place of the fields what is wrong with it."""
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, sum(map(len, lines))))  # the module refuses texts over 131,072 characters otherwise
    records: list[tuple[int, int, list[str] | str]] = []
    try:
        reader = csv.reader(lines, strict=True)
        while True:
            first = reader.line_num + 1
            try:
                fields: list[str] | str = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                fields = str(error)
            if fields:
                records.append((first, reader.line_num, fields))
    finally:
        csv.field_size_limit(limit)
    return iter(records)


def _read_parquet(file: Path, name: str) -> Iterator[Row | BrokenRow]:
    """Yield the rows of a Parquet file; their number is their position."""
    try:
        number = 0
        for batch in pq.ParquetFile(pa.BufferReader(file.read_bytes())).iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(name, number, values)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read as Parquet: {error}") from error


READERS: dict[str, Callable[[Path, str], Iterator[Row | BrokenRow]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def read_file(file: Path, name: str) -> list[Row | BrokenRow]:
    """Return the rows of a file in file order; ``name`` is how messages call it.

    Raises:
        DataError: the file is of an unknown kind or cannot be read as a whole.
    """
    suffix = PurePath(file.name).suffix.lower()
    if suffix not in READERS:
        raise DataError(f"{name}: files of kind {suffix!r} cannot be read. Known kinds: {', '.join(READERS)}.")
    try:
        return list(READERS[suffix](file, name))
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error}") from error


def read_id(value: object) -> str | None:
    """Return an id as a string, or None if it is none; whole numbers lose the decimal point that some tables add."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)
    return text if text.strip() and is_unicode(text) else None


def text_problem(value: object) -> tuple[str, str] | None:
    """Return reason and detail of what keeps a value from being a text, or None if it is one."""
    if not isinstance(value, str):
        return "not text", f"the value is {type(value).__name__}, not text: {str(value)[:60]}"
    if not value.strip():
        return "empty text", "the text is only white space" if value else "the text is empty"
    if not is_unicode(value):
        return "broken text", "the text holds half of a surrogate pair, which is no character"
    return None


def describe_problems(what: str, problems: Sequence[Problem], how_to_go_on: str) -> str:
    """Return the message that lists the first twenty problems, counts the rest, and ends with what to do."""
    lines = [f"{what} have {len(problems)} problem{'s' if len(problems) != 1 else ''}:"]
    lines += [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  ... and {len(problems) - _SHOWN} more")
    return "\n".join([*lines, how_to_go_on])


def is_unicode(text: str) -> bool:
    """Tell whether a text holds no half of a surrogate pair, which nothing can write or send."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
