"""Runs side by side, from small run directories that the store's own writers made."""

import csv
import io
from pathlib import Path
from typing import Any

import made_runs
import pytest
from made_runs import MADE, store
from rich.console import Console

from crosspref.cli import main
from crosspref.data.records import Measure, Pair, Prompt, Score
from crosspref.errors import RunError
from crosspref.reports.comparison import Comparison, compare_runs, run_names
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Fingerprint, digest_of
from crosspref.stages.evaluate import MEASURES, WIN_RATE

LANGUAGES = ["en", "es"]
JUDGES = {"policy": "aligned@1", "reference": "base@1", "reward.algorithm": "dpo", "reward.counting": "exact"}


def begin(root: Path, **sections: Any) -> RunDirectory:
    """A run of which only the recipe and the held-out prompts are there."""
    run = made_runs.begin(root, **{"iterations": 1, "evaluate": {"prompts": "heldout.jsonl"}, **sections})
    hold_out(run)
    return run


def hold_out(run: RunDirectory, text: str = "?") -> None:
    for language in LANGUAGES:
        made = Fingerprint({"source": str(run.root)}, {"rows": digest_of(["1", language, text])})
        store(run.heldout.unit(language), [Prompt("1", language, text)], Prompt, made)


def measure(run: RunDirectory, iteration: int, judges: dict[str, Any] | None = None, **values: list[float]) -> None:
    """Store measures, a value per language, and the held-out scores behind them."""
    evaluation = run.iteration(iteration).evaluation
    rows = [
        Measure(iteration, language, name, mean, mean - 0.1, mean + 0.2, 8, 2)
        for name, means in values.items()
        for language, mean in zip(LANGUAGES, means, strict=True)
    ]
    for language in LANGUAGES:
        made = Fingerprint(JUDGES if judges is None else judges, {"responses": f"of {iteration}"})
        store(evaluation.scores.unit(language, 0), [], Score, made)
    store(evaluation.measures, rows, Measure)


def pair_up(run: RunDirectory, iteration: int, lengths: dict[str, list[tuple[int, int]]]) -> None:
    """Store pairs of these lengths (chosen, rejected)."""
    for language, both in lengths.items():
        rows = [
            Pair(str(n), language, [], *([{"role": "assistant", "content": "x" * c}] for c in cut), 0, 1, *[None] * 5)
            for n, cut in enumerate(both)
        ]
        store(run.iteration(iteration).pairs.unit(language), rows, Pair)


def train(run: RunDirectory, iteration: int) -> None:
    run.iteration(iteration).policy.finish(MADE, 3)


def log(run: RunDirectory, *rows: tuple[str, int, float]) -> None:
    for phase, iteration, seconds in rows:
        run.log_phase({"phase": phase, "iteration": iteration, "seconds": seconds, "peak_memory_mb": 1})


def full(root: Path, judges: dict[str, Any] | None = None, win: float = 0.6, **sections: Any) -> RunDirectory:
    """A finished run of one iteration."""
    run = begin(root, **sections)
    measure(run, 0, judges, right_language=[1.0, 0.5], characters=[100.0, 200.0])
    pair_up(run, 1, {"en": [(10, 4)], "es": [(5, 8), (3, 6)]})
    train(run, 1)
    values = {WIN_RATE: [win, 0.75], "right_language": [1.0, 0.75], "characters": [120.0, 130.0]}
    measure(run, 1, judges, **values)
    log(run, ("prompts", 0, 6.0), ("sample", 1, 60.0), ("train", 1, 24.0))
    return run


def table(comparison: Comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(comparison.csv())))


def differences(comparison: Comparison) -> list[str]:
    start = "Not comparable: the runs differ in "
    return [note.removeprefix(start) for note in comparison.notes if note.startswith(start)]


