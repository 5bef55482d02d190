"""The one reader of files with rows: JSONL, JSON, CSV and Parquet, and what can be wrong with a row.

A line that is no record becomes a `Row` that is ``broken``, so that the caller can report it and carry on; what makes a
whole file unreadable is a `DataError`. Nothing here knows which columns matter. Files come from strangers, so their
size, the depth of their JSON and the length of their texts are bounded.
"""

import csv
import json
import math
import re
import sys
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosspref.errors import DataError, shown
from crosspref.escape import listed, one_line
from crosspref.paths import require_file

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_COMPRESSED = (".gz", ".zst")
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""By the bytes that such a file begins with: downloads are unpacked on the way, and keep their name."""

_DELIMITER_LINE = re.compile(r"sep=(?P<delimiter>[,;\t|])\s*")
_PIECE_BYTES = 2**24
_UUID_BYTES = 16
_UNSEEN_CATEGORIES = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "Me"))
"""Controls, formats (zero-width and directional marks), separators, and marks that need a character before them."""

_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Characters of other categories that are blank: the fillers of Hangul, and Braille without a dot."""

_SHOWN = 20

_MOST_BYTES = 4 * 2**30
"""What a file may hold, unpacked: a few kilobytes of a hostile one can unpack to more than the memory."""

_MOST_ROWS = 10_000_000
_MOST_CELLS = 100_000_000
"""How many values the columns of a Parquet file may have together: a million of the same one take a few bytes there."""

UNREADABLE = (pa.ArrowException, ValueError, OverflowError, LookupError)
"""What pyarrow raises for values that are not what their type says, or are not known here, such as a time zone."""

_BATCH_ROWS = 1024  # as few as this, since a text that all rows share is stored once and becomes one text for each row
MOST_LEVELS = 64
"""How deep objects and lists may be nested; deeper ones would exhaust the interpreter's stack later."""

_MOST_CHARACTERS = 10_000_000
"""How long a text may be: no model reads so much, and a tokenizer would take minutes to find that out."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be used, in some or all languages.

    ``reason`` is one of a few, so that problems can be counted by it; ``detail`` is for the person who corrects the
    file. ``affects`` are the languages in which the prompt cannot be used. ``prompt_id`` is None for a row without a
    readable id.
    """

    file: str
    row: int
    language: str | None
    prompt_id: str | None
    reason: str
    detail: str
    affects: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line: file, row, language and id as far as they are known, and what is wrong."""
        language = f", language {one_line(self.language, 80)}" if self.language else ""
        prompt_id = f", id {shown(self.prompt_id)}" if self.prompt_id is not None else ""
        return f"{self.file}, row {self.row}{language}{prompt_id}: {self.detail}"


class RowError(DataError):
    """Rows cannot be used: ``problems`` lists all of them, and the message the first twenty."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)

    @classmethod
    def of(cls, what: str, problems: Sequence[Problem], advice: str) -> "RowError":
        """Return the error for problems with ``what``, a plural; ``advice`` says what to do."""
        lines = [f"{what} have {len(problems)} problem{'s' if len(problems) != 1 else ''}:"]
        lines += [f"  {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  ... and {len(problems) - _SHOWN} more")
        return cls("\n".join([*lines, advice]), problems)


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file; ``broken`` says why a line is none, and then there are no values.

    ``number`` counts from 1: the line where the record starts in a text file, its position elsewhere.
    """

    file: str
    number: int
    values: dict[str, object]
    broken: str = ""

    def problem(
        self,
        reason: str,
        detail: str,
        language: str | None = None,
        prompt_id: str | None = None,
        affects: tuple[str, ...] = (),
    ) -> Problem:
        """Return what is wrong with this row."""
        return Problem(self.file, self.number, language, prompt_id, reason, detail, affects)

    def error(self, detail: str, advice: str = "") -> RowError:
        """Return the error of a file that cannot be used because of this row."""
        problem = self.problem("row", detail)
        return RowError(f"{problem}. {advice}" if advice else str(problem), [problem])

    def id_in(self, column: str | None) -> str | None:
        """Return the id in a column, or None if it is none; without a column, the row's number is its id."""
        return str(self.number) if column is None else read_id(self.values.get(column))

    def number_in(self, column: str, advice: str = "") -> float:
        """Return the finite number in a column, which may be written as text; ``advice`` is part of the RowError."""
        value = self.values.get(column)
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self.error(f"{shown(value)} stands where a number is expected, in the column {column}", advice)
        return number


