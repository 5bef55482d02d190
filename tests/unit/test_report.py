"""The report of an evaluation."""

import io
import math
from pathlib import Path

import pytest
from made_runs import begin, store
from rich.console import Console

from crosspref.cli import main
from crosspref.data.records import Agreement, Measure, Prompt, Response
from crosspref.reports.report import AGREEMENT_NOTE, INTERVALS, SHOWN, agreement_report, answers_table, measures_report
from crosspref.run.store import Unit
from crosspref.stages.evaluate import MEASURES, WIN_RATE


def measures(language: str, iteration: int, **values: float) -> list[Measure]:
    return [Measure(iteration, language, name, mean, mean - 0.1, mean + 0.1, 32, 8) for name, mean in values.items()]


ROWS = [
    *measures("es", 0, right_language=0.25, repetition=0.125, truncated=1.0, characters=211.6),
    *measures("es", 1, right_language=0.75, repetition=0.0, truncated=0.5, characters=99.4, **{WIN_RATE: 0.6}),
    *measures("yo", 0, repetition=0.5, truncated=0.0, characters=1.0),
    *measures("yo", 1, repetition=0.5, truncated=0.0, characters=1.0, **{WIN_RATE: 0.5}),
]


def test_worked_table() -> None:
    report = measures_report(ROWS)
    assert report.header[:2] == ["language", "policy"]
    assert report.rows == [
        ["es Spanish", "pi_0", "25%", "12%", "100%", "212", ""],
        ["", "pi_1", "75%", "0%", "50%", "99", "60% [50%, 70%]"],
        ["yo Yoruba", "pi_0", "", "50%", "0%", "1", ""],
        ["", "pi_1", "", "50%", "0%", "1", "50% [40%, 60%]"],
    ]


def test_markdown_has_every_language_and_policy_and_says_what_the_win_rate_is() -> None:
    lines = measures_report(ROWS).markdown().splitlines()
    assert lines[0] == "# Held-out responses, per language and policy"
    assert lines[2] == r"| language | policy | right language | repeats | cut off | length | win rate over pi_0\* |"
    assert lines[3] == "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    assert [line.split(" | ")[:2] for line in lines[4:8]] == [
        ["| es Spanish", "pi_0"],
        ["| ", "pi_1"],
        ["| yo Yoruba", "pi_0"],
        ["| ", "pi_1"],
    ]
    text = "\n".join(lines)
    # Escaped, since a star that begins a line would be a list in Markdown.
    assert f"\n\n\\* {MEASURES[WIN_RATE]}. 50% is no difference.\n\n" in text
    assert f"8 held-out prompts per language. {INTERVALS}" in text
    for measure in ("right_language", "repetition", "truncated"):
        assert MEASURES[measure] in text


def test_a_win_rate_without_an_interval_shows_none() -> None:
    rows = [*ROWS[:4], Measure(1, "es", WIN_RATE, 0.5, math.nan, math.nan, 4, 1)]
    assert measures_report(rows).rows[1][-1] == "50%"


def test_unequal_numbers_of_prompts_are_said() -> None:
    rows = [Measure(0, tag, "truncated", 0.0, 0.0, 0.0, 8, prompts) for tag, prompts in (("es", 12), ("fr", 9))]
    assert "9 to 12 held-out prompts per language." in measures_report(rows).notes[-1]


def test_languages_that_cannot_be_identified_are_said() -> None:
    def notes(*rows: Measure) -> str:
        return "\n".join(measures_report(rows).notes)

    told = Measure(0, "es", "right_language", 1.0, 1.0, 1.0, 8, 8)
    assert "cannot be identified for: bo." in notes(told, Measure(0, "bo", "truncated", 0.0, 0.0, 0.0, 8, 8))
    assert "cannot be identified" not in notes(told)


def test_later_policies_stand_behind_earlier_ones() -> None:
    rows = [row for iteration in (10, 2, 0) for row in measures("es", iteration, truncated=0.0)]
    assert [row[1] for row in measures_report(rows).rows] == ["pi_0", "pi_2", "pi_10"]


