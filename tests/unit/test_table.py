"""The one table writer: what it shows and writes, and that no text of other people does anything in it."""

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from crosspref.maths.estimate import Change, Estimate
from crosspref.reports.table import Report, column_types, columns, csv_text, write_table


@dataclass(frozen=True, slots=True)
class Rate:
    """A row such as suites have."""

    model: str
    rate: Estimate
    change: Change = field(metadata=columns("difference", "low", "high", "p_value", "verdict", "n"))
    count: int


FORMULA = '=HYPERLINK("http://example.org")'
CHANGE = Change.of(Estimate(-1.5, -2.0, -1.0, 9), 0.25)
ROWS = [Rate(FORMULA, Estimate(50.0, math.nan, math.nan, 1), CHANGE, 3)]
NAMES = ["model", "rate", "rate_low", "rate_high", "difference", "low", "high", "p_value", "verdict", "n", "count"]


def test_an_estimate_is_spread_over_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "rates", ROWS, Rate)
    table = pq.read_table(tmp_path / "rates.parquet")
    assert table.column_names == NAMES == list(column_types(Rate))
    assert table.schema.field("n").type == table.schema.field("count").type == pa.int32()
    assert table.schema.field("rate_low").type == pa.float64()
    (row,) = table.to_pylist()
    assert (row["model"], row["rate"], row["difference"], row["n"], row["count"]) == (FORMULA, 50.0, -1.5, 9, 3)
    assert math.isnan(row["rate_low"])
    with (tmp_path / "rates.csv").open(encoding="utf-8", newline="") as file:
        (cells,) = csv.DictReader(file)
    assert list(cells) == NAMES
    assert (cells["model"], cells["rate"], cells["rate_low"], cells["p_value"]) == (f"'{FORMULA}", "50.0", "", "0.25")
    write_table(tmp_path / "none", [], Rate)
    assert pq.read_table(tmp_path / "none.parquet").schema == table.schema
    assert (tmp_path / "none.csv").read_text() == (tmp_path / "rates.csv").read_text().splitlines(keepends=True)[0]


def test_no_row_of_csv_ends_at_a_lone_carriage_return() -> None:
    text = csv_text(["=a", "b"], [["x\ry", None], ["z", 1.5]])
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["'=a", "b"], ["x\ry", ""], ["z", "1.5"]]


def test_unquoted_csv_has_numbers_as_they_were_rounded() -> None:
    texts = ["x y", "-", "-0.25", "+1e-05", "-1+1", FORMULA]
    lines = csv_text(["a"], [[-0.5], *([text] for text in texts)], quoted=False).splitlines()
    assert lines == ["a", "-0.5", *texts[:4], "'-1+1", '"' + f"'{FORMULA}".replace('"', '""') + '"']


def test_a_narrow_screen_cuts_nothing_and_folds_the_first_column() -> None:
    text = io.StringIO()
    report = Report("title", ["model", "a", "b"], [["m" * 50, "1" * 30, "2" * 30]], ["a note"], left=1)
    report.show(Console(file=text, width=40))
    assert "1" * 30 in text.getvalue()
    assert "2" * 30 in text.getvalue()
    assert max(map(len, text.getvalue().splitlines())) <= 30 + 60 + 6


def test_nothing_is_cut_on_a_terminal_that_is_called_dumb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of such a terminal nothing is known but that it is 80 columns wide, or so the library says."""
    monkeypatch.setenv("TERM", "dumb")
    text = io.StringIO()
    monkeypatch.setattr(text, "isatty", lambda: True, raising=False)
    names = [f"category {number}" for number in range(12)]
    Report("title", ["language", *names], [["es Spanish", *["5.25"] * 12]], []).show(Console(file=text))
    assert all(name in text.getvalue() for name in ["es Spanish", *names])


def test_estimates_as_texts() -> None:
    assert Estimate(0.5, 0.25, 0.75, 8).text(".0%") == "50% [25%, 75%]"
    assert Estimate(0.5, math.nan, math.nan, 1).text("+.1f") == "+0.5"
    assert Estimate(math.nan, math.nan, math.nan, 0).text(".1f") == ""
