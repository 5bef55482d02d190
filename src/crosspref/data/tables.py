"""crosspref's own tables as files that people bring or take away: Parquet or JSONL, checked against the record."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, replace
from itertools import count
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from crosspref.data.records import FinishReason, Pair, Response, Translation, from_table, schema_of, to_table
from crosspref.data.rows import Row, column_names, column_values, read_file, read_id, read_parquet, split_name
from crosspref.errors import DataError
from crosspref.escape import json_text, listed
from crosspref.languages import as_tag
from crosspref.paths import writing

DEFAULTS: dict[type, dict[str, Any]] = {
    Response: {"token_ids": None, "finish_reason": "stop", "seed": None, "sample": None, "thinking_tokens": None},
    Translation: {"target": "en", "token_ids": None, "finish_reason": "stop", "failure": None},
    Pair: {"language": "en", **{field.name: field.default for field in fields(Pair) if field.default is not MISSING}},
}
"""Columns that may be left out, and their values; samples are then numbered in the order of the file."""

KEYS = ("iteration", "prompt_id", "language", "sample", "target", "reward", "other", "stage", "measure")
"""The columns that identify a row, where its record has them; pairs of one prompt differ in their answers."""


def read_rows(path: str | Path, kind: type) -> list[Any]:
    """Read the rows of one kind from a ``.parquet`` or ``.jsonl`` file; other columns are left out.

    JSONL may be compressed, as ``.jsonl.gz`` or ``.jsonl.zst``.

    Of a directory, such as a run's ``iteration_1/responses``, all ``.parquet`` files below it are read, in the order of
    their paths.

    Raises:
        DataError: a file cannot be read, a column is missing, or a value has the wrong type.
        RowError: a row is broken, lacks a value, or has the key of an earlier one.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        if not files:
            raise DataError(f"There is no .parquet file in the directory {path}.")
        rows = [row for file in files for row in read_rows(file, kind)]
        _check_keys(rows, path, range(1, len(rows) + 1))
        return rows
    table, numbers = _read(path)
    if split_name(path)[1] == ".jsonl" and not table.column_names:
        return []  # without a line there is no object that would name the columns
    columns = {field.name: _column(path, table, numbers, field, kind) for field in fields(kind)}
    for name in columns.keys() & {"language", "target"}:
        columns[name] = _tags(columns[name])
    if kind is Response and "sample" not in table.column_names:
        columns["sample"] = _numbered(columns)
    rows = [_with_ids_or_none(row) for row in from_table(pa.table(columns), kind)]
    _check_keys(rows, path, numbers)
    return rows


def write_rows(path: str | Path, rows: Sequence[Any], kind: type) -> None:
    """Write rows as Parquet, or as JSONL if the name ends so.

    Raises:
        DataError: the file's ending is another one.
        FileError: it cannot be written.
    """
    path = Path(path)
    table = to_table(list(rows), kind)
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(table, temporary, compression="zstd")
        elif path.suffix == ".jsonl":
            lines = (f"{json_text(row)}\n" for row in table.to_pylist())
            temporary.write_text("".join(lines), encoding="utf-8")
        else:
            raise DataError(f"{path} must end with .parquet or .jsonl.")
        temporary.replace(path)


def _read(path: Path) -> tuple[pa.Table, Sequence[int]]:
    """Return every column that any row has, and the number of each row in the file."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    ending = split_name(path)[1]
    if ending == ".parquet":
        table = read_parquet(path, str(path))
        return table, range(1, len(table) + 1)
    if ending != ".jsonl":
        raise DataError(f"{path} must end with .parquet or .jsonl.")
    rows = read_file(path, str(path))
    for row in rows:
        if row.broken:
            raise row.error(row.broken)
    columns = {}
    for name in column_names(rows):  # ``from_pylist`` would take those of the first row alone
        try:
            columns[name] = pa.array([row.values.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"{path}, column {name!r} cannot be read: {error}") from error
    return pa.table(columns), [row.number for row in rows]


def _column(path: Path, table: pa.Table, numbers: Sequence[int], field: Field[Any], kind: type) -> pa.Array:
    """Return one column of a record in its type, or its default."""
    expected, defaults = schema_of(kind).field(field.name).type, DEFAULTS.get(kind, {})
    if field.name not in table.column_names:
        if field.name in defaults:
            return pa.array([defaults[field.name]] * len(table), type=expected)
        needed = [other.name for other in fields(kind) if other.name not in defaults]
        raise DataError(
            f"{path} has no column {field.name!r}; it has {listed(table.column_names)}. "
            f"A table of {kind.__name__.lower()}s needs: {', '.join(needed)}."
        )
    try:
        column = _ids(table.column(field.name)) if field.name == "prompt_id" else table.column(field.name)
        column = column.cast(expected)
    except pa.ArrowException as error:
        raise DataError(f"{path}, column {field.name!r}: {error}. It must be of type {expected}.") from error
    if column.null_count and type(None) not in get_args(field.type):
        number = numbers[column.is_null().index(True).as_py()]
        raise Row(str(path), number, {}).error(f"the column {field.name!r} must not be empty")
    return column


def _with_ids_or_none(row: Any) -> Any:
    """Return a row in which an empty list of ids beside a text is None: the text came without ids."""
    if isinstance(row, Response | Translation):
        texts = {"token_ids": row.text}
    elif isinstance(row, Pair):
        texts = {"chosen_token_ids": row.chosen[-1]["content"], "rejected_token_ids": row.rejected[-1]["content"]}
    else:
        return row
    without = {name: None for name, text in texts.items() if text and getattr(row, name) == []}
    return replace(row, **without) if without else row


def _ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ids as they are read of prompts, which they are joined with."""
    if pa.types.is_string(column.type):
        return column
    return pa.chunked_array([pa.array([read_id(value) for value in column_values(column, "prompt_id")], pa.string())])


def _tags(column: pa.Array) -> pa.Array:
    """Return the languages in the spelling of tags, of which a recipe's languages are."""
    values = column.to_pylist()
    tags = {value: as_tag(value) for value in set(values)}
    return column if all(value == tag for value, tag in tags.items()) else pa.array([tags[value] for value in values])


def _numbered(columns: dict[str, Any]) -> pa.Array:
    counters: defaultdict[tuple[str, str], count[int]] = defaultdict(count)
    keys = zip(columns["prompt_id"].to_pylist(), columns["language"].to_pylist(), strict=True)
    return pa.array([next(counters[key]) for key in keys], type=pa.int32())


def _check_keys(rows: Sequence[Any], path: Path, numbers: Sequence[int]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for row, number in zip(rows, numbers, strict=True):
        key = tuple(getattr(row, name) for name in KEYS if hasattr(row, name))
        if isinstance(row, Pair):
            key += (row.chosen[-1]["content"], row.rejected[-1]["content"])
        if key in seen:
            raise Row(str(path), number, {}).error(f"duplicate key {key}")
        if isinstance(row, Response) and row.finish_reason not in get_args(FinishReason):
            detail = f"finish_reason must be stop or length, not {row.finish_reason!r}"
            raise Row(str(path), number, {}).error(detail)
        seen.add(key)
