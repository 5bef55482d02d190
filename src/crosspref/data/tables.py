"""Tables as files that people bring or take away: Parquet or JSONL, checked against the record they hold."""

import json
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from crosspref.data.records import SCHEMAS, FinishReason, Pair, Response, Translation, from_table, to_table
from crosspref.errors import DataError

DEFAULTS: dict[type, dict[str, Any]] = {
    Response: {"token_ids": None, "finish_reason": "stop", "seed": None, "sample": None},
    Translation: {"target": "en", "token_ids": None, "finish_reason": "stop", "failure": None},
    Pair: {
        "language": "en",
        "chosen_sample": None,
        "rejected_sample": None,
        "chosen_token_ids": None,
        "rejected_token_ids": None,
        "chosen_reward": None,
        "rejected_reward": None,
        "alpha": None,
        "reference_chosen_logprob": None,
        "reference_rejected_logprob": None,
    },
}
"""Columns that may be left out, and what stands for them; samples are then numbered in the order of the file."""

KEYS = ("iteration", "prompt_id", "language", "sample", "target", "reward", "other", "stage", "measure")
"""The columns that identify a row, where its record has them; pairs of one prompt differ in their answers."""


def read_rows(path: str | Path, kind: type) -> list[Any]:
    """Read the rows of one kind from a ``.parquet`` or ``.jsonl`` file; other columns are left out.

    Of a directory, such as a run's ``iteration_1/responses``, all ``.parquet`` files below it are read, in the order of
    their paths.

    Raises:
        DataError: a file cannot be read, a column is missing, a value has the wrong type, or a key is double.
    """
    path = Path(path)
    if path.is_dir():
        return _read_below(path, kind)
    table = _read(path)
    if path.suffix == ".jsonl" and not table.column_names:
        return []  # without a line there is no object that would name the columns
    columns = {}
    for field in fields(kind):
        expected = SCHEMAS[kind].field(field.name).type
        if field.name in table.column_names:
            try:
                columns[field.name] = table.column(field.name).cast(expected)
            except pa.ArrowException as error:
                raise DataError(f"{path}, column {field.name!r}: {error}. It must be of type {expected}.") from error
            _check_nothing_missing(columns[field.name], field, path)
        elif field.name in DEFAULTS.get(kind, {}):
            columns[field.name] = pa.array([DEFAULTS[kind][field.name]] * len(table), type=expected)
        else:
            needed = [other.name for other in fields(kind) if other.name not in DEFAULTS.get(kind, {})]
            raise DataError(
                f"{path} has no column {field.name!r}; it has {', '.join(table.column_names) or 'none'}. "
                f"A table of {kind.__name__.lower()}s needs: {', '.join(needed)}."
            )
    if kind is Response and "sample" not in table.column_names:
        columns["sample"] = _numbered(columns)
    rows = from_table(pa.table(columns), kind)
    _check_keys(rows, path)
    return rows


def write_rows(path: str | Path, rows: Sequence[Any], kind: type) -> None:
    """Write rows as Parquet, or as JSONL if the name ends so.

    Raises:
        DataError: the file's ending is another one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = to_table(list(rows), kind)
    temporary = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".parquet":
        pq.write_table(table, temporary, compression="zstd")
    elif path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) for row in table.to_pylist())
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    else:
        raise DataError(f"{path} must end with .parquet or .jsonl.")
    temporary.replace(path)


def _read_below(directory: Path, kind: type) -> list[Any]:
    files = sorted(directory.rglob("*.parquet"))
    if not files:
        raise DataError(f"There is no .parquet file in the directory {directory}.")
    rows = [row for file in files for row in read_rows(file, kind)]
    _check_keys(rows, directory)
    return rows


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        if path.suffix == ".parquet":
            return pq.ParquetFile(path).read()
        if path.suffix != ".jsonl":
            raise DataError(f"{path} must end with .parquet or .jsonl.")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        return _table(path, [_object(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()])
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _table(path: Path, objects: Sequence[dict[str, Any]]) -> pa.Table:
    """Return a table of every column that any of the objects has; ``from_pylist`` would take the first one's only."""
    columns = {}
    for name in dict.fromkeys(name for row in objects for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in objects])
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"{path}, column {name!r} cannot be read: {error}") from error
    return pa.table(columns)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}, line {number} must be a JSON object, but it is a {type(content).__name__}.")
    return content


def _numbered(columns: dict[str, Any]) -> pa.Array:
    seen: dict[tuple[str, str], int] = {}
    numbers = []
    for key in zip(columns["prompt_id"].to_pylist(), columns["language"].to_pylist(), strict=True):
        numbers.append(seen.get(key, 0))
        seen[key] = numbers[-1] + 1
    return pa.array(numbers, type=pa.int32())


def _check_nothing_missing(column: pa.ChunkedArray, field: Field[Any], path: Path) -> None:
    if column.null_count and type(None) not in get_args(field.type):
        row = column.is_null().index(True).as_py() + 1
        raise DataError(f"{path}, row {row}: the column {field.name!r} must not be empty.")


def _check_keys(rows: Sequence[Any], path: Path) -> None:
    seen: set[tuple[Any, ...]] = set()
    for number, row in enumerate(rows, start=1):
        key = tuple(getattr(row, name) for name in KEYS if hasattr(row, name))
        if isinstance(row, Pair):
            key += (row.chosen[-1]["content"], row.rejected[-1]["content"])
        if key in seen:
            raise DataError(f"{path}, row {number}: the key {key} is there twice.")
        if isinstance(row, Response) and row.finish_reason not in get_args(FinishReason):
            raise DataError(f"{path}, row {number}: finish_reason must be stop or length, not {row.finish_reason!r}.")
        seen.add(key)
