"""The laboratory's results: from numbers of seeds to tables, verdicts and the page of evidence."""

import math
import shutil
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from crosspref.errors import DataError, RunError
from crosspref.lab.world.evidence import CLAIMS, verdict, write_evidence
from crosspref.lab.world.experiment import lab_recipe, settings_digest
from crosspref.lab.world.files import WorldFiles
from crosspref.lab.world.measure import policy_to_keep, without_english
from crosspref.lab.world.studies import (
    BASE,
    ENGLISH_GOLD,
    STUDIES,
    Result,
    difference,
    from_csv,
    report,
    run_study,
    summaries,
    to_csv,
)
from crosspref.maths.estimate import Estimate
from crosspref.maths.statistics import difference_interval
from crosspref.recipe.files import make_recipe, merged

LANGUAGES = ("en", "es", "de", "ru", "sw")


def results(study: str, golds: dict[tuple[str, int], list[float]]) -> list[Result]:
    """Results in which all languages but English have one gold, and English has 1 more; a number per seed."""
    measured = {"accuracy": None, "tokens": 9.0, "fidelity": 1.0}

    def values(gold: float, iteration: int) -> dict[str, float | None]:
        return {"gold": round(gold, 4), "win_rate": 0.5 if iteration else None, **measured}

    return [
        Result(study, variant, seed, iteration, language, values(gold + (language == "en"), iteration), "abc", "1.2.3")
        for (variant, iteration), golds_by_seed in golds.items()
        for seed, gold in enumerate(golds_by_seed)
        for language in LANGUAGES
    ]


REFERENCE = results(
    "reference",
    {
        (BASE, 0): [0.5, 0.6],
        (BASE, 1): [0.6, 0.72],
        (BASE, 2): [0.7, 0.84],
        ("previous policy", 0): [0.5, 0.6],
        ("previous policy", 1): [0.6, 0.72],
        ("previous policy", 2): [0.75, 0.85],
    },
)


def test_a_paired_difference_and_its_interval() -> None:
    left, right = [1.0, 2.0, 4.0, 3.5], [0.5, 2.5, 3.0, 3.0]
    found, expected = difference_interval(left, right), ttest_rel(left, right).confidence_interval()
    assert found.value == pytest.approx(0.375)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.n == 4
    one = difference_interval([2.0], [0.5])
    assert one.value == 1.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)


@pytest.mark.parametrize(("left", "right"), [([1.0], [1.0, 2.0]), ([], []), ([math.nan], [1.0])])
def test_what_has_no_difference(left: list[float], right: list[float]) -> None:
    with pytest.raises(ValueError, match="value"):
        difference_interval(left, right)


def test_english_is_left_out_of_the_mean() -> None:
    assert without_english({"en": 5.0, "es": 1.0, "de": 2.0}) == 1.5
    assert math.isnan(without_english({"en": 5.0}))


def test_results_survive_a_file(tmp_path: Path) -> None:
    (tmp_path / "reference.csv").write_text(to_csv(REFERENCE), encoding="utf-8")
    assert from_csv(tmp_path / "reference.csv") == REFERENCE


