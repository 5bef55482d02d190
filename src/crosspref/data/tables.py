"""crosspref's own tables as files that people bring or take away: Parquet or JSONL, checked against the record."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crosspref.data.messages import ROLES
from crosspref.data.records import Dropped, FinishReason, Pair, Response, Translation, from_table, schema_of, to_table
from crosspref.data.rows import (
    UNREADABLE,
    Row,
    RowError,
    column_names,
    column_values,
    read_file,
    read_id,
    read_parquet,
    split_name,
)
from crosspref.errors import DataError, shown
from crosspref.escape import json_text, listed
from crosspref.languages import as_tag, language_name
from crosspref.paths import existing, replacing

Values: TypeAlias = "pa.ChunkedArray | list[Any]"
"""A column of a Parquet file, or of JSONL."""

DEFAULTS: dict[type, dict[str, Any]] = {
    Response: {"token_ids": None, "finish_reason": "stop", "seed": None, "sample": None, "thinking_tokens": None},
    Translation: {"target": "en", "token_ids": None, "finish_reason": "stop", "failure": None},
    Pair: {"language": "en", **{field.name: field.default for field in fields(Pair) if field.default is not MISSING}},
}
"""Columns that may be left out, and their values; samples are then numbered in the order of the file."""

ROUNDING = 0.1
"""By how many nats the log-probability of a long response may be above 0."""

IMPOSSIBLE: list[tuple[set[str], Callable[[pa.Array], pa.Array], str]] = [
    (
        {"sample", "chosen_sample", "rejected_sample", "thinking_tokens", "tokens", "characters", "seed"},
        lambda column: pc.less(column, 0),
        "a whole number from 0 on",
    ),
    (
        {"token_ids", "chosen_token_ids", "rejected_token_ids"},
        lambda column: pc.fill_null(pc.less(column, 0), True),
        "a list of token ids, which are numbers from 0 on",
    ),
    (
        {"policy_logprob", "reference_logprob", "reference_chosen_logprob", "reference_rejected_logprob"},
        lambda column: pc.invert(pc.less_equal(column, ROUNDING)),  # also of NaN; of a ruled-out token it is -inf
        "a log-probability, which is at most 0",
    ),
    (
        {"implicit_reward", "chosen_reward", "rejected_reward", "alpha"},
        lambda column: pc.invert(pc.is_finite(column)),
        "a finite number; where there is none, leave it empty",
    ),
]
"""Columns, which of their values are impossible, and what they should be."""

_TAG_COLUMNS = frozenset({"language", "target"})

_KINDS: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "text": (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary),
    ),
    "a number": (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    "a truth value": (pa.types.is_boolean,),
}
"""What single values are. Arrow would cast one to another: a number to text, text to a number, a truth value to 1."""

KEYS = ("iteration", "prompt_id", "language", "sample", "target", "reward", "other", "stage", "measure")
"""The columns that identify a row, where its record has them; pairs of one prompt differ in their answers."""


def read_rows(path: str | Path, kind: type) -> list[Any]:
    """Read the rows of one kind from a ``.parquet`` or ``.jsonl`` file; other columns are not even looked at.

    JSONL may be compressed, as ``.jsonl.gz`` or ``.jsonl.zst``.

    Of a directory, such as a run's ``iteration_1/responses``, all ``.parquet`` files below it are read, in the order of
    their paths.

    Raises:
        DataError: a file cannot be read, or a column is missing.
        RowError: a row is broken, lacks a value, has one of the wrong type or an impossible one (a reward that is not
            finite, a negative length, an unknown language, a message without a role), or the key of an earlier row.
        FileError: the path may not be looked at.
    """
    place = existing(path)
    if place is None:
        raise DataError(f"There is no file {path}.")
    path = Path(path)
    if place.is_dir():
        files = sorted(place.rglob("*.parquet"))
        if not files:
            raise DataError(f"There is no .parquet file in the directory {path}.")
        rows = [row for file in files for row in read_rows(file, kind)]
        _check_keys(rows, path, range(1, len(rows) + 1))
        return rows
    given = _read(path, place, kind)
    if split_name(path)[1] == ".jsonl" and not given.names:
        return []  # without a line there is no object that would name the columns
    columns = {field.name: _column(given, field, kind) for field in fields(kind)}
    for name in _TAG_COLUMNS & columns.keys():
        tags = [as_tag(language) for language in columns[name].to_pylist()]
        columns[name] = pa.chunked_array([pa.array(tags, pa.string())])
    if kind is Response and "sample" not in given.names:
        columns["sample"] = _numbered(columns)
    _require_possible(given, columns)
    if kind is not Dropped:  # which also tells of languages that nobody knows
        _require_languages(given, columns)
    rows = from_table(pa.table(columns), kind)
    if kind is Pair:
        _require_messages(given, rows)
    rows = [_with_ids_or_none(row) for row in rows]
    _check_keys(rows, path, given.numbers)
    return rows


def write_rows(path: str | Path, rows: Sequence[Any], kind: type) -> None:
    """Write rows as Parquet, or as JSONL if the name ends so.

    Raises:
        DataError: the file's ending is another one.
        FileError: it cannot be written.
    """
    path = Path(path)
    table = to_table(list(rows), kind)
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            pq.write_table(table, temporary, compression="zstd")
        elif path.suffix == ".jsonl":
            lines = (f"{json_text(row)}\n" for row in table.to_pylist())
            temporary.write_text("".join(lines), encoding="utf-8")
        else:
            raise DataError(f"{path} must end with .parquet or .jsonl.")


@dataclass(frozen=True, slots=True)
class _Given:
    """What a file has: the names of all its columns, those that are read, and the number of each row in the file."""

    path: Path
    names: Sequence[str]
    columns: Mapping[str, Values]
    numbers: Sequence[int]

    def error(self, row: int, detail: str) -> RowError:
        """Return the error of the row at a position, from 0."""
        return Row(str(self.path), self.numbers[row], {}).error(detail)


def _read(path: Path, place: Path, kind: type) -> _Given:
    """Read the columns of a kind of rows from a file that lies at ``place`` and was named ``path``."""
    wanted = [field.name for field in fields(kind)]
    ending = split_name(path)[1]
    if ending == ".parquet":
        table, names = read_parquet(place, str(path), wanted)
        columns = {name: table.column(name) for name in table.column_names}
        return _Given(path, names, columns, range(1, len(table) + 1))
    if ending != ".jsonl":
        raise DataError(f"{path} must end with .parquet or .jsonl.")
    rows = read_file(place, str(path))
    for row in rows:
        if row.broken:
            raise row.error(row.broken)
    names = column_names(rows)
    values = {name: [row.values.get(name) for row in rows] for name in wanted if name in names}
    return _Given(path, names, values, [row.number for row in rows])


def _column(given: _Given, field: Field[Any], kind: type) -> pa.ChunkedArray:
    """Return one column of a record in its type, or its default."""
    name, expected, defaults = field.name, schema_of(kind).field(field.name).type, DEFAULTS.get(kind, {})
    if name not in given.columns:
        if name in defaults:
            return pa.chunked_array([pa.array([defaults[name]] * len(given.numbers), type=expected)])
        needed = [other.name for other in fields(kind) if other.name not in defaults]
        raise DataError(
            f"{given.path} has no column {name!r}; it has {listed(given.names)}. "
            f"A table of {kind.__name__.lower()}s needs: {', '.join(needed)}."
        )
    values = given.columns[name]
    if name == "prompt_id":
        values = _ids(values, f"{given.path}, column {name!r}")
    try:
        column = _typed(values, expected)
    except UNREADABLE as error:
        row, reason = _first_misfit(values, expected, error)
        detail = f"the column {name!r} must be of type {expected}, and cannot be read: {reason}"
        raise given.error(row, detail) from error
    if column.null_count and type(None) not in get_args(field.type):
        raise given.error(column.is_null().index(True).as_py(), f"the column {name!r} must not be empty")
    return column


def _typed(values: Values, expected: pa.DataType) -> pa.ChunkedArray:
    """Return values in a type, and see that they are what the type says, such as text in UTF-8.

    A whole number may be written as 3.0, but a number, a text and a truth value never become one another.
    """
    if isinstance(values, list):  # first in a type of their own, from which 3.0 becomes 3, but not 3.5
        if not pa.types.is_boolean(expected) and any(isinstance(value, bool) for value in values):
            raise pa.ArrowTypeError(f"the value is bool, not {expected}")  # beside 0.5, Arrow would read true as 1.0
        values = pa.table([pa.array(values)], [""]).column(0)
    _require_kind(values.type, expected)
    column = values.cast(expected)
    column.validate(full=True)
    return column


def _require_kind(given: pa.DataType, expected: pa.DataType) -> None:
    """Raise pa.ArrowTypeError where a text, a number or a truth value stands in the place of another of them."""
    if pa.types.is_dictionary(given):
        given = given.value_type
    if pa.types.is_list(expected) and hasattr(given, "value_type"):
        _require_kind(given.value_type, expected.value_type)
    elif pa.types.is_struct(expected) and pa.types.is_struct(given):
        for field in expected:
            if field.name in given.names:
                _require_kind(given.field(field.name).type, field.type)
    elif not pa.types.is_null(given):
        kind = next((name for name, checks in _KINDS.items() if any(check(expected) for check in checks)), None)
        if kind and not any(check(given) for check in _KINDS[kind]):
            raise pa.ArrowTypeError(f"the value is {given}, not {kind}")


def _first_misfit(values: Values, expected: pa.DataType, error: BaseException) -> tuple[int, str]:
    """Return the first row whose value has not the expected type, and why; ``error`` is that of the whole column."""
    for row in range(len(values)):
        try:
            _typed(values[row : row + 1] if isinstance(values, list) else values.slice(row, 1), expected)
        except UNREADABLE as reason:
            return row, _first_line(reason)
    kinds = [type(value) for value in values] if isinstance(values, list) else []
    first = next((kind for kind in kinds if kind is not type(None)), type(None))
    row = next((row for row, kind in enumerate(kinds) if kind not in (first, type(None))), 0)
    return row, _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]


def _require_possible(given: _Given, columns: Mapping[str, pa.ChunkedArray]) -> None:
    """Raise RowError for numbers that cannot be what their column says."""
    for name, column in columns.items():
        for names, is_impossible, what in IMPOSSIBLE:
            row = _first_row(column, is_impossible) if name in names else None
            if row is not None:
                raise given.error(row, f"{shown(column[row].as_py())} in the column {name!r} is not {what}")


def _require_languages(given: _Given, columns: Mapping[str, pa.ChunkedArray]) -> None:
    """Raise RowError for a language that nobody knows, with similar ones."""
    for name in [name for name in columns if name in _TAG_COLUMNS]:
        for tag in columns[name].unique().to_pylist():
            try:
                language_name(tag)
            except DataError as error:
                row = columns[name].index(tag).as_py()
                raise given.error(row, f"the column {name!r} has the {error}") from None


def _first_row(column: pa.ChunkedArray, is_impossible: Callable[[pa.Array], pa.Array]) -> int | None:
    """Return the first row with an impossible value; in a list, any of its values counts."""
    start = 0
    for chunk in column.chunks:
        is_list = pa.types.is_list(chunk.type)
        place = is_impossible(chunk.flatten() if is_list else chunk).index(True).as_py()
        if place >= 0:
            ends = np.cumsum(pc.fill_null(pc.list_value_length(chunk), 0).to_numpy()) if is_list else None
            return start + (place if ends is None else int(np.searchsorted(ends, place, side="right")))
        start += len(chunk)
    return None


def _require_messages(given: _Given, pairs: Sequence[Pair]) -> None:
    """Raise RowError for a pair whose prompt or answers are no messages; an answer may be empty."""
    for row, pair in enumerate(pairs):
        for column in ("prompt", "chosen", "rejected"):
            messages = getattr(pair, column)
            if not messages:
                raise given.error(row, f"the column {column!r} has no message")
            for number, message in enumerate(messages, start=1):
                if message is None or message["role"] not in ROLES or message["content"] is None:
                    detail = f"message {number} of the column {column!r} is not a role ({', '.join(ROLES)}) and a text"
                    raise given.error(row, detail)
            if (messages[-1]["role"] == "assistant") == (column == "prompt"):
                detail = f"the last message of the column {column!r} is of {messages[-1]['role']!r}"
                raise given.error(row, detail)


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


def _ids(values: Values, what: str) -> Values:
    """Return ids as they are read of prompts, which they are joined with."""
    if not isinstance(values, list):
        if pa.types.is_string(values.type):
            return values
        values = column_values(values, what)
    return [read_id(value) for value in values]


def _numbered(columns: dict[str, Any]) -> pa.ChunkedArray:
    counters: defaultdict[tuple[str, str], count[int]] = defaultdict(count)
    keys = zip(columns["prompt_id"].to_pylist(), columns["language"].to_pylist(), strict=True)
    return pa.chunked_array([pa.array([next(counters[key]) for key in keys], type=pa.int32())])


def _check_keys(rows: Sequence[Any], path: Path, numbers: Sequence[int]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for row, number in zip(rows, numbers, strict=True):
        key = tuple(getattr(row, name) for name in KEYS if hasattr(row, name))
        if isinstance(row, Pair):
            key += (row.chosen[-1]["content"], row.rejected[-1]["content"])
        if isinstance(row, Response | Translation) and row.finish_reason not in get_args(FinishReason):
            detail = f"finish_reason must be stop or length, not {shown(row.finish_reason)}"
            raise Row(str(path), number, {}).error(detail)
        if key in seen:
            raise Row(str(path), number, {}).error(f"duplicate key {shown(key)}")
        seen.add(key)
