"""What the suite nlp makes of the items' values: scores, the alignment tax, and what it says of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from crosspref.engines import EngineSettings
from crosspref.maths.estimate import NO_DIFFERENCE
from crosspref.run.progress import Reporter
from crosspref.suites.nlp.results import ItemScore, Measured, write_results
from crosspref.suites.settings import EvaluationSettings, NlpSettings
from crosspref.suites.work import Candidate, Evaluation, Target

LANGUAGES = ["en", "es", "fr"]
ITEMS = 400


def work(folder: Path, *models: str) -> Evaluation:
    settings = EvaluationSettings(resamples=1000, nlp=NlpSettings(data="data"))
    target = Target(folder, [Candidate(name, None) for name in models], EngineSettings())
    return Evaluation(settings, target, Reporter())


def items(values: np.ndarray, measure: str = "acc", first: int = 0) -> list[ItemScore]:
    return [ItemScore(f"q{first + number}", measure, float(value)) for number, value in enumerate(values)]


def results(folder: Path) -> list[dict[tuple[str, ...], Any]]:
    """Return the stored scores and changes by what they are of."""
    keys = {"scores": ("model", "language", "task", "measure"), "changes": ("model", "other", "language", "rate")}
    return [
        {
            tuple(row[name] for name in names): SimpleNamespace(**row)
            for row in pq.read_table(folder / "nlp" / f"{table}.parquet").to_pylist()
        }
        for table, names in keys.items()
    ]


def lost(right: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The same answers, some of the right ones now wrong."""
    return right * (np.random.default_rng(seed).random(right.size) > share)


def made_up() -> Measured:
    """pi_0 answers as pi_I does; pi_1 loses a tenth of the right answers in Spanish, and one item in French."""
    found = Measured("0.4.13", LANGUAGES)
    for number, language in enumerate(LANGUAGES):
        right = (np.random.default_rng(number).random(ITEMS) < 0.5).astype(float)
        later = lost(right, 0.1, 9) if language == "es" else right
        if language == "fr":
            later = right.copy()
            later[np.flatnonzero(right)[0]] = 0
        for model, values in (("pi_I", right), ("pi_0", right), ("pi_1", later)):
            found.add(model, "mmlu", language, items(values))
    return found


def test_the_tax_is_shown_where_it_is_and_nowhere_else(tmp_path: Path) -> None:
    found = made_up()
    reports = write_results(work(tmp_path, "pi_I", "pi_0", "pi_1"), found)
    scores, changes = results(tmp_path)
    assert {key[:2] for key in changes} == {("pi_0", "pi_I"), ("pi_1", "pi_I"), ("pi_1", "pi_0")}
    for (model, other, language, _), row in changes.items():
        gap = scores[model, language, "mmlu", "acc"].score - scores[other, language, "mmlu", "acc"].score
        assert row.difference == pytest.approx(gap, abs=1e-9)
        worse = model == "pi_1" and language in ("es", "mean")
        assert row.verdict == ("worse" if worse else NO_DIFFERENCE), (model, other, language)
    spanish = changes["pi_1", "pi_0", "es", "mmlu acc"]
    assert spanish.low < spanish.difference < spanish.high < 0
    assert spanish.n == ITEMS
    # On the same items: narrower by far than two scores of four hundred items would let one think.
    score = scores["pi_1", "es", "mmlu", "acc"]
    assert spanish.high - spanish.low < 0.6 * (score.high - score.low)
    # Sign flips of k lost items are 2 / 2^k by themselves, and three languages are adjusted for.
    french = changes["pi_1", "pi_0", "fr", "mmlu acc"]
    assert (french.difference, french.p_value) == (pytest.approx(-100 / ITEMS), 1.0)
    assert reports[-1].title.startswith("Alignment tax")
    assert [row[0] for row in reports[0].rows if row[0]] == ["en English", "es Spanish", "fr French", "mean"]


def test_holm_over_languages(tmp_path: Path) -> None:
    """Six items lost and none won is 2 / 2^6 by sign flips: enough in one language alone, and not of three."""
    for languages, verdict in ((["es"], "worse"), (LANGUAGES, NO_DIFFERENCE)):
        found = Measured("0.4.13", languages)
        for language in languages:
            before, after = np.ones(60), np.ones(60)
            after[:6] = language != "es"
            found.add("pi_I", "arc", language, items(before))
            found.add("pi_0", "arc", language, items(after))
        write_results(work(tmp_path / verdict, "pi_I", "pi_0"), found)
        row = results(tmp_path / verdict)[1]["pi_0", "pi_I", "es", "arc acc"]
        assert row.p_value == pytest.approx(len(languages) * 2 / 2**6)
        assert row.verdict == verdict
        assert row.high < 0