def test_worked_example(tmp_path: Path) -> None:
    full(tmp_path / "a")
    full(
        tmp_path / "b",
        win=0.4,
        reward={"name": "multilingual"},
        length_penalty={"mode": "none"},
        resources={"threads": 1},
    )
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    # Win rates (60% + 75%) / 2 and (40% + 75%) / 2; lengths 6, -3 and -3 characters apart; 90 seconds.
    assert found.report(by_language=False).rows == [
        ["all runs", "pi_0", "-", "-", "given", "-", "-", "75%", "150", "-", "-"],
        ["a", "pi_1", "R_c", "optimal", "DPO+NLL", "3", "68%", "88%", "125", "+0.0", "1.5"],
        ["b", "pi_1", "R_m", "none", "DPO+NLL", "3", "57%", "88%", "125", "+0.0", "1.5"],
    ]
    assert differences(found) == []
    assert "Settings in which the recipes differ: reward.name, length_penalty.mode." in found.notes


def test_csv_holds_everything_unrounded(tmp_path: Path) -> None:
    full(tmp_path / "a")
    pi_0, pi_1 = table(compare_runs([tmp_path / "a"]))
    assert list(pi_1.items()) == [
        *(("run", "a"), ("iteration", "1"), ("pairs_by", "R_c"), ("penalty", "optimal"), ("training", "DPO+NLL")),
        *(("pairs", "3"), ("win_rate", "0.675"), ("right_language", "0.875"), ("characters", "125.0")),
        *(("length_difference", "0.0"), ("minutes", "1.5")),
        *(("win_rate_en", "0.6"), ("win_rate_en_low", "0.5"), ("win_rate_en_high", "0.8")),
        *(("win_rate_es", "0.75"), ("win_rate_es_low", "0.65"), ("win_rate_es_high", "0.95")),
    ]
    assert (pi_0["run"], pi_0["iteration"], pi_0["characters"], pi_0["win_rate"]) == ("a", "0", "150.0", "")


def test_later_iterations_count_the_time_before_them(tmp_path: Path) -> None:
    run = full(tmp_path / "a", iterations=3)
    pair_up(run, 2, {"en": [(1, 2)], "es": [(1, 4)]})
    train(run, 2)
    log(run, ("sample", 2, 30.0), ("prompts", 0, 6.0))  # it was stopped and begun again
    run.iteration(10).folder.mkdir()
    rows = compare_runs([run.root]).report(by_language=False).rows
    assert rows[1:] == [
        ["", "pi_1", "R_c", "optimal", "DPO+NLL", "3", "68%", "88%", "125", "+0.0", "1.6"],
        ["", "pi_2", "", "", "", "2", "-", "-", "-", "-2.0", "2.1"],
        ["", "pi_10", "", "", "", "-", "-", "-", "-", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"reward": {"name": "translated", "reference": "previous"}}, ("R_t (prev.)", "optimal", "DPO+NLL")),
        ({"reward": {"algorithm": "kto"}}, ("R_c (KTO)", "optimal", "DPO+NLL")),
        ({"reward": {"counting": "znlp"}, "resources": {"shard_prompts": 3}}, ("R_c (znlp)", "optimal", "DPO+NLL")),
        ({"reward": {"name": "reward_model", "reward_model": "judge"}}, ("R_n", "optimal", "DPO+NLL")),
        ({"language_imbalance": {}}, ("LIDR", "-", "DPO+NLL")),
        (
            {"length_penalty": {"mode": "fixed", "alpha": 0.01, "unit": "tokens"}},
            ("R_c", "fixed 0.01 (tokens)", "DPO+NLL"),
        ),
        ({"train": {"method": "kto", "nll_weight": 0.0}}, ("R_c", "optimal", "KTO")),
        ({"train": {"reference": "initial", "nll_weight": 0.5}}, ("R_c", "optimal", "DPO+0.5NLL (ref. pi_I)")),
    ],
)
def test_what_a_policy_was_made_by(tmp_path: Path, sections: dict[str, Any], expected: tuple[str, ...]) -> None:
    full(tmp_path / "a", **sections)
    row = table(compare_runs([tmp_path / "a"]))[1]
    assert (row["pairs_by"], row["penalty"], row["training"]) == expected


def test_a_section_that_one_recipe_lacks_is_named_as_one(tmp_path: Path) -> None:
    full(tmp_path / "a")
    made = {"preferences": "english.jsonl", "nll_weight": 0.0}
    measure(full(tmp_path / "b", models={"initial": "base"}, align_english=made), 0, characters=[1.0, 2.0])
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert "Settings in which the recipes differ: models.policy, align_english." in found.notes
    assert "DPO (English)" in [row["training"] for row in table(found)]


