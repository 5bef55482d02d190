"""From verdicts to the rates of X-AlpacaEval: what the settings and files make of the mathematics."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alpaca_world import draw_comparisons, draw_gamed
from scipy.special import expit

from crosspref.data.rows import RowError
from crosspref.engines import find_engine
from crosspref.errors import DataError, MissingLibraryError
from crosspref.maths.alpaca import Comparisons, Gamed, win_rates
from crosspref.maths.estimate import NO_DIFFERENCE
from crosspref.suites.results import MEAN, ModelChange, pairs_of
from crosspref.suites.settings import XAlpacaSettings
from crosspref.suites.xalpaca import rates as rates_module
from crosspref.suites.xalpaca.files import Controls, read_controls
from crosspref.suites.xalpaca.rates import Compared, Place, Rates, measure

ITEMS = 200
GAMED = draw_gamed(ITEMS)
DIFFICULTY = GAMED.difficulty[:ITEMS]


def rows(given: Comparisons) -> list[Compared]:
    """The same comparisons with the ids and places that items of X-AlpacaEval have: from 1, and from 0."""
    columns = zip(given.items, given.outcomes, given.model_lengths, given.baseline_lengths, strict=True)
    return [Compared(str(item + 1), item, float(y) + 1, int(ours), int(theirs)) for item, y, ours, theirs in columns]


def table(path: Path, gamed: Gamed = GAMED) -> Path:
    """alpaca_eval's gamed table as a file."""
    columns = zip([*range(ITEMS)] * 2, gamed.outcomes, gamed.lengths, gamed.difficulty, strict=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "preference", "std_delta_len", "instruction_difficulty", "model"])
        writer.writerows([[item, repr(float(y)), repr(float(d)), repr(float(h)), "g"] for item, y, d, h in columns])
    return path


def with_difficulty_of(gamed: Gamed, given: Comparisons, *, held: bool) -> Comparisons:
    parts = given.items, given.outcomes, given.model_lengths, given.baseline_lengths
    return Comparisons(*parts, DIFFICULTY, gamed if held else None)


def drawn(seed: int, *skills: float) -> list[Comparisons]:
    return draw_comparisons(np.random.default_rng(seed), ITEMS, skills)


def by_difficulty(seed: int = 0) -> Comparisons:
    """Verdicts that follow the difficulty of the gamed table's items, and the answers' lengths."""
    draw = np.random.default_rng(seed)
    lengths = [np.floor(np.exp(draw.normal(mean, 0.6, ITEMS))) for mean in (7.5, 7.3)]
    logits = 0.7 + 1.5 * DIFFICULTY - 1.2 * np.tanh((lengths[1] - lengths[0]) / 1000)
    return Comparisons(tuple(range(ITEMS)), expit(logits + draw.normal(0, 0.5, ITEMS)), *lengths, None, None)


def measured(
    given: dict[Place, Sequence[Compared]], controls: Controls, said: list[str] | None = None
) -> tuple[dict[Place, Rates], list[ModelChange]]:
    return measure(given, controls, resamples=100, seed=1, say=[].append if said is None else said.append)