NAN = math.nan
AGREEMENTS = [
    # One file of rows for each two rewards, so that languages and iterations come mixed.
    Agreement(2, "es", "crosslingual", "multilingual", -0.254, -0.301, 0.204, 60, 0.5, 0.25, 0.125, 0.01, 48),
    Agreement(1, "es", "crosslingual", "multilingual", 0.5, NAN, NAN, 1, 1.0, 0.0, 0.0, 0.0, 1),
    Agreement(1, "sw", "crosslingual", "multilingual", NAN, NAN, NAN, 0, NAN, NAN, NAN, NAN, 0),
    Agreement(1, "es", "translated", "reward_model", 0.0, -0.1, 0.1, 60, 0.5, 0.25, 0.125, 0.01, 48),
]


def test_worked_agreement() -> None:
    report = agreement_report(AGREEMENTS)
    header = "| language | t | rewards | tau | same pair | same chosen | same rejected | n |"
    assert report.markdown().splitlines()[2] == header
    assert report.rows == [
        ["es Spanish", "1", "R_c, R_m", "0.50", "0%", "100%", "0%", "1/1"],
        ["", "1", "R_t, R_n", "0.00 [-0.10, 0.10]", "12%", "50%", "25%", "60/48"],
        ["", "2", "R_c, R_m", "-0.25 [-0.30, 0.20]", "12%", "50%", "25%", "60/48"],
        ["sw Swahili", "1", "R_c, R_m", "", "", "", "", "0/0"],
    ]


def test_agreement_fits_80_columns() -> None:
    widest = Agreement(10, "zh-hant", "crosslingual", "translated", -0.5, -0.6, -0.4, 2500, 1.0, 1.0, 1.0, 0.0, 2499)
    screen = Console(file=io.StringIO(), width=80)
    screen.print(agreement_report([*AGREEMENTS, widest]).table())
    lines = screen.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(
        line.split() == ["zh-hant", "10", "R_c,", "R_t", "-0.50", "[-0.60,", "-0.40]", *["100%"] * 3, "2500/2499"]
        for line in lines
    )


def test_the_command_shows_agreement_beside_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(tmp_path, evaluate={"prompts": "heldout.jsonl"})
    assert main(["report", str(tmp_path)]) == 1
    assert "Nothing has been measured" in capsys.readouterr().err
    for number, row in enumerate(AGREEMENTS):
        store(Unit(run.root / f"iteration_{row.iteration}/agreement/{number}.parquet"), [row], Agreement)
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "-0.25 [-0.30, 0.20]" in printed
    assert AGREEMENT_NOTE in " ".join(printed.split())
    assert (run.root / "report.md").read_text() == agreement_report(AGREEMENTS[1:] + AGREEMENTS[:1]).markdown()
    store(run.iteration(1).evaluation.measures, ROWS, Measure)
    picture = tmp_path / "report.svg"
    assert main(["report", str(tmp_path), "--svg", str(picture)]) == 0
    text = (run.root / "report.md").read_text()
    assert text.index("# Held-out responses") < text.index("\n\n# Agreement of rewards")
    for found in (capsys.readouterr().out, picture.read_text().replace("&#160;", " ")):
        assert found.index("60% [50%, 70%]") < found.index("-0.25 [-0.30, 0.20]")


def test_two_answers_stand_side_by_side_and_nothing_in_them_is_taken_for_markup() -> None:
    prompt = Prompt("a", "es", "¿Por qué [red]x[/red]?")
    answers = {
        "pi_0": Response("a", "es", 0, "Uno\n\x1b[2Jdos [bold]tres[/bold]", None, "stop", None),
        "pi_1": Response("a", "es", 0, "palabra " * 200, None, "length", None),
    }
    screen = Console(file=io.StringIO(), width=100)
    screen.print(answers_table(prompt, answers))
    text = screen.file.getvalue()
    assert "¿Por qué [red]x[/red]?" in text
    assert "[bold]tres[/bold]" in text
    assert "\x1b" not in text
    assert text.count("palabra") == SHOWN // len("palabra ")
    row = next(line for line in text.splitlines() if "Uno" in line)
    assert row.index("Uno") < row.index("palabra")