def test_every_pi_0_has_a_row(tmp_path: Path) -> None:
    for name, policy in (("a", "one"), ("b", "two"), ("c", "one")):
        full(tmp_path / name, {**JUDGES, "policy": policy})
    rows = table(compare_runs([tmp_path / name for name in "abc"]))
    assert [(row["run"], row["iteration"]) for row in rows] == [
        *(("a, c", "0"), ("b", "0")),
        *(("a", "1"), ("b", "1"), ("c", "1")),
    ]


def test_a_pi_0_that_was_measured_otherwise_has_a_row_of_its_own(tmp_path: Path) -> None:
    full(tmp_path / "a")
    measure(full(tmp_path / "b"), 0, right_language=[1.0, 0.5], characters=[100.0, 300.0])
    rows = table(compare_runs([tmp_path / "a", tmp_path / "b"]))
    assert [(row["run"], row["characters"]) for row in rows[:2]] == [("a", "150.0"), ("b", "200.0")]


@pytest.mark.parametrize(
    ("judges", "sections", "expected"),
    [
        ({"policy": "other"}, {}, "pi_0 behind the win rate: a against b."),
        ({"reference": "other"}, {}, "pi_I behind the win rate: a against b."),
        ({"reward.algorithm": "kto"}, {}, "reward.algorithm behind the win rate: dpo in a; kto in b."),
        ({"reward.counting": "znlp"}, {}, "reward.counting behind the win rate: exact in a; znlp in b."),
        ({"reward.end_of_turn": "never"}, {}, "reward.end_of_turn behind the win rate: None in a; never in b."),
        ({}, {"sample": {"temperature": 0.5}}, "sample.temperature: 0.9 in a; 0.5 in b."),
        ({}, {"sample": {"max_new_tokens": 7}}, "sample.max_new_tokens: 1024 in a; 7 in b."),
        ({}, {"sample": {"top_p": 0.5}}, "sample.top_p: 1.0 in a; 0.5 in b."),
        ({}, {"languages": ["en", "es", "fr"]}, "the languages: en, es in a; en, es, fr in b."),
    ],
)
def test_what_forbids_comparing(
    tmp_path: Path, judges: dict[str, str], sections: dict[str, Any], expected: str
) -> None:
    full(tmp_path / "a")
    full(tmp_path / "b", {**JUDGES, **judges}, **sections)
    assert differences(compare_runs([tmp_path / "a", tmp_path / "b"])) == [expected]


def test_what_does_not_forbid_comparing(tmp_path: Path) -> None:
    full(tmp_path / "a", {**JUDGES, "reward.beta": 0.1})
    full(tmp_path / "b", {**JUDGES, "reward.beta": 0.5}, seed=7, sample={"n": 3}, train={"learning_rate": 1e-3})
    begin(tmp_path / "c", sample={"temperature": 0.5})  # nothing was measured
    assert differences(compare_runs([tmp_path / name for name in "abc"])) == []


def test_other_held_out_prompts_are_noticed_by_their_content(tmp_path: Path) -> None:
    for name in "abc":
        full(tmp_path / name)  # each from a source of another name
    hold_out(RunDirectory(tmp_path / "b"), "another question")
    found = differences(compare_runs([tmp_path / name for name in "abc"]))
    assert found == ["the held-out prompts in en, es: a, c against b."]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    begin(tmp_path / "a", iterations=2)
    begin(tmp_path / "b", evaluate={})
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert [row[:2] + row[5:] for row in found.report(by_language=True).rows] == [
        ["a", "pi_1", *["-"] * 6],
        ["b", "pi_1", *["-"] * 6],
    ]
    assert "a is not finished: 0 of 2 policies are trained, and 0 of 3 are measured." in found.notes
    assert "b is not finished: 0 of 1 policies are trained." in found.notes
    assert "b has no measures: its recipe names no evaluate.prompts." in found.notes


