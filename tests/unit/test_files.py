"""Tables that people bring or take away: round trips, and every fault named with file, row and column."""

import json
import math
import struct
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosspref.data import records
from crosspref.data.records import (
    Agreement,
    Dropped,
    Measure,
    Pair,
    Prompt,
    Response,
    Score,
    Translation,
    from_table,
    schema_of,
    to_table,
)
from crosspref.data.rows import RowError
from crosspref.data.tables import read_rows, write_rows
from crosspref.errors import DataError


def chat(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


USER, GOOD, BAD = chat("user", "¿Qué?"), chat("assistant", "Sí\u2028"), chat("assistant", "")
EXAMPLES: dict[type, list[Any]] = {
    Prompt: [Prompt("a", "es", "¿Qué\nes? 👍"), Prompt("a", "zh-hant", "“什麼”")],
    Response: [
        Response("a", "es", 0, "\u2028", [1, 2**31 - 1], "stop", 2**63 - 1),
        Response("a", "es", 7, "", None, "length", None),
    ],
    Translation: [
        Translation("a", "es", 0, "en", "Yes\u2028", [5, 6], "stop", None),
        Translation("a", "es", 0, "fr", "", None, "length", "empty"),
    ],
    Score: [
        Score("a", "es", 0, "crosslingual", -1e-300, -12345.678901234567, 3, 4, 0.1 + 0.2),
        Score("a", "es", 1, "translated", None, None, None, 4, None),
    ],
    Pair: [
        Pair("a", "es", USER, GOOD, BAD, 3, 0, [5], [6, 7], 0.5, -0.5, -1e-9),
        Pair("b", "en", [*chat("system", "Kurz."), *USER], GOOD, BAD, *[None] * 7),
    ],
    Agreement: [Agreement(1, "es", "crosslingual", "multilingual", 0.5, -0.0, 1.0, 8, 0.5, 0.25, 0.125, 0.0, 8)],
    Dropped: [Dropped("a", "es", "select", "1 | 2"), Dropped("a", "es", "train", "too long")],
    Measure: [
        Measure(0, "es", "truncated", 0.5, 0.25, 0.75, 8, 2),
        Measure(1, "es", "truncated", 0.5, -0.0, 1.0, 8, 2),
    ],
}
ANSWER = {"prompt_id": "a", "language": "es", "text": "hola"}


def write(tmp_path: Path, rows: list[Any], name: str = "table.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def error_of(path: Path, kind: type) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(path, kind)
    assert str(path) in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


def problem_of(path: Path, kind: type) -> tuple[str, int, str]:
    with pytest.raises(RowError) as caught:
        read_rows(path, kind)
    [problem] = caught.value.problems
    return problem.file, problem.row, problem.detail


def test_every_record_has_a_schema_and_an_example() -> None:
    assert set(EXAMPLES) == {kind for kind in vars(records).values() if is_dataclass(kind)}
    for kind in EXAMPLES:
        assert [field.name for field in fields(kind)] == schema_of(kind).names


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_round_trip(tmp_path: Path, kind: type, ending: str) -> None:
    path = tmp_path / "new folder" / f"rows.{ending}"
    write_rows(path, EXAMPLES[kind], kind)
    assert read_rows(path, kind) == EXAMPLES[kind]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert from_table(to_table(EXAMPLES[kind], kind), kind) == EXAMPLES[kind]


def test_a_token_that_is_ruled_out_has_no_probability_and_its_response_no_reward(tmp_path: Path) -> None:
    rows = [Score("a", "es", 0, "crosslingual", -math.inf, -3.0, 3, 4, None)]
    for name in ("x.jsonl", "x.parquet"):
        write_rows(tmp_path / name, rows, Score)
        assert read_rows(tmp_path / name, Score) == rows


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Score, {"implicit_reward": math.nan}),
        (Score, {"implicit_reward": -math.inf}),
        (Score, {"policy_logprob": math.nan}),
        (Score, {"reference_logprob": 0.5}),
        (Score, {"reference_logprob": math.inf}),
        (Score, {"tokens": -1}),
        (Score, {"characters": -1}),
        (Score, {"sample": -1}),
        (Score, {"language": "klingon"}),
        (Response, {"token_ids": [4, None]}),
        (Response, {"token_ids": [-3]}),
        (Response, {"thinking_tokens": -1}),
        (Response, {"seed": -1}),
        (Response, {"language": ""}),
        (Response, {"finish_reason": "eos"}),
        (Translation, {"target": "xx-yy"}),
        (Translation, {"finish_reason": ""}),
        (Pair, {"chosen_reward": math.nan}),
        (Pair, {"rejected_reward": math.inf}),
        (Pair, {"alpha": math.nan}),
        (Pair, {"reference_chosen_logprob": 3.0}),
        (Pair, {"rejected_token_ids": [None]}),
        (Pair, {"language": "en-us-" + "us-" * 3000 + "x"}),
        (Pair, {"prompt": []}),
        (Pair, {"chosen": []}),
        (Pair, {"chosen": [None]}),
        (Pair, {"rejected": [{"role": "assistant", "content": None}]}),
        (Pair, {"rejected": [{"role": None, "content": "x"}]}),
        (Pair, {"prompt": [{"role": "wizard", "content": "x"}]}),
        (Pair, {"prompt": [{"role": "assistant", "content": "x"}]}),
        (Pair, {"chosen": [{"role": "user", "content": "x"}]}),
    ],
)
def test_impossible_values_name_row_and_column(kind: type, change: dict[str, Any], ending: str, tmp_path: Path) -> None:
    sound = to_table(EXAMPLES[kind], kind).to_pylist()
    table = pa.Table.from_pylist([*sound, {**sound[0], **change}], schema_of(kind))
    path = tmp_path / f"x.{ending}"
    if ending == "parquet":
        pq.write_table(table, path, row_group_size=1)
    else:
        write(tmp_path, table.to_pylist(), path.name)
    file, row, detail = problem_of(path, kind)
    assert (file, row) == (str(path), 3)
    assert next(iter(change)) in detail
    assert len(detail) < 500


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_no_rows(tmp_path: Path, ending: str) -> None:
    write_rows(tmp_path / f"x.{ending}", [], Dropped)
    assert read_rows(tmp_path / f"x.{ending}", Dropped) == []