def column_names(rows: Iterable[Row]) -> list[str]:
    """Return the names of all columns that any row has, in the order of their first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row.values))


def split_name(file: PurePath) -> tuple[str, str]:
    """Return the stem and the ending of a file's name, without one of compression: ``es.jsonl.gz`` is es and .jsonl."""
    inner = PurePath(file.stem) if file.suffix.lower() in _COMPRESSED else file
    if inner.suffix.lower() == ".parquet":  # which is compressed inside
        return file.stem, file.suffix.lower()
    return inner.stem, inner.suffix.lower()


def read_file(file: Path, name: str) -> list[Row]:
    """Return the rows of a file in file order; ``name`` is what messages call it.

    Raises:
        DataError: the file is of an unknown kind, is too large, or cannot be read as a whole.
    """
    _, ending = split_name(file)
    if ending not in READERS:
        known = f"Known kinds: {', '.join(READERS)}; those of text also with {' or '.join(_COMPRESSED)} after it."
        raise DataError(f"{name}: files of kind {ending!r} cannot be read. {known}")
    try:
        require_file(file)
        return list(READERS[ending](file, name))
    except (OSError, MemoryError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: BaseException, kind: str = "") -> DataError:
    return DataError(f"{name} cannot be read{kind}: {str(error) or 'there is not enough memory'}")


def _too_large(name: str, holds: str) -> DataError:
    most = f"{_MOST_BYTES / 2**30:.0f} GiB (unpacked), {_MOST_ROWS:,} rows or {_MOST_CELLS:,} values"
    return DataError(f"{name} holds {holds}, and a file of more than {most} is not read. Split it.")


def read_parquet(file: Path, name: str, wanted: Collection[str] | None = None) -> tuple[pa.Table, list[str]]:
    """Return the columns of a Parquet file that are ``wanted``, or all, and the names of all that there are.

    Raises:
        DataError: it cannot be read, is too large, or has two columns of one name.
    """
    try:
        require_file(file)
        parquet = pq.ParquetFile(file)
        schema, metadata = parquet.schema_arrow, parquet.metadata
        repeated = _repeated(schema.names)
        if repeated:
            raise DataError(f"{name} has more than one column called {listed(repeated)}. Rename one.")
        if metadata.num_rows > _MOST_ROWS:
            raise _too_large(name, f"{metadata.num_rows:,} rows")
        taken = None if wanted is None else [column for column in schema.names if column in wanted]
        if taken is None and metadata.num_rows * len(schema) > _MOST_CELLS:
            raise _too_large(name, f"{metadata.num_rows:,} rows of {len(schema):,} columns")
        batches, size = [], 0
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=taken):
            batches.append(batch)
            size += batch.nbytes
            if size > _MOST_BYTES:
                raise _too_large(name, "more")
        table = pa.Table.from_batches(batches, batches[0].schema if batches else schema)
        return table if taken is None else table.select(taken), schema.names
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _unreadable(name, error, " as Parquet") from error


def _parquet_rows(file: Path, name: str) -> Iterator[Row]:
    return table_rows(read_parquet(file, name)[0], name)


def table_rows(table: pa.Table, name: str) -> Iterator[Row]:
    """Yield the rows of an Arrow table.

    Raises:
        DataError: a column has values that cannot be told.
    """
    columns = [column_values(table[column], f"{name}, column {column!r}") for column in table.column_names]
    for number, values in enumerate(zip(*columns, strict=True), start=1):
        yield Row(name, number, dict(zip(table.column_names, values, strict=True)))


def column_values(column: pa.ChunkedArray, name: str) -> list[object]:
    """Return a column's values; bytes become the text or the UUIDs that they are, where they are one of the two."""
    try:
        values: list[object] = column.to_pylist()
    except UNREADABLE as error:
        where = f"{name} of type {column.type}, row {_first_unreadable(column)}"
        raise DataError(f"{where}: it cannot be read: {error}. Convert it or leave the column out.") from error
    if not any(isinstance(value, bytes) for value in values):
        return values
    texts = [_text_of(value) if isinstance(value, bytes) else value for value in values]
    given = [value for value in values if isinstance(value, bytes)]
    if all(len(value) == _UUID_BYTES for value in given) and any(isinstance(text, bytes) for text in texts):
        return [uuid.UUID(bytes=value) if isinstance(value, bytes) else value for value in values]
    return texts