def test_lc_is_that_of_the_mathematics_with_the_files_joined_by_place(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    given = by_difficulty()
    fit = find_engine("fit", "liblinear")
    controls = read_controls(XAlpacaSettings(gamed=str(table(tmp_path / "gamed.csv"))))
    found = measured({("m", "en"): rows(given)}, controls)[0]["m", "en"]
    expected = win_rates(with_difficulty_of(GAMED, given, held=True), fit)
    assert found.lc_kind == "LC"
    assert (found.wr.value, found.lc.value) == pytest.approx((expected.win_rate, expected.lc), abs=1e-9)
    assert found.lc.low < found.lc.value < found.lc.high

    difficulty = tmp_path / "difficulty.json"
    content = [{"id": item + 1, "instruction_difficulty": value} for item, value in enumerate(DIFFICULTY)]
    difficulty.write_text(json.dumps(content))
    controls = read_controls(XAlpacaSettings(difficulty=str(difficulty)))
    found = measured({("m", "en"): rows(given)}, controls)[0]["m", "en"]
    expected = win_rates(with_difficulty_of(GAMED, given, held=False), fit)
    assert found.lc_kind == "LC-noreg"
    assert found.lc.value == pytest.approx(expected.lc, abs=1e-9)


def test_an_item_less_moves_difficulties_only_where_the_paper_had_it_so(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    given = rows(by_difficulty())
    path = str(table(tmp_path / "gamed.csv"))
    found = {
        compat: measured({("m", "en"): given[1:]}, read_controls(XAlpacaSettings(gamed=path, paper_compat=compat)))
        for compat in (False, True)
    }
    whole = measured({("m", "en"): given}, read_controls(XAlpacaSettings(gamed=path, paper_compat=True)))
    assert whole == measured({("m", "en"): given}, read_controls(XAlpacaSettings(gamed=path)))
    by_item, by_position = (found[compat][0]["m", "en"].lc.value for compat in (False, True))
    moved = [Compared(row.item_id, place, row.preference, row.length, row.baseline_length)
             for place, row in enumerate(given[1:])]  # fmt: skip
    same = measured({("m", "en"): moved}, read_controls(XAlpacaSettings(gamed=path)))[0]["m", "en"].lc.value
    assert by_position == pytest.approx(same, abs=1e-9)
    assert abs(by_item - by_position) > 0.01


def test_a_fit_that_keeps_nothing_has_no_interval_and_no_difference() -> None:
    pytest.importorskip("sklearn")
    controls = Controls(difficulties=dict(enumerate(DIFFICULTY)))
    even = [Compared(str(n + 1), n, 1.5, 5 + n % 7, 9) for n in range(ITEMS)]
    found, changes = measured({("a", "en"): even, ("b", "en"): rows(by_difficulty())}, controls)
    rates = found["a", "en"]
    assert (rates.lc.value, rates.lc_kind) == (50, "LC-noreg")
    assert (math.isnan(rates.lc.low), math.isnan(rates.lc.high)) == (True, True)
    assert [row.change.verdict for row in changes if row.rate == "LC"] == [NO_DIFFERENCE]
    assert found["b", "en"].lc.low < found["b", "en"].lc.high


def test_without_difficulties_there_is_a_win_rate_and_no_lc() -> None:
    given = rows(drawn(0, 0.3)[0])
    unknown = Controls(difficulties={0: 1.0})  # of one item alone
    for controls in (Controls(), unknown):
        found = measured({("m", "en"): given}, controls)[0]["m", "en"]
        assert (found.lc_kind, math.isnan(found.lc.value)) == ("none", True)
        assert found.wr.value == pytest.approx(np.mean([100 * (row.preference - 1) for row in given if row.preference]))


def test_a_missing_library_costs_the_lc_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise MissingLibraryError("scikit-learn", "The length-controlled win rate", "pip install 'crosspref[eval]'")

    monkeypatch.setattr(rates_module, "find_engine", lambda *_: missing)
    controls, said = read_controls(XAlpacaSettings(gamed=str(table(tmp_path / "gamed.csv")))), list[str]()
    found, _ = measured({("m", "en"): rows(drawn(0, 0.3)[0])}, controls, said)
    assert found["m", "en"].lc_kind == "none"
    assert found["m", "en"].wr.value > 0
    assert "pip install 'crosspref[eval]'" in said[0]
    assert "Every verdict is kept" in said[0]


def test_better_stands_only_where_the_interval_says_so() -> None:
    worse, same, better = drawn(3, -2.0, -1.9, 2.0)
    cells = {
        (model, language): rows(given)
        for model, given in (("pi_I", worse), ("pi_0", worse), ("pi_1", same), ("pi_2", better))
        for language in ("en", "es")
    }
    found, changes = measured(cells, Controls())
    assert [(row.model, row.other) for row in changes[::3]] == [
        ("pi_0", "pi_I"), ("pi_1", "pi_0"), ("pi_2", "pi_1"), ("pi_2", "pi_0"),
    ]  # fmt: skip
    assert [row.language for row in changes[:3]] == ["en", "es", MEAN]
    verdicts = {(row.model, row.other): set() for row in changes}
    for row in changes:
        verdicts[row.model, row.other].add(row.change.verdict)
        assert row.rate == "WR"
        assert row.change.low <= row.change.value <= row.change.high
        assert row.change.verdict != "better" or (row.change.low > 0 and row.change.p_value <= 0.05)
        ours, theirs = (found[name, "en"].wr.value for name in (row.model, row.other))
        assert row.change.value == pytest.approx(ours - theirs)
    assert verdicts["pi_0", "pi_I"] == {NO_DIFFERENCE}
    assert verdicts["pi_2", "pi_1"] == verdicts["pi_2", "pi_0"] == {"better"}


def test_changes_are_over_the_items_that_both_were_judged_on() -> None:
    first, second = ([Compared(str(n), n, y, 5, 5) for n, y in enumerate(ys)]
                     for ys in ([1.0, 2.0, None, 1.0, 1.5], [2.0, 2.0, 2.0, None, 1.5]))  # fmt: skip
    found, [row] = measured({("a", "en"): first, ("b", "en"): second}, Controls())
    assert (row.change.n, row.change.value) == (3, pytest.approx(100 / 3))
    assert found["a", "en"].wr.value == pytest.approx(100 * 1.5 / 4)


def test_the_mean_is_the_plain_one_over_languages_that_were_judged() -> None:
    few = [Compared("1", 0, 2.0, 5, 5), Compared("2", 1, 2.0, 5, 5)]
    many = [Compared(str(n), n, 1.0, 5, 5) for n in range(10)]
    none = [Compared("1", 0, None, 5, 5)]
    found, _ = measured({("m", "en"): few, ("m", "es"): many, ("m", "de"): none}, Controls())
    assert found["m", MEAN].wr.value == pytest.approx(50)
    assert math.isnan(found["m", "de"].wr.value)


def test_pairs() -> None:
    assert pairs_of(["a"]) == []
    assert pairs_of(["pi_0", "pi_1", "pi_2"]) == [("pi_1", "pi_0"), ("pi_2", "pi_1"), ("pi_2", "pi_0")]


def test_tables_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps([{"index": 0, "preference": 0.5}]))
    with pytest.raises(DataError, match="has no column std_delta_len, instruction_difficulty"):
        read_controls(XAlpacaSettings(gamed=str(file)))
    file.write_text(json.dumps([{"instruction_difficulty": 0.5}]))
    with pytest.raises(DataError, match="neither an id nor an index"):
        read_controls(XAlpacaSettings(difficulty=str(file)))
    file.write_text(json.dumps([{"id": 1, "instruction_difficulty": "hard"}]))
    with pytest.raises(RowError, match="'hard'") as caught:
        read_controls(XAlpacaSettings(difficulty=str(file)))
    assert caught.value.problems[0].row == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preference": 2.0}, "preference is 2, and not from 0 to 1"),
        ({"std_delta_len": "nan"}, "'nan' .* in the column std_delta_len"),
        ({"index": None}, "None .* in the column index"),
    ],
)
def test_a_gamed_table_is_checked_before_anything_is_judged(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    row = {"index": 0, "preference": 0.5, "std_delta_len": 0.1, "instruction_difficulty": 0.2}
    file = tmp_path / "gamed.jsonl"
    file.write_text(f"{json.dumps(row)}\n{json.dumps(row | change)}\n")
    with pytest.raises(RowError, match=said) as caught:
        read_controls(XAlpacaSettings(gamed=str(file)))
    assert caught.value.problems[0].row == 2
    file.write_text(f"{json.dumps(row)}\n{{\n")
    with pytest.raises(RowError) as caught:
        read_controls(XAlpacaSettings(gamed=str(file)))
    assert caught.value.problems[0].row == 2


def test_items_without_a_difficulty_are_said(tmp_path: Path) -> None:
    given, said = rows(by_difficulty()), list[str]()
    measured({("m", "en"): given}, Controls(difficulties={row.place: 0.1 for row in given[1:]}), said)
    assert said[0].startswith(f"xalpaca en: 1 of {ITEMS} items of m have no difficulty, such as '1'")
    file = tmp_path / "difficulty.json"
    file.write_text(json.dumps([{"id": 1.0, "instruction_difficulty": 0.5}]))
    assert read_controls(XAlpacaSettings(difficulty=str(file))).difficulties == {"1": 0.5}