@pytest.mark.parametrize("ending", ["csv", "json", "parquet.tmp"])
def test_other_endings(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    with pytest.raises(DataError, match=r"must end with \.parquet or \.jsonl"):
        write_rows(path, EXAMPLES[Prompt], Prompt)
    assert list(tmp_path.iterdir()) == []
    path.write_text("")
    assert error_of(path, Prompt) == "FILE must end with .parquet or .jsonl."


def test_defaults_and_numbering(tmp_path: Path) -> None:
    # Samples are numbered per prompt and language, in the order of the file.
    keys = [("a", "es"), ("b", "es"), ("a", "es"), ("a", "fr"), ("a", "es")]
    rows = [{"prompt_id": prompt, "language": tag, "text": "x", "model": "theirs"} for prompt, tag in keys]
    found = read_rows(write(tmp_path, rows), Response)
    assert [row.sample for row in found] == [0, 0, 1, 0, 2]
    assert [(row.prompt_id, row.language) for row in found] == keys
    assert {(row.text, row.token_ids, row.finish_reason, row.seed) for row in found} == {("x", None, "stop", None)}


def test_pairs_need_nothing_but_the_texts(tmp_path: Path) -> None:
    # Keys of a message in another order, and one that is not ours.
    prompt = [{"content": "¿Qué?", "role": "user", "name": "x"}]
    row = {"prompt_id": "a", "prompt": prompt, "chosen": GOOD, "rejected": BAD}
    [pair] = read_rows(write(tmp_path, [row]), Pair)
    assert pair == Pair("a", "en", USER, GOOD, BAD, *[None] * 7)


def test_a_column_that_only_later_rows_have_is_not_lost(tmp_path: Path) -> None:
    rows = [ANSWER, {**ANSWER, "token_ids": [4, 5], "seed": 9}]
    first, second = read_rows(write(tmp_path, rows), Response)
    assert (first.token_ids, first.seed, second.token_ids, second.seed) == (None, None, [4, 5], 9)


def test_an_empty_list_of_ids_beside_a_text_is_none(tmp_path: Path) -> None:
    rows = [{**ANSWER, "token_ids": []}, {**ANSWER, "token_ids": [4]}, {**ANSWER, "text": "", "token_ids": []}]
    assert [row.token_ids for row in read_rows(write(tmp_path, rows), Response)] == [None, [4], []]
    sides = {"prompt": USER, "chosen": GOOD, "rejected": BAD}
    row = {"prompt_id": "a", **sides, "chosen_token_ids": [], "rejected_token_ids": [3], "chosen_ended": False}
    [pair] = read_rows(write(tmp_path, [row]), Pair)
    assert (pair.chosen_token_ids, pair.rejected_token_ids, pair.chosen_ended) == (None, [3], False)


def test_columns_that_nobody_reads_may_hold_anything(tmp_path: Path) -> None:
    rows = [{**ANSWER, "more": {"a": 1}}, {**ANSWER, "more": "x"}, {**ANSWER, "more": [2**80], "\ud800": 1}]
    assert len(read_rows(write(tmp_path, rows), Response)) == 3


def test_ids_may_be_texts_and_numbers(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, [{**ANSWER, "prompt_id": value} for value in ("a", 7, 8.0)]), Response)
    assert [row.prompt_id for row in rows] == ["a", "7", "8"]


