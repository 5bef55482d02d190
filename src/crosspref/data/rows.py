"""The one reader of files with rows: JSONL, JSON, CSV and Parquet, and what can be wrong with a row.

A line that is no record becomes a `Row` that is ``broken``, so that the caller can report it and carry on; what makes a
whole file unreadable is a `DataError`. Nothing here knows which columns matter.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.parquet as pq

from crosspref.errors import DataError

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_SHOWN = 20


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
        language = f", language {self.language}" if self.language else ""
        prompt_id = f", id {self.prompt_id!r}" if self.prompt_id is not None else ""
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

    def number_in(self, column: str, advice: str = "") -> float:
        """Return the finite number in a column, which may be written as text; ``advice`` is part of the RowError."""
        value = self.values.get(column)
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self.error(f"{value!r} stands where a number is expected, in the column {column}", advice)
        return number


def column_names(rows: Iterable[Row]) -> list[str]:
    """Return the names of all columns that any row has, in the order of their first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row.values))


def read_file(file: Path, name: str) -> list[Row]:
    """Return the rows of a file in file order; ``name`` is what messages call it.

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


def read_parquet(file: Path, name: str) -> pa.Table:
    """Return the table in a Parquet file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return pq.ParquetFile(file).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read as Parquet: {error}") from error


def _parquet_rows(file: Path, name: str) -> Iterator[Row]:
    for number, values in enumerate(read_parquet(file, name).to_pylist(), start=1):
        yield Row(name, number, values)


def _lines(file: Path, name: str) -> list[tuple[str, str]]:
    r"""Return the lines of a UTF-8 file, split at ``\n`` only, each with what is wrong if it is in another encoding."""
    data = file.read_bytes()
    if data.startswith(_UTF16_BOMS):
        raise DataError(f"{name} is UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 {file.name} > NEW")
    offset = len(_BOM) if data.startswith(_BOM) else 0
    lines = []
    for line in data[offset:].split(b"\n"):
        try:
            lines.append((line.decode(), ""))
        except UnicodeDecodeError as error:
            broken = (
                f"not UTF-8: byte 0x{line[error.start]:02X} at byte offset {offset + error.start} of the file. Save it "
                f"as UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8 (or whichever encoding it was written in)"
            )
            lines.append((line.decode(errors="replace"), broken))
        offset += len(line) + 1
    return lines if lines[-1][0] else lines[:-1]


def _jsonl_rows(file: Path, name: str) -> Iterator[Row]:
    """Yield one record per line; blank lines are skipped."""
    for number, (text, broken) in enumerate(_lines(file, name), start=1):
        if broken:
            yield Row(name, number, {}, broken)
        elif text.strip():
            try:
                yield _json_row(name, number, json.loads(text))
            except ValueError as error:
                yield Row(name, number, {}, f"the line is not valid JSON: {error}")


def _json_rows(file: Path, name: str) -> Iterator[Row]:
    """Yield the items of a file that is one JSON list of objects; their number is the position in the list."""
    lines = _lines(file, name)
    for number, (_, broken) in enumerate(lines, start=1):
        if broken:
            raise Row(name, number, {}).error(broken)
    try:
        items = json.loads("\n".join(text for text, _ in lines))
    except ValueError as error:
        raise DataError(f"{name} is not valid JSON: {error}. If each line is an object, name it .jsonl.") from error
    if not isinstance(items, list):
        raise DataError(f"{name} must hold a JSON list of objects, not {type(items).__name__}.")
    for number, item in enumerate(items, start=1):
        yield _json_row(name, number, item)


def _json_row(name: str, number: int, value: object) -> Row:
    if isinstance(value, dict):
        return Row(name, number, value)
    return Row(name, number, {}, f"a row must be a JSON object, not {type(value).__name__}")


def _csv_rows(file: Path, name: str) -> Iterator[Row]:
    """Yield the records below the header; a record's number is the line it starts in. Blank lines are skipped."""
    lines = _lines(file, name)
    broken = {number: fault for number, (_, fault) in enumerate(lines, start=1) if fault}
    records = _csv_records([text + "\n" for text, _ in lines])
    _, _, header = next(records, (1, 1, []))
    if isinstance(header, str) or 1 in broken:
        raise Row(name, 1, {}).error(f"the header cannot be read: {broken.get(1, header)}")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise Row(name, 1, {}).error(f"the header names a column more than once: {', '.join(repeated)}", "Rename one.")
    for first, last, fields in records:
        fault = next((broken[line] for line in range(first, last + 1) if line in broken), "")
        if not fault and isinstance(fields, str):
            fault = f"not valid CSV: {fields}"
        elif not fault and len(fields) != len(header):
            fault = f"{len(fields)} fields, but the header has {len(header)}"
        yield Row(name, first, {} if fault else dict(zip(header, fields, strict=True)), fault)


def _csv_records(lines: list[str]) -> Iterator[tuple[int, int, list[str] | str]]:
    """Yield first line, last line, and fields of each record; what is wrong stands in the place of the fields."""
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, sum(map(len, lines))))  # otherwise texts over 131,072 characters are refused
    try:
        reader = csv.reader(lines, strict=True)
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
}
"""The kinds of files that can be read, by the ending of their name."""


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


def is_unicode(text: str) -> bool:
    """Tell whether a text holds no half of a surrogate pair, which nothing can write or send."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
