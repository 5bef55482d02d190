"""The report of an evaluation, and where a run is."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from crosspref import api
from crosspref.cli import main
from crosspref.data.records import Agreement, Measure, Prompt, Response
from crosspref.errors import RunError
from crosspref.recipe.files import dump_recipe, make_recipe
from crosspref.reports.report import AGREEMENT_NOTE, INTERVALS, SHOWN, agreement_report, answers_table, measures_report
from crosspref.reports.table import Report
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Fingerprint, Unit, write_text
from crosspref.stages.evaluate import MEASURES, WIN_RATE


def measures(language: str, iteration: int, **values: float) -> list[Measure]:
    return [Measure(iteration, language, name, mean, mean - 0.1, mean + 0.1, 32, 8) for name, mean in values.items()]


ROWS = [
    *measures("es", 0, right_language=0.25, repetition=0.125, truncated=1.0, characters=211.6),
    *measures("es", 1, right_language=0.75, repetition=0.0, truncated=0.5, characters=99.4, **{WIN_RATE: 0.6}),
    *measures("yo", 0, repetition=0.5, truncated=0.0, characters=1.0),
    *measures("yo", 1, repetition=0.5, truncated=0.0, characters=1.0, **{WIN_RATE: 0.5}),
]


def shown(report: Report, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(report.table())
    return console.file.getvalue()


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
    assert lines[2] == "| language | policy | right language | repeats | cut off | length | win rate over pi_0* |"
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
    lines = shown(agreement_report([*AGREEMENTS, widest]), 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(
        line.split() == ["zh-hant", "10", "R_c,", "R_t", "-0.50", "[-0.60,", "-0.40]", *["100%"] * 3, "2500/2499"]
        for line in lines
    )


def store(run: RunDirectory, place: str, rows: list[Any], kind: type) -> None:
    unit = Unit(run.root / place)
    unit.write_rows(rows, kind)
    unit.finish(MADE, len(rows))


def test_the_command_shows_agreement_beside_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(tmp_path)
    assert main(["report", str(tmp_path)]) == 1
    assert "Nothing has been measured" in capsys.readouterr().err
    for number, row in enumerate(AGREEMENTS):
        store(run, f"iteration_{row.iteration}/agreement/{number}.parquet", [row], Agreement)
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "-0.25 [-0.30, 0.20]" in printed
    assert AGREEMENT_NOTE in " ".join(printed.split())
    assert (run.root / "report.md").read_text() == agreement_report(AGREEMENTS[1:] + AGREEMENTS[:1]).markdown()
    store(run, "iteration_1/evaluation/measures.parquet", ROWS, Measure)
    picture = tmp_path / "report.svg"
    assert main(["report", str(tmp_path), "--svg", str(picture)]) == 0
    text = (run.root / "report.md").read_text()
    assert text.index("# Held-out responses") < text.index("\n\n# Agreement of rewards")
    for found in (capsys.readouterr().out, picture.read_text().replace("&#160;", " ")):
        assert found.index("60% [50%, 70%]") < found.index("-0.25 [-0.30, 0.20]")


MADE = Fingerprint({"made": "by hand"})


def begin(root: Path, **sections: Any) -> RunDirectory:
    content = {
        "models": {"initial": "base"},
        "languages": ["en", "es"],
        "prompts": {"source": "prompts.jsonl"},
        "iterations": 2,
        "align_english": {"preferences": "english.jsonl"},
        "resources": {"shard_prompts": 4},
        "evaluate": {"prompts": "heldout.jsonl"},
        **sections,
    }
    run = RunDirectory(root)
    write_text(run.recipe, dump_recipe(make_recipe(content)))
    return run


def finish(run: RunDirectory, *places: str, rows: int = 1) -> None:
    for place in places:
        unit = Unit(run.root / place)
        unit.write_rows([Prompt(str(number), "es", "?") for number in range(rows)], Prompt)
        unit.finish(MADE, rows)


def states(run: RunDirectory) -> list[tuple[int, str, int, int | None]]:
    statuses = api.status(run.root)
    return [(status.phase.iteration, status.phase.name, status.done, status.total) for status in statuses]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    assert states(begin(tmp_path)) == [
        (0, "prompts", 0, 6),
        (0, "align_english", 0, 1),
        (0, "evaluate", 0, None),
        *(
            (iteration, phase, 0, total)
            for iteration in (1, 2)
            for phase, total in (("sample", None), ("score", None), ("select", 2), ("train", 1), ("evaluate", None))
        ),
    ]
    assert not any(status.is_done for status in api.status(begin(tmp_path).root))


def test_a_run_in_the_middle(tmp_path: Path) -> None:
    run = begin(tmp_path)
    # 9 prompts are 3 shards of at most 4 in each language; 4 held-out ones are 1 shard, so 2 languages have 2 shards
    # of responses, 2 of scores, and there is one table of measures.
    finish(run, "prompts/en.parquet", "prompts/es.parquet", rows=9)
    finish(run, "heldout/en.parquet", "heldout/es.parquet", rows=4)
    finish(run, "prompts/dropped.parquet", "heldout/dropped.parquet", "iteration_0/policy")
    evaluation = [
        f"iteration_0/evaluation/{kind}/{tag}/0.parquet"
        for kind in ("responses", "scores/multilingual")
        for tag in ("en", "es")
    ]
    finish(run, *evaluation, "iteration_0/evaluation/measures.parquet")
    finish(run, *(f"iteration_1/responses/{tag}/{shard}.parquet" for tag in ("en", "es") for shard in range(3)))
    finish(run, "iteration_1/scores/crosslingual/en/0.parquet")
    Unit(run.root / "iteration_1/scores/crosslingual/en/4.parquet").write_rows([], Prompt)  # killed before its marker
    found = {(iteration, phase): (done, total) for iteration, phase, done, total in states(run)}
    assert found == {
        (0, "prompts"): (6, 6),
        (0, "align_english"): (1, 1),
        (0, "evaluate"): (5, 5),
        (1, "sample"): (6, 6),
        (1, "score"): (1, 6),
        (1, "select"): (0, 2),
        (1, "train"): (0, 1),
        (1, "evaluate"): (0, 5),
        (2, "sample"): (0, 6),
        (2, "score"): (0, 6),
        (2, "select"): (0, 2),
        (2, "train"): (0, 1),
        (2, "evaluate"): (0, 5),
    }
    first = next(status for status in api.status(run.root) if not status.is_done)
    assert (first.phase.iteration, first.phase.name) == (1, "score")


def test_a_run_with_a_given_policy_and_without_evaluation(tmp_path: Path) -> None:
    run = begin(tmp_path, models={"initial": "a", "policy": "b"}, align_english=None, evaluate={}, iterations=1)
    assert states(run) == [
        (0, "prompts", 0, 3),
        (1, "sample", 0, None),
        (1, "score", 0, None),
        (1, "select", 0, 2),
        (1, "train", 0, 1),
    ]


def test_a_reference_that_is_computed_before_training_is_a_phase(tmp_path: Path) -> None:
    carried = {"precompute_reference": True}
    run = begin(tmp_path, iterations=1, train=carried, align_english={"preferences": "a.jsonl", **carried}, evaluate={})
    finish(run, "iteration_0/referenced_pairs/en.parquet", "iteration_1/referenced_pairs/en.parquet")
    found = [state for state in states(run) if state[1] in ("reference", "align_english", "train")]
    assert found == [
        (0, "reference", 1, 1),
        (0, "align_english", 0, 1),
        (1, "reference", 1, 2),
        (1, "train", 0, 1),
    ]


def test_a_directory_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run: there is no recipe\.yaml in it"):
        api.status(tmp_path)


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