def test_bytes_that_are_no_text_name_their_row(tmp_path: Path) -> None:
    ends = pa.py_buffer(struct.pack("4i", 0, 1, 2, 4))
    text = pa.StringArray.from_buffers(3, ends, pa.py_buffer(b"ab\xff\xfe"))
    keys = {"prompt_id": ["a", "b", "c"], "language": ["es"] * 3}
    pq.write_table(pa.table({**keys, "text": text}), tmp_path / "x.parquet")
    file, row, detail = problem_of(tmp_path / "x.parquet", Response)
    assert (file, row) == (str(tmp_path / "x.parquet"), 3)
    assert "'text'" in detail


def test_other_types_that_say_the_same(tmp_path: Path) -> None:
    [row] = read_rows(write(tmp_path, [{**ANSWER, "prompt_id": 7, "sample": 3.0}]), Response)
    assert (row.prompt_id, row.sample) == ("7", 3)
    for kind in (pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())):
        columns = {name: pa.array([value]).cast(kind) for name, value in ANSWER.items()}
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        [row] = read_rows(tmp_path / "x.parquet", Response)
        assert (row.prompt_id, row.language, row.text) == ("a", "es", "hola")
    for name, value in {"text": 7, "sample": datetime(2026, 1, 1), "token_ids": [True]}.items():
        pq.write_table(pa.table({**columns, name: [value]}), tmp_path / "x.parquet")
        assert f"column {name!r} must be of type" in problem_of(tmp_path / "x.parquet", Response)[2]


SCORE = to_table([Score("a", "es", 0, "crosslingual", -1.0, -2.0, 3, 9, 0.1)], Score).to_pylist()[0]


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        (Response, [{"prompt_id": "a", "language": "es"}], "column 'text'; it has prompt_id, language. A table of r"),
        (Response, [{"text": "x", "language": "es"}], "column 'prompt_id'; it has text, language."),
        (Score, [{**ANSWER}], "column 'sample'; it has prompt_id, language, text. A table of scores needs: "),
        (Pair, [{"prompt_id": "a"}], "column 'prompt'; it has prompt_id. A table of pairs needs: prompt_id, "),
    ],
)
def test_columns_that_cannot_be_used(tmp_path: Path, kind: type, rows: list[Any], said: str) -> None:
    assert said in error_of(write(tmp_path, rows), kind)


KEY = {"prompt_id": "a", "language": "es", "instruction": "?"}
SIDES = {"prompt_id": "a", "prompt": USER, "chosen": GOOD, "rejected": BAD}


