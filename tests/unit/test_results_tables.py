"""The tables that suites write: what is not known is empty, and a text of a model is no formula of a spreadsheet."""

import csv
import math
from pathlib import Path

import pyarrow.parquet as pq

from crosspref.suites.results import Judgement, write_table


def test_texts_of_models_are_no_formulas(tmp_path: Path) -> None:
    answer, judgement = '=HYPERLINK("http://example.org")', "@SUM(A1)\rx"  # and no row ends at a lone carriage return
    row = Judgement("pi_0", "es", "81", "writing", 1, answer, "plain", math.nan, "prose", judgement, "j", "", "k")
    write_table(tmp_path / "judgements", [row], Judgement)
    with (tmp_path / "judgements.csv").open(encoding="utf-8", newline="") as file:
        (cells,) = csv.DictReader(file)
    assert (cells["answer"], cells["judgement"], cells["score"]) == (f"'{answer}", f"'{judgement}", "")
    assert (cells["turn"], cells["failure"]) == ("1", "prose")
    (stored,) = pq.read_table(tmp_path / "judgements.parquet").to_pylist()
    assert stored["answer"] == answer
