"""One table of several runs and models: what stands in it, what it says of them, and its four formats."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rendered import texts

from crosspref.cli import main
from crosspref.errors import RunError
from crosspref.escape import printable
from crosspref.maths.estimate import UNKNOWN, Estimate
from crosspref.reports.table import as_json
from crosspref.suites.leaderboard import TABLES, Leaderboard, leaderboard, paper_lines
from crosspref.suites.results import MEAN
from crosspref.suites.xalpaca.results import WinRate

NAN = math.nan


def rate(model: str, language: str, wr: float, lc: float = NAN, kind: str = "none", **changes: Any) -> WinRate:
    rates = Estimate(wr, wr - 1.5, wr + 1.5, 805), UNKNOWN if math.isnan(lc) else Estimate(lc, lc - 2, lc + 2, 805)
    counts = 805, 805, 3, 0, 0, 0, 0
    row = WinRate(model, language, *counts, *rates, kind, 1234.5, 2000.0, "turbo", "judge-1", "2025-05-01")
    return replace(row, **changes)


def terminal(board: Leaderboard, width: int = 80, *, intervals: bool = False) -> str:
    return board.report(intervals=intervals).screen(width)


def markdown(board: Leaderboard, *, intervals: bool = False) -> str:
    return replace(board.report(intervals=intervals), title="").markdown()


def csv_rows(board: Leaderboard) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(board.csv())))


def write(folder: Path, rows: list[WinRate], *, recipe: bool = False, **about: Any) -> Path:
    """Write results as the suite does, into a run or into a folder of results."""
    content = {
        "suite": "xalpaca",
        "judge": {"judge": rows[0].judge, "answered_as": ["judge-1"], "decoding": [{"temperature": 1.0}]},
        "prompt": [["user", "Which is better?"]],
        "settings": {"paper_compat": False},
        **about,
        "rows": [as_json(row) for row in rows],
    }
    file = folder / ("evaluation" if recipe else "") / "xalpaca" / "win_rates.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    if recipe:
        (folder / "recipe.yaml").write_text("")
    return folder


def run_rows(shift: float = 0.0) -> list[WinRate]:
    found = []
    for number, model in enumerate(("pi_0", "pi_1")):
        own = [rate(model, tag, 10.0 + shift + number, 12.0 + shift, "LC") for tag in ("en", "es")]
        found += [*own, rate(model, MEAN, 10.0 + shift + number, 12.0 + shift, "LC")]
    return found


def test_several_places_in_one_table(tmp_path: Path) -> None:
    first = write(tmp_path / "first", run_rows(), recipe=True)
    second = write(tmp_path / "second", run_rows(5), recipe=True)
    third = write(tmp_path / "third", [rate("owner/name", "en", 20.0, 21.0, "LC")])
    board = leaderboard([first, second, third])
    names = ["pi_0 (first)", "pi_1 (first)", "pi_0 (second)", "pi_1 (second)", "owner/name"]
    assert [line.model for line in board.lines] == names
    assert board.languages == ["en", "es", MEAN]
    assert board.lines[3].numbers["es", "wr"].value == 16.0
    assert board.lines[3].numbers[MEAN, "lc"].low == 15.0
    assert ("es", "wr") not in board.lines[4].numbers
    assert not any(line.mark for line in board.lines)
    assert any(note.startswith("Judged with: judge judge-1, decoding temperature 1.0, prompt ") for note in board.notes)
    assert any("do not" in note or "Not all rows have the same languages" in note for note in board.notes)
    assert [line.model for line in leaderboard([first]).lines] == ["pi_0", "pi_1"]


def test_one_name_in_two_places_is_told_apart(tmp_path: Path) -> None:
    places = [write(tmp_path / name / "x", [rate("owner/name", "en", 20.0)]) for name in ("a", "b")]
    assert [line.model for line in leaderboard(places).lines] == ["owner/name (a/x)", "owner/name (b/x)"]


@pytest.mark.parametrize(
    ("other", "about", "what"),
    [
        ({"judge": "judge-2"}, {}, "judge"),
        ({"baseline": "other"}, {}, "baseline"),
        ({}, {"settings": {"paper_compat": True}}, "difficulty"),
        ({}, {"prompt": [["user", "Another."]]}, "prompt"),
        ({}, {"judge": {"judge": "judge-1", "answered_as": ["judge-1b"], "decoding": [{"temperature": 1.0}]}}, "judge"),
        ({}, {"judge": {"judge": "judge-1", "answered_as": [], "decoding": [{"temperature": 0.0}]}}, "decoding"),
        ({}, {"judge": {"annotations": "a.json"}}, "decoding, prompt"),
    ],
)
def test_rows_that_were_judged_otherwise_say_so(
    tmp_path: Path, other: dict[str, Any], about: dict[str, Any], what: str
) -> None:
    places = [
        write(tmp_path / "a", [rate("one", "en", 20.0)]),
        write(tmp_path / "b", [rate("two", "en", 30.0, **other)], **about),
        write(tmp_path / "c", [rate("three", "en", 30.0)]),
    ]
    board = leaderboard(places)
    assert [line.mark for line in board.lines] == ["a", "b", "a"]
    assert f"Rows with different letters are not to be compared: they differ in {what}." in board.notes
    assert sum(note.startswith(("[a] ", "[b] ")) for note in board.notes) == 2
    for text in (terminal(board), markdown(board), board.report().latex()):
        assert "not to be compared" in text


def test_the_papers_figures_agree_with_themselves() -> None:
    lines = {line.model: line for line in paper_lines(TABLES["xalpaca"])}
    assert len(lines) == 18
    languages = ("en", "es", "ru", "de", "fr")
    for line in lines.values():
        assert set(line.numbers) == {(tag, name) for tag in (*languages, MEAN) for name in ("lc", "wr")}
        for name in ("lc", "wr"):
            mean = sum(line.numbers[tag, name].value for tag in languages) / 5
            assert line.numbers[MEAN, name].value == pytest.approx(mean, abs=0.0051), line.model
    # Section 5.2 says by how much the averages rose, and how English did.
    before, after = (lines[f"Llama-3-8B-SFT-DPO{end}"].numbers for end in (" (pi_0)", ", iteration 2 (pi_2)"))
    assert after[MEAN, "lc"].value - before[MEAN, "lc"].value == pytest.approx(5.97, abs=0.001)
    assert after[MEAN, "wr"].value - before[MEAN, "wr"].value == pytest.approx(12.72, abs=0.001)
    assert (before["en", "lc"].value, after["en", "lc"].value) == (17.24, 21.19)
    others = {"Meta-Llama-3-8B-Instruct": 13.74, "Qwen2-7B-Instruct": 18.10, "Mistral-7B-Instruct-v0.3": 17.29}
    assert {name: lines[name].numbers[MEAN, "lc"].value for name in others} == others
    grades = paper_lines(TABLES["mtbench"])
    assert [line.numbers[MEAN, "overall"].value for line in grades] == [6.20, 6.66, 6.77]
    for line in grades:
        mean = sum(line.numbers[tag, "overall"].value for tag in languages) / 5
        assert line.numbers[MEAN, "overall"].value == pytest.approx(mean, abs=0.0051)


def test_quoted_rows_are_marked_in_every_format(tmp_path: Path) -> None:
    board = leaderboard([write(tmp_path / "a", [rate("one", "ja", 20.0)])], quoted=True)
    assert [line.quoted for line in board.lines] == [False] + [True] * 18
    assert board.languages == ["ja", "en", "es", "ru", "de", "fr", MEAN]
    name = "Aya-23-8B"
    for text in (terminal(board, width=400), markdown(board)):
        [row] = [line for line in text.splitlines() if name in line]
        assert "quoted" in row
        assert "13.86" in row
    assert name + r"\textsuperscript{quoted}" in board.report().latex()
    rows = csv_rows(board)
    assert [row["quoted"] for row in rows] == ["false"] + ["true"] * 18
    assert (rows[-1]["mean_lc"], rows[-1]["ja_wr"], rows[0]["ja_wr"], rows[0]["ja_lc"]) == ("13.86", "", "20.0", "")
    assert any(note.startswith("quoted: from Table 2 of the paper") for note in board.notes)


def test_lc_without_the_gamed_rows_is_starred(tmp_path: Path) -> None:
    rows = [rate("one", "en", 20.0, 18.25, "LC-noreg"), rate("two", "en", 20.0, 19.25, "LC")]
    board = leaderboard([write(tmp_path / "a", rows)])
    text = terminal(board)
    assert "18.25*" in text
    assert "19.25*" not in text
    assert "* LC-noreg" in text
    assert [row["en_lc_kind"] for row in csv_rows(board)] == ["LC-noreg", "LC"]


@pytest.mark.parametrize(
    "name",
    [
        "[x](javascript:alert(1))",
        "<img src=x onerror=alert(1)>",
        "=1\x1b[2J\nx",
        "\\input{x}",
    ],
)
def test_nothing_that_others_results_say_acts(tmp_path: Path, name: str) -> None:
    judge = {"judge": name, "answered_as": [f"{name} 2"], "decoding": [{name: name}]}
    rows = [rate(name, tag, 20.0, judge=name, baseline=name) for tag in ("en", "es")]
    board = leaderboard([write(tmp_path / "a", rows, judge=judge)])
    shown = texts(markdown(board))
    assert any(text == printable(name) for text in shown)
    assert any(f"baseline {printable(name)}" in text for text in shown)
    assert "\x1b" not in terminal(board) + markdown(board) + board.report().latex() + board.csv()
    assert "\\input" not in board.report().latex()
    [row] = csv_rows(board)
    assert not row["model"].startswith("=")
    assert not row["judge"].startswith("=")


def test_latex_has_as_many_cells_as_columns(tmp_path: Path) -> None:
    board = leaderboard([write(tmp_path / "a", run_rows(), recipe=True)], quoted=True)
    text = board.report(intervals=True).latex()
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 20
    assert {line.count(" & ") for line in rows} == {3 * 6}
    assert r"\begin{tabular}{l*{18}{r}}" in text
    assert rows[0].startswith(r"pi\_0 & 12.00 {[}10.0, 14.0] & 10.00 {[}8.5, 11.5] & 1234 & ")
    assert body.count(r"\midrule") == 1
    assert rows[-1].endswith(r"13.86 & 16.62 & -- \\")


def test_intervals_where_they_are_asked_for(tmp_path: Path) -> None:
    board = leaderboard([write(tmp_path / "a", run_rows(), recipe=True)])
    assert "[8.5, 11.5]" not in markdown(board)
    assert "10.00 [8.5, 11.5]" in markdown(board, intervals=True)
    assert "[8.5, 11.5]" in terminal(board, intervals=True)
    [first, *_] = csv_rows(board)
    assert (first["en_wr"], first["en_wr_low"], first["en_wr_high"], first["en_length"]) == (
        "10.0", "8.5", "11.5", "1234.5",
    )  # fmt: skip
    assert first["prompt"] == board.lines[0].judged["prompt"]


def test_mtbench_shows_the_scores_of_all_categories(tmp_path: Path) -> None:
    rows = [
        {"model": "m", "language": language, "category": category, "questions": 80, "judge": "gpt", "overall": score,
         "overall_low": score - 0.2, "overall_high": score + 0.2}
        for language, category, score in (
            ("en", "all", 7.0), ("en", "math", 3.0), ("es", "all", 6.0), (MEAN, "all", 6.5),
        )
    ]  # fmt: skip
    content = {"judge": {"judge": "gpt", "decoding": []}, "prompts": {"single": "x"}, "settings": {}, "rows": rows}
    file = tmp_path / "mtbench" / "scores.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content), encoding="utf-8")
    board = leaderboard([tmp_path], "mtbench", quoted=True)
    assert [board.lines[0].numbers[tag, "overall"].value for tag in ("en", "es", MEAN)] == [7.0, 6.0, 6.5]
    first, *_, last = csv_rows(board)
    assert (first["en_overall"], first["mean_overall_low"], last["mean_overall"], last["ru_overall"]) == (
        "7.0", "6.3", "6.77", "6.44",
    )  # fmt: skip
    assert "7.00" in terminal(board)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    there, empty = write(tmp_path / "there", [rate("one", "en", 20.0)]), tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} has no results of the suite xalpaca." in leaderboard([there, empty]).notes
    with pytest.raises(RunError, match="Measure a run first"):
        leaderboard([empty])
    with pytest.raises(RunError, match="is no directory"):
        leaderboard([there, tmp_path / "none"])
    with pytest.raises(RunError, match="given twice"):
        leaderboard([there, there / "."])
    file = there / "xalpaca" / "win_rates.json"
    for content in ("{", "[]", '{"rows": [{"language": "[/b]"}]}', '{"rows": [{"language": "en", "model": "m"}]}'):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(RunError, match="cannot be read as results"):
            leaderboard([there])
    other = write(tmp_path / "other", [rate("two", "en", 20.0)])
    board = leaderboard([there, other])
    assert [line.model for line in board.lines] == ["two"]
    assert "cannot be read as results" in board.notes[-1]


def test_a_language_without_figures_counts_as_none_and_not_as_another_judge(tmp_path: Path) -> None:
    whole = [rate("one", tag, 20.0) for tag in ("en", "ru")]
    less = [rate("two", "en", 20.0), rate("two", "ru", NAN, n=0, judge="")]
    board = leaderboard([write(tmp_path / "a", whole), write(tmp_path / "b", less)])
    assert not any(line.mark for line in board.lines)
    assert any("Not all rows have the same languages" in note for note in board.notes)


def test_scores_without_references_are_not_compared_with_others(tmp_path: Path) -> None:
    def scores(name: str, no_reference: int) -> Path:
        row = {"model": name, "language": "en", "overall": 6.77, "overall_low": 6.75, "overall_high": 6.84}
        row |= {"questions": 80, "judge": "j", "no_reference": no_reference, "plain": 0}
        file = tmp_path / name / "mtbench" / "scores.json"
        file.parent.mkdir(parents=True)
        content = {"judge": {"judge": "j"}, "prompts": {}, "settings": {}, "rows": [row]}
        file.write_text(json.dumps(content), encoding="utf-8")
        return tmp_path / name

    board = leaderboard([scores("a", 0), scores("b", 60)], "mtbench")
    assert [line.mark for line in board.lines] == ["a", "b"]
    assert any("they differ in without reference" in note for note in board.notes)
    assert "6.77 [6.75, 6.84]" in markdown(board, intervals=True)


@pytest.mark.parametrize(("ending", "sign"), [("md", "| model |"), ("csv", '"model","source"'), ("tex", r"\toprule")])
def test_the_command_writes_what_the_ending_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, sign: str
) -> None:
    place, out = write(tmp_path / "a", run_rows(), recipe=True), tmp_path / "tables" / f"board.{ending}"
    assert main(["leaderboard", str(place), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"Written: {out}\n"
    text = out.read_text(encoding="utf-8")
    assert sign in text
    form = {"md": "markdown", "csv": "csv", "tex": "latex"}[ending]
    assert main(["leaderboard", str(place), "--format", form]) == 0
    shown = capsys.readouterr()
    assert shown.out == text
    assert ("Judged with" in shown.err) == (ending == "csv")


def test_the_command_shows_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = write(tmp_path / "a", run_rows(), recipe=True)
    assert main(["leaderboard", str(place), "--quoted"]) == 0
    output = capsys.readouterr().out
    for text in ("X-AlpacaEval", "pi_1", "11.00", "1234", "gpt-4o-mini", "Judged with: judge judge-1"):
        assert text in output
    assert main(["leaderboard", str(tmp_path / "none")]) == 1
    assert main(["leaderboard", str(place), "--out", str(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err