def test_a_finished_run_is_not_called_unfinished(tmp_path: Path) -> None:
    run = full(tmp_path / "a")
    assert not any("not finished" in note for note in compare_runs([run.root]).notes)
    # A run that was killed before its last marker.
    run.iteration(1).evaluation.measures.marker.unlink()
    found = compare_runs([run.root])
    assert "a is not finished: 1 of 1 policies are trained, and 1 of 2 are measured." in found.notes
    assert found.report(by_language=False).rows[1][6:9] == ["-", "-", "-"]
    run.iteration(0).evaluation.scores.unit("en", 0).marker.unlink()
    assert compare_runs([run.root]).report(by_language=False).rows == found.report(by_language=False).rows
    run.iteration(1).pairs.unit("es").marker.unlink()
    assert compare_runs([run.root]).report(by_language=False).rows[1][5] == "-"


def test_a_run_that_only_makes_pi_0(tmp_path: Path) -> None:
    run = begin(tmp_path / "a", iterations=0)
    assert compare_runs([run.root]).policies == []
    measure(run, 0, right_language=[1.0, 0.5], characters=[100.0, 200.0])
    found = compare_runs([run.root])
    assert [row[:2] for row in found.report(by_language=False).rows] == [["a", "pi_0"]]
    assert not any("not finished" in note for note in found.notes)


def test_directories_that_cannot_be_compared(tmp_path: Path) -> None:
    full(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(RunError, match=r"nothing holds no run: there is no recipe\.yaml in it"):
        compare_runs([tmp_path / "a", tmp_path / "nothing"])
    with pytest.raises(RunError, match="link is given twice"):
        compare_runs([tmp_path / "a", tmp_path / "link"])


def test_names_are_as_long_as_they_must_be() -> None:
    roots = [Path(name) for name in ("/x/seed1/dpo", "/x/seed2/dpo", "/x/seed1/kto", "/dpo")]
    assert run_names(roots) == ["seed1/dpo", "seed2/dpo", "kto", "/dpo"]


def test_a_link_keeps_its_name(tmp_path: Path) -> None:
    full(tmp_path / "run_17")
    (tmp_path / "best").symlink_to(tmp_path / "run_17")
    assert {row.run for row in compare_runs([tmp_path / "best"]).policies} == {"best"}


def test_the_screen_is_readable_at_100_columns(tmp_path: Path) -> None:
    names = ["multilingual-reward-seed-1", "kto"]
    sections: dict[str, Any] = {
        "reward": {"name": "multilingual", "reference": "previous"},
        "length_penalty": {"mode": "fixed", "alpha": 0.01, "unit": "tokens"},
        "train": {"method": "kto", "reference": "initial"},
        "iterations": 2,
    }
    for name in names:
        log(full(tmp_path / name, **sections), ("train", 1, 60_000.0))
    screen = Console(file=io.StringIO(), width=100)
    screen.print(compare_runs([tmp_path / name for name in names]).report(by_language=False).table())
    text = screen.file.getvalue()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    numbers = ["KTO+NLL", "3", "68%", "88%", "125", "+0.0", "1002"]
    assert sum(line.split()[-7:] == numbers for line in lines) == 2, text
    assert sum("(prev.)" in line and "0.01" in line and "(ref. pi_I)" in line for line in lines) == 2, text
    assert any(line.strip().startswith("multilingual-") for line in lines), text  # names are wide enough to be read


def run_main(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    full(tmp_path / "a")
    full(tmp_path / "b", {**JUDGES, "policy": "other"})
    assert run_main("a", "b") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Not comparable: the runs differ in pi_0 behind the win rate: a against b." in printed
    assert MEASURES[WIN_RATE] in printed
    numbers = "pi_1 R_c optimal DPO+NLL 3 68% 88% 125 +0.0 1.5"
    assert f"a {numbers} b {numbers}" in printed  # nothing is cut though the screen has 80 columns
    assert "The intervals cover the choice of held-out prompts only" in printed
    text = (tmp_path / "comparison.md").read_text()
    assert "| win rate in en | win rate in es |" in text
    assert "| 60% [50%, 80%] | 75% [65%, 95%] |" in text
    assert f"\\* {MEASURES[WIN_RATE]}" in text
    assert (tmp_path / "comparison.csv").read_text() == compare_runs(["a", "b"]).csv()
    assert run_main("a", "--out", tmp_path / "tables" / "mine") == 0
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["mine.csv", "mine.md"]