def test_a_file_with_other_columns(tmp_path: Path) -> None:
    (tmp_path / "reference.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="other columns"):
        from_csv(tmp_path / "reference.csv")


def test_summaries_gather_seeds_and_name_pi_0_once() -> None:
    rows = summaries(REFERENCE)
    named = [(row.variant, row.iteration) for row in rows]
    assert named == [("pi_0", 0), (BASE, 1), ("previous policy", 1), (BASE, 2), ("previous policy", 2)]
    assert rows[1].text("gold") == "0.660 (0.085)"
    assert rows[1].values[ENGLISH_GOLD] == pytest.approx({0: 1.6, 1: 1.72})
    assert rows[0].text("win_rate") == ""
    assert difference(rows[4], rows[3]).value == pytest.approx(0.03)
    assert difference(rows[4], rows[3], ENGLISH_GOLD).value == pytest.approx(0.03)


def test_a_table_of_a_study() -> None:
    table = report(REFERENCE)
    assert table.rows[-1][:3] == ["previous policy", "pi_2", "0.800 (0.071)"]
    assert table.rows[-1][-1].startswith("+0.030 [")
    assert table.rows[-2][-1] == ""  # the first of its iteration is what the others are compared with
    assert table.notes[0].startswith("2 seeds (0 to 1).")


@pytest.mark.parametrize(
    ("low", "high", "sign", "expected"),
    [
        (0.1, 0.3, 1, "reproduced"),
        (-0.3, -0.1, 1, "reversed"),
        (-0.1, 0.3, 1, "not reproduced"),
        (-0.3, -0.1, -1, "reproduced"),
        (0.1, 0.3, -1, "reversed"),
        (math.nan, math.nan, 1, "not reproduced"),
    ],
)
def test_a_verdict(low: float, high: float, sign: int, expected: str) -> None:
    assert verdict(Estimate((low + high) / 2, low, high, 8), sign) == expected


def test_the_page_of_evidence(tmp_path: Path) -> None:
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "reference.csv").write_text(to_csv(REFERENCE), encoding="utf-8")
    text = write_evidence(tmp_path / "evidence").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| claim |" not in line]
    improved = next(row for row in rows if "One iteration with R_c improves" in row)
    # Two seeds, differences .10 and .12: the interval is .11 +- 12.7 * .0141 / sqrt(2).
    assert "**not reproduced** | gold +0.110 [-0.017, +0.237] | 2 |" in improved
    assert sum("not measured yet" in row for row in rows) == sum(claim.study != "reference" for claim in CLAIMS)
    assert (tmp_path / "evidence" / "reference.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert "](evidence/reference.svg)" in text


def test_the_committed_page_and_figures_are_those_of_the_committed_results(tmp_path: Path) -> None:
    committed = Path(__file__).parents[2] / "docs"
    shutil.copytree(committed / "evidence", tmp_path / "evidence", ignore=shutil.ignore_patterns("*.svg"))
    write_evidence(tmp_path / "evidence")
    for path in tmp_path.rglob("*.*"):
        assert path.read_bytes() == (committed / path.relative_to(tmp_path)).read_bytes(), path.name
    assert len(list(tmp_path.rglob("*.svg"))) == len(STUDIES)
    for path in (tmp_path / "evidence").glob("*.csv"):
        assert to_csv(from_csv(path)) == path.read_text(encoding="utf-8")


def test_evidence_without_results(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no results"):
        write_evidence(tmp_path)


def test_every_claim_names_what_its_study_measures() -> None:
    for claim in CLAIMS:
        study = STUDIES[claim.study]
        for variant, iteration in (claim.better, claim.worse):
            assert variant in study.variants or (variant, iteration) == ("pi_0", 0), claim
            assert iteration <= study.iterations, claim


def test_every_variant_is_a_recipe_of_its_own() -> None:
    content = lab_recipe(WorldFiles(Path("/nowhere")), 1, 1)
    for name, study in STUDIES.items():
        variants = []
        for variant in study.variants.values():
            changes = dict(variant.changes)
            if variant.given.rating:
                changes["reward"] = {**changes["reward"], "reward_model": "/nowhere"}
            make_recipe(merged(content, changes))
            variants.append((settings_digest(merged(content, changes)), variant.given, variant.needs_translator))
        assert len(variants) == len({str(variant) for variant in variants}), name


def test_an_unknown_study_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no study 'reward'. Known: rewards, length"):
        run_study("reward", [1], tmp_path, jobs=1, threads=1)


def test_which_policy_to_keep() -> None:
    steady = {0: {"en": 0.97, "sw": 0.93}, 1: {"en": 0.98, "sw": 0.97}, 2: {"en": 0.97, "sw": 0.91}}
    assert policy_to_keep(steady) == (2, "")
    kept, why = policy_to_keep({**steady, 3: {"en": 0.91, "sw": 0.86}, 4: {"en": 0.97, "sw": 0.93}})
    assert kept == 2
    assert why == "pi_3 mixes languages (answers without a foreign word: en 97% to 91%, sw 93% to 86%)"
