"""Files as people have them: what is unambiguous is read, and what is not is a broken row or a sentence."""

import contextlib
import decimal
import gzip
import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspref.data import rows as module
from crosspref.data.rows import is_blank, parse_json, read_file, read_id, text_problem
from crosspref.errors import DataError

WANTED = [{"id": "7", "de": "Guten Tag"}, {"id": "8", "de": "Bis bald"}]


def read(path: Path, content: bytes | str | None = None) -> list[Any]:
    """Return the values of the rows in a file, and what is wrong with those that are broken."""
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [row.broken or row.values for row in read_file(path, path.name)]


def parquet(path: Path, columns: dict[str, Any]) -> list[Any]:
    pq.write_table(pa.table(columns), path)
    return read(path)


# --- JSON ---


def test_deep_nesting_breaks_a_row_and_no_more(tmp_path: Path) -> None:
    deep = '{"id": "0", "de": ' + "[" * 200_000 + "]" * 200_000 + "}"
    found = read(tmp_path / "x.jsonl", deep + "\n" + json.dumps(WANTED[0]) + '\n{"x": ' + "[" * 65 + "]" * 65 + "}")
    assert found[1] == WANTED[0]
    assert ["levels deep" in str(row) for row in found] == [True, False, True]
    with pytest.raises(DataError, match="levels deep"):
        read(tmp_path / "x.json", f"[{deep}]")
    with pytest.raises(ValueError, match="levels deep"):
        parse_json('{"a":' * 100_000)


def test_a_key_twice_breaks_a_row_wherever_it_stands(tmp_path: Path) -> None:
    lines = ['{"id": "7", "id": "8"}', '{"x": [{"role": "a", "role": "a"}]}', '{"id": "7", "x": {"id": "8"}}']
    for name, content in (("x.jsonl", "\n".join(lines)), ("x.json", f"[{','.join(lines)}]")):
        first, second, third = read(tmp_path / name, content)
        assert "'id'" in first
        assert "'role'" in second
        assert third == {"id": "7", "x": {"id": "8"}}


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    found = read(tmp_path / "x.jsonl", '{"a": NaN}\n{"a": -Infinity}\n{"a": ' + "9" * 6000 + "}\n")
    assert [type(row) for row in found] == [dict, dict, str]
    assert "4,300 digits" in found[2]
    assert [read_id(row["a"]) for row in found[:2]] == [None, None]


# --- ids and texts ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3.0, "3"), (1.5, "1.5"), (2.0**53, None), (float("nan"), None), (decimal.Decimal("3"), "3"),
     (decimal.Decimal("3.50"), "3.5"), (decimal.Decimal("100"), "100"), (2**64 - 1, str(2**64 - 1)), ("1.0", "1.0"),
     (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"), ("\u200b", None), (b"3", None), (True, None)],
)  # fmt: skip
def test_ids(value: object, expected: str | None) -> None:
    assert read_id(value) == expected


@pytest.mark.parametrize(
    "text", ["\u200b\u200d", "\ufeff", "\u00ad \u2060", "\u202e\u2066", "\ufe0f", "\u3164", "\x00"]
)
def test_what_cannot_be_seen_is_empty(text: str) -> None:
    assert text_problem(text) is not None
    assert is_blank(text)
    assert text_problem(f"{text}a{text}") is None


@given(st.text(), st.characters(categories=["Ll", "Lu", "Nd", "P", "Sm"]))
def test_a_text_with_a_letter_is_never_empty(text: str, letter: str) -> None:
    assert not is_blank(text + letter)
    assert is_blank(text) or text.strip()


def test_a_text_may_be_long_but_not_endless() -> None:
    assert text_problem("a" * 10_000_000) is None
    assert text_problem("a" * 10_000_001) is not None


# --- CSV ---


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t")])
def test_delimiters_and_line_ends(tmp_path: Path, ending: str, delimiter: str, end: str) -> None:
    lines = [delimiter.join(row) for row in (["id", "de"], ["7", "Guten Tag"], ["8", "Bis bald"])]
    assert read(tmp_path / f"x.{ending}", "\ufeff" + end.join(lines) + end) == WANTED


def test_a_comma_in_the_header_decides(tmp_path: Path) -> None:
    assert read(tmp_path / "x.csv", "id,a;b\n7,x;y\n") == [{"id": "7", "a;b": "x;y"}]
    assert read(tmp_path / "x.csv", '"id";"a, b"\n7;"x, y"\n') == [{"id": "7", "a, b": "x, y"}]
    assert read(tmp_path / "x.csv", "id;a\tb\n7;x\ty\n") == [{"id;a\tb": "7;x\ty"}]  # either could be meant


def test_a_spreadsheet_may_say_what_separates_columns(tmp_path: Path) -> None:
    assert read(tmp_path / "x.csv", "\ufeffsep=;\r\nid;a,b\r\n7;x,y\r\n") == [{"id": "7", "a,b": "x,y"}]
    [row] = read_file(tmp_path / "x.csv", "x")
    assert row.number == 3