def test_only_shared_items_are_compared_and_ids_are_joined(tmp_path: Path) -> None:
    found = Measured("0.4.13", ["es"])
    found.add("pi_I", "arc", "es", items(np.array([1.0, 0.0, 1.0, 1.0])))
    found.add("pi_0", "arc", "es", items(np.array([0.0, 1.0, 0.0]), first=1)[::-1])
    write_results(work(tmp_path, "pi_I", "pi_0"), found)
    scores, changes = results(tmp_path)
    row = changes["pi_0", "pi_I", "es", "arc acc"]
    # q1: 0 -> 0, q2: 1 -> 1, q3: 1 -> 0
    assert (row.n, row.difference) == (3, pytest.approx(-100 / 3))
    assert (scores["pi_I", "es", "arc", "acc"].score, scores["pi_I", "es", "arc", "acc"].n) == (75.0, 4)


def test_a_mean_is_over_the_same_languages_for_all(tmp_path: Path) -> None:
    found = Measured("0.4.13", ["en", "es"])
    found.add("pi_I", "truthfulqa", "es", items(np.array([0.2, 0.4]), "mc2"))
    found.add("pi_0", "truthfulqa", "es", items(np.array([0.5, 0.7]), "mc2"))
    found.add("pi_0", "truthfulqa", "en", items(np.array([0.9, 0.5]), "mc2"))
    found.miss("pi_I en truthfulqa", "the memory does not suffice", lambda _: None)
    reports = write_results(work(tmp_path, "pi_I", "pi_0"), found)
    scores, changes = results(tmp_path)
    assert ("pi_I", "mean", "truthfulqa", "mc2") not in scores
    assert scores["pi_0", "mean", "truthfulqa", "mc2"].score == pytest.approx((60 + 70) / 2)
    assert {key[2] for key in changes} == {"es"}
    assert "Not measured: pi_I en truthfulqa: the memory does not suffice" in reports[0].notes
    about = json.loads((tmp_path / "nlp" / "scores.json").read_text(encoding="utf-8"))
    assert about["missing"] == {"pi_I en truthfulqa": "the memory does not suffice"}
    assert about["tasks"]["truthfulqa"]["names"] == {
        "en": ["truthfulqa_mc1", "truthfulqa_mc2"],
        "es": ["truthfulqa_es_mc1", "truthfulqa_es_mc2"],
    }


def test_the_order_in_which_things_were_measured_changes_nothing(tmp_path: Path) -> None:
    forward = made_up()
    backward = Measured("0.4.13", LANGUAGES)
    backward.values = dict(reversed(forward.values.items()))
    for name, found in (("forward", forward), ("backward", backward)):
        write_results(work(tmp_path / name, "pi_I", "pi_0", "pi_1"), found)
    for file in ("scores.csv", "changes.csv", "scores.json"):
        assert (tmp_path / "forward" / "nlp" / file).read_text() == (tmp_path / "backward" / "nlp" / file).read_text()


def test_one_model_has_no_changes(tmp_path: Path) -> None:
    found = Measured("0.4.13", ["es"])
    found.add("owner/model", "arc", "es", items(np.array([1.0])))
    (report,) = write_results(work(tmp_path, "owner/model"), found)
    assert report.rows == [["es Spanish", "owner/model", "100.0", "1"]]
    assert results(tmp_path)[1] == {}


def test_an_item_without_a_value_is_left_out_and_counted(tmp_path: Path) -> None:
    found = Measured("0.4.13", ["es"])
    found.add("m", "truthfulqa", "es", [*items(np.array([1.0, 0.0]), "mc1"), *items(np.array([0.4, np.nan]), "mc2")], 3)
    found.add("n", "truthfulqa", "es", [*items(np.array([1.0, 1.0]), "mc1"), *items(np.array([np.nan] * 2), "mc2")])
    (report,) = write_results(work(tmp_path, "m", "n"), found)
    cells = [(row[1], row[2][:5], *row[3:]) for row in report.rows]
    assert cells == [("m", "50.0 ", "40.0", "2"), ("n", "100.0", "", "2")]
    cut = "m es truthfulqa: 3 choices longer than the model's context, cut on the left, 1 items without a value of mc2"
    assert report.notes[-2:] == [cut, "n es truthfulqa: 2 items without a value of mc2"]