def _first_unreadable(column: pa.ChunkedArray) -> int:
    for number, value in enumerate(column, start=1):
        try:
            value.as_py()
        except UNREADABLE:
            return number
    return 1


def _text_of(value: bytes) -> str | bytes:
    """Return the text of bytes in UTF-8, as old writers leave it in Parquet, or the bytes if they are none."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value
    return value if any(character < " " and character not in "\t\n\r" for character in text) else text


def _content(file: Path, name: str) -> bytes:
    """Return what is in a file, unpacked."""
    with file.open("rb") as beginning:
        first = beginning.read(4)
    compression = next((codec for magic, codec in _COMPRESSIONS.items() if first.startswith(magic)), None)
    pieces, size = [], 0
    with pa.input_stream(str(file), compression=compression) as stream:
        while piece := stream.read(_PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > _MOST_BYTES:
                raise _too_large(name, "more")
    return b"".join(pieces)


def _lines(file: Path, name: str) -> list[tuple[str, str]]:
    """Return the lines of a UTF-8 file with their ends, each with what is wrong if it is in another encoding."""
    data = _content(file, name)
    if data.startswith(_UTF16_BOMS):
        raise DataError(f"{name} is UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 {file.name} > NEW")
    count = data.count(b"\n") + data.count(b"\r")
    if count > 2 * _MOST_ROWS:
        raise _too_large(name, f"{count:,} line ends")
    offset = len(_BOM) if data.startswith(_BOM) else 0
    lines = []
    for line in data[offset:].splitlines(keepends=True):  # of bytes: at \n, \r\n and \r, and nothing else
        try:
            lines.append((line.decode(), ""))
        except UnicodeDecodeError as error:
            broken = (
                f"not UTF-8: byte 0x{line[error.start]:02X} at byte offset {offset + error.start} of the file. Save it "
                f"as UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8 (or whichever encoding it was written in)"
            )
            lines.append((line.decode(errors="replace"), broken))
        offset += len(line)
    return lines


class _Repeated(dict[str, object]):
    """A JSON object in which ``key`` stands more than once."""

    key: str


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    repeated = _Repeated(values)
    repeated.key = _repeated(key for key, _ in pairs)[0]
    return repeated


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text that may come from anybody.

    Raises:
        ValueError: it is not valid, is nested more than MOST_LEVELS deep, or has a number of thousands of digits.
    """
    too_deep = f"it is nested more than {MOST_LEVELS} levels deep"
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(too_deep) from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise
        raise ValueError(f"it has a number of more than {sys.get_int_max_str_digits():,} digits") from None
    if _has_more_levels(value, MOST_LEVELS):
        raise ValueError(too_deep)
    return value