@pytest.mark.parametrize(
    ("kind", "rows", "row", "detail"),
    [
        (Score, [SCORE, {**SCORE, "sample": None}], 2, "'sample'"),
        (Score, [{**SCORE, "characters": None}], 1, "'characters'"),
        (Response, [ANSWER, {**ANSWER, "text": None}], 2, "'text'"),
        (Response, [ANSWER, "", {"text": "x", "language": "es"}], 3, "'prompt_id'"),
        (Score, [SCORE, SCORE], 2, "('a', 'es', 0, 'crosslingual')"),
        (Response, [{**ANSWER, "sample": 1}, {**ANSWER, "sample": 1, "text": "other"}], 2, "('a', 'es', 1)"),
        (Prompt, [KEY, KEY], 2, "('a', 'es')"),
        (Response, [ANSWER, {**ANSWER, "finish_reason": "eos"}], 1, "'finish_reason'"),
        (Response, [{**ANSWER, "finish_reason": "eos"}], 1, "stop or length, not 'eos'"),
        (Response, [ANSWER, "{"], 2, "not valid JSON"),
        (Response, ["", ANSWER, "[1]"], 3, "a JSON object, not list"),
        (Response, [ANSWER, {**ANSWER, "token_ids": "1 2"}], 2, "'token_ids' must be of type list<item: int32>"),
        (Response, [ANSWER, {**ANSWER, "token_ids": [1.5]}], 2, "'token_ids'"),
        (Response, [ANSWER, "", {**ANSWER, "token_ids": [2**31]}], 3, "'token_ids'"),
        (Response, [ANSWER, {**ANSWER, "sample": "first"}], 2, "'sample' must be of type int32"),
        (Response, [ANSWER, {**ANSWER, "seed": 2**64}], 2, "'seed' must be of type int64"),
        (Response, [ANSWER, {**ANSWER, "text": 7}], 2, "'text' must be of type string"),
        (Response, [{**ANSWER, "text": 7}, {**ANSWER, "text": 8}], 1, "'text' must be of type string"),
        (Response, [{**ANSWER, "text": True}], 1, "'text' must be of type string"),
        (Response, [{**ANSWER, "text": None}], 1, "'text'"),
        (Response, [{**ANSWER, "language": 5}], 1, "'language' must be of type string"),
        (Response, [ANSWER | {"sample": 1}, ANSWER | {"sample": True}], 2, "'sample' must be of type int32"),
        (Response, [ANSWER | {"seed": "3"}], 1, "'seed' must be of type int64"),
        (Response, [ANSWER | {"token_ids": [True]}], 1, "'token_ids' must be of type list<item: int32>"),
        (Response, [ANSWER, ANSWER | {"token_ids": ["3"]}], 2, "'token_ids' must be of type list<item: int32>"),
        (Score, [SCORE, {**SCORE, "sample": 1, "implicit_reward": True}], 2, "'implicit_reward'"),
        (Score, [{**SCORE, "policy_logprob": "-1.0"}], 1, "'policy_logprob' must be of type double"),
        (Pair, [SIDES | {"chosen_ended": 1}], 1, "'chosen_ended' must be of type bool"),
        (Prompt, [KEY | {"instruction": 5}], 1, "'instruction' must be of type string"),
        (Pair, [{**SIDES, "chosen": [{"role": "assistant", "content": 5}]}], 1, "'chosen'"),
        (Pair, [SIDES, {**SIDES, "prompt": [{"role": "user", "content": False}]}], 2, "'prompt'"),
        (Response, [ANSWER, {**ANSWER, "text": ["x"]}], 2, "'text' must be of type string"),
        (Response, [ANSWER, '{"prompt_id": "b", "language": "es", "text": "\\ud800"}'], 2, "'text'"),
        (Response, [ANSWER, {**ANSWER, "prompt_id": [1]}], 2, "'prompt_id'"),
        (Response, [ANSWER, {**ANSWER, "language": "klingon"}], 2, "'klingon'"),
        (Score, [SCORE, {**SCORE, "implicit_reward": "high"}], 2, "'implicit_reward'"),
        (Pair, [{"prompt_id": "a", "prompt": "?", "chosen": GOOD, "rejected": BAD}], 1, "'prompt'"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, kind: type, rows: list[Any], row: int, detail: str) -> None:
    path = write(tmp_path, rows)
    assert problem_of(path, kind)[:2] == (str(path), row)
    assert detail in problem_of(path, kind)[2]


def test_a_prompt_may_have_several_pairs_but_none_twice(tmp_path: Path) -> None:
    # As language imbalance makes them in English: one chosen answer, and a translation from each other language.
    pair = {"prompt_id": "a", "prompt": USER, "chosen": GOOD, "rejected": BAD}
    other = {**pair, "rejected": chat("assistant", "No")}
    assert len(read_rows(write(tmp_path, [pair, other]), Pair)) == 2
    assert problem_of(write(tmp_path, [pair, other, pair]), Pair)[1] == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.parquet", Prompt) == "There is no file FILE."
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 half")
    assert error_of(tmp_path / "cut.parquet", Prompt).startswith("FILE cannot be read as Parquet: ")
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    assert problem_of(tmp_path / "latin.jsonl", Prompt)[1] == 1