def test_a_header_of_very_many_columns_is_soon_read(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(60_000)]
    with pytest.raises(DataError, match="more than once: c0"):
        read(tmp_path / "x.csv", ",".join([*names, "c0"]))
    [row] = read(tmp_path / "x.jsonl", "{" + ",".join(f'"{name}": 1' for name in [*names, "c9"]) + "}")
    assert "'c9'" in row


def test_line_ends_inside_quotes_stay(tmp_path: Path) -> None:
    assert read(tmp_path / "x.csv", b'id,de\r\n7,"a\rb\nc\r\nd"\r\n') == [{"id": "7", "de": "a\rb\nc\r\nd"}]


# --- compressed files ---


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_compressed_files(tmp_path: Path, name: str) -> None:
    text = "id,de\n7,Guten Tag\n8,Bis bald\n" if name == "x.csv" else json.dumps(WANTED)
    if name == "x.jsonl":
        text = "\n".join(map(json.dumps, WANTED))
    data = text.encode()
    assert read(tmp_path / f"{name}.gz", gzip.compress(data[:9]) + gzip.compress(data[9:])) == WANTED
    with pa.output_stream(str(tmp_path / f"{name}.zst"), compression="zstd") as stream:
        stream.write(data)
    assert read(tmp_path / f"{name}.zst") == WANTED
    for path in (tmp_path / f"{name}.gz", tmp_path / f"{name}.zst"):
        whole = path.read_bytes()
        for broken in (whole[:-1], whole[: len(whole) // 2]):
            with pytest.raises(DataError, match=path.name):
                read(path, broken)
        assert read(path, data) == WANTED  # a download that was unpacked on the way
        assert read(tmp_path / name, whole) == WANTED


def test_what_unpacks_to_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 10_000)
    with pytest.raises(DataError, match=r"x\.csv\.gz holds more"):
        read(tmp_path / "x.csv.gz", gzip.compress(b"a" * 20_000))
    pq.write_table(pa.table({"a": ["x" * 100] * 1000}), tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"x\.parquet holds more"):
        read(tmp_path / "x.parquet")
    monkeypatch.undo()
    monkeypatch.setattr(module, "_MOST_ROWS", 999)
    with pytest.raises(DataError, match="1,000 rows"):
        read(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="line ends"):
        read(tmp_path / "x.jsonl", "\n" * 2000)


@pytest.mark.parametrize("name", ["x.xlsx", "x.jsonl.bz2", "x.parquet.gz", "x.gz", "x"])
def test_kinds_that_are_not_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="Known kinds"):
        read(tmp_path / name, b"")


# --- Parquet ---


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]
)
def test_any_column_of_text_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    assert parquet(tmp_path / "x.parquet", {"de": pa.array(["Grüße\n", None], kind)}) == [
        {"de": "Grüße\n"},
        {"de": None},
    ]


def test_columns_of_other_types(tmp_path: Path) -> None:
    ids = [uuid.uuid4(), uuid.uuid4()]
    columns = {
        "uuid": pa.array([value.bytes for value in ids], pa.binary(16)),
        "unsigned": pa.array([2**64 - 1, 1], pa.uint64()),
        "decimal": pa.array([decimal.Decimal("7"), None], pa.decimal128(30, 2)),
        "dictionary": pa.array(["a", "b"]).dictionary_encode(),
        "nothing": pa.nulls(2),
        "messages": pa.array([[{"role": "user"}], []], pa.large_list(pa.struct({"role": pa.string()}))),
    }
    first, second = parquet(tmp_path / "x.parquet", columns)
    assert [read_id(first[name]) for name in ("uuid", "unsigned", "decimal")] == [str(ids[0]), str(2**64 - 1), "7"]
    assert (first["messages"], second["messages"]) == ([{"role": "user"}], [])
    assert (second["dictionary"], second["nothing"], read_id(second["uuid"])) == ("b", None, str(ids[1]))


def test_bytes_that_are_no_text_stay_bytes(tmp_path: Path) -> None:
    [first, second] = parquet(tmp_path / "x.parquet", {"de": pa.array([b"Gr\xfc\xdfe", b"Tag"])})
    assert text_problem(first["de"]) == ("not text", "the value is bytes, not text: b'Gr\\xfc\\xdfe'")
    assert second["de"] == "Tag"


def test_parquet_that_cannot_be_told(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["de", "de"])
    pq.write_table(twice, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="more than one column called de"):
        read(tmp_path / "x.parquet")
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\x00\x00\x00\x00\x01\x00\x00\x00"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"fr": ["a"], "de": broken}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet, column 'de' of type string, row 1:"):
        read(tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    for content in (b"", whole[:-5], whole[: len(whole) // 2]):
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            read(tmp_path / "x.parquet", content)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200), ending=st.sampled_from([*module.READERS, ".jsonl.gz", ".csv.zst"]))
def test_whatever_a_file_holds_it_is_rows_or_a_sentence(tmp_path_factory: Any, content: bytes, ending: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"x{ending}"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert all(row.broken or isinstance(row.values, dict) for row in read_file(path, "x"))