def _has_more_levels(value: object, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [inner for outer in level for inner in _inner(outer) if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _inner(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _repeated_key(value: object) -> str | None:
    """Return a key that stands more than once in an object of a JSON value."""
    if isinstance(value, _Repeated):
        return value.key
    keys = (_repeated_key(each) for each in _inner(value) if isinstance(each, dict | list))
    return next((key for key in keys if key is not None), None)


def _jsonl_rows(file: Path, name: str) -> Iterator[Row]:
    """Yield one record per line; blank lines are skipped."""
    for number, (text, broken) in enumerate(_lines(file, name), start=1):
        if broken:
            yield Row(name, number, {}, broken)
        elif text.strip():
            try:
                yield _json_row(name, number, parse_json(text))
            except ValueError as error:
                yield Row(name, number, {}, f"the line is not valid JSON: {error}")


def _json_rows(file: Path, name: str) -> Iterator[Row]:
    """Yield the items of a file that is one JSON list of objects; their number is the position in the list."""
    lines = _lines(file, name)
    for number, (_, broken) in enumerate(lines, start=1):
        if broken:
            raise Row(name, number, {}).error(broken)
    try:
        items = parse_json("".join(text for text, _ in lines))
    except ValueError as error:
        raise DataError(f"{name} is not valid JSON: {error}. If each line is an object, name it .jsonl.") from error
    if not isinstance(items, list):
        raise DataError(f"{name} must hold a JSON list of objects, not {type(items).__name__}.")
    for number, item in enumerate(items, start=1):
        yield _json_row(name, number, item)


def _json_row(name: str, number: int, value: object) -> Row:
    if not isinstance(value, dict):
        return Row(name, number, {}, f"a row must be a JSON object, not {type(value).__name__}")
    repeated = _repeated_key(value)
    if repeated is not None:
        return Row(name, number, {}, f"the key {shown(repeated)} stands in one object more than once")
    return Row(name, number, value)


def _csv_rows(file: Path, name: str, delimiter: str | None = None) -> Iterator[Row]:
    """Yield the records below the header; a record's number is the line it starts in. Blank lines are skipped.

    Without a delimiter it is the one that spreadsheets write into a line above the header (``sep=;``), or else the one
    that the header shows: a comma, a semicolon or a tab.
    """
    lines = _lines(file, name)
    broken = {number: fault for number, (_, fault) in enumerate(lines, start=1) if fault}
    texts = [text for text, _ in lines]
    told = _DELIMITER_LINE.fullmatch(texts[0]) if texts else None
    if told:
        texts[0], delimiter = "\n", told["delimiter"]
    records = _csv_records(texts, delimiter or _delimiter(texts))
    first, _, header = next(records, (1, 1, []))
    if isinstance(header, str) or first in broken:
        raise Row(name, first, {}).error(f"the header cannot be read: {broken.get(first, header)}")
    repeated = _repeated(header)
    if repeated:
        raise Row(name, first, {}).error(f"the header names a column more than once: {listed(repeated)}", "Rename one.")
    for first, last, fields in records:
        fault = next((broken[line] for line in range(first, last + 1) if line in broken), "")
        if not fault and isinstance(fields, str):
            fault = f"not valid CSV: {fields}"
        elif not fault and len(fields) != len(header):
            fault = f"{len(fields)} fields, but the header has {len(header)}"
        yield Row(name, first, {} if fault else dict(zip(header, fields, strict=True)), fault)


def _delimiter(lines: list[str]) -> str:
    """Return what separates the columns of the header: a comma if it has one, as it should."""
    there = []
    for delimiter in ",;\t":
        _, _, header = next(_csv_records(lines, delimiter), (1, 1, []))
        if isinstance(header, list) and len(header) > 1:
            there.append(delimiter)
    return there[0] if len(there) == 1 else ","


def _csv_records(lines: list[str], delimiter: str) -> Iterator[tuple[int, int, list[str] | str]]:
    """Yield first line, last line, and fields of each record; what is wrong stands in the place of the fields."""
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, sum(map(len, lines))))  # otherwise texts over 131,072 characters are refused
    try:
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        while True:
            first = reader.line_num + 1
            try:
                fields: list[str] | str = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fields = str(error)
            if fields:
                yield first, reader.line_num, fields
    finally:
        csv.field_size_limit(limit)


READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
    ".tsv": partial(_csv_rows, delimiter="\t"),
}
"""The kinds of files that can be read, by the ending of their name."""


def read_id(value: object) -> str | None:
    """Return an id as a string, or None if it is none; whole numbers lose the decimal point that some tables add."""
    if isinstance(value, float | Decimal):
        value = _as_written(value)
    elif isinstance(value, uuid.UUID):
        value = str(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)
    return text if not is_blank(text) and is_unicode(text) else None


def _as_written(value: float | Decimal) -> str | int | None:
    """Return a decimal number as somebody would write it, or None if it may stand for several."""
    if not math.isfinite(value):
        return None
    if isinstance(value, float) and abs(value) >= 2**53:  # from where on several whole numbers are one float
        return None
    if value == int(value):
        return int(value)
    return repr(value) if isinstance(value, float) else f"{value.normalize():f}"


def text_problem(value: object) -> tuple[str, str] | None:
    """Return reason and detail of what keeps a value from being a text, or None if it is one."""
    if not isinstance(value, str):
        return "not text", f"the value is {type(value).__name__}, not text: {str(value)[:60]}"
    if is_blank(value):
        if not value.strip():
            return "empty text", "the text is only white space" if value else "the text is empty"
        return "empty text", "no character of the text can be seen"
    if len(value) > _MOST_CHARACTERS:
        return "long text", f"the text has {len(value):,} characters, and more than {_MOST_CHARACTERS:,} are not read"
    if not is_unicode(value):
        return "broken text", "the text holds half of a surrogate pair, which is no character"
    return None


def is_blank(text: str) -> bool:
    """Tell whether nothing of a text can be seen: it has only white space, zero-width and control characters."""
    return all(
        unicodedata.category(character) in _UNSEEN_CATEGORIES or character in _FILLERS for character in text.strip()
    )


def is_unicode(text: str) -> bool:
    """Tell whether a text holds no half of a surrogate pair, which nothing can write or send."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
