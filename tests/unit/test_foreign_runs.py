"""Runs that came from somebody else: whatever their files hold, there is an answer or one error, and no code is run."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import begin, store

from crosspref import align, api
from crosspref.cli import main
from crosspref.data.records import Measure, Prompt, Response, Score
from crosspref.errors import RecipeError, RunError
from crosspref.recipe.files import make_recipe
from crosspref.reports.comparison import compare_runs
from crosspref.run.kept import Kept
from crosspref.run.layout import RunDirectory, given_recipe, open_run
from crosspref.run.store import Fingerprint, Unit, write_text

PHASE = {"phase": "sample", "iteration": 1, "seconds": 60.0, "peak_memory_mb": 1}


def measured(root: Path) -> RunDirectory:
    """A run with prompts and measures of pi_0."""
    run = begin(root)
    write_text(root / ".lock", "")
    store(run.prompts.unit("es"), [Prompt("a", "es", "¿Qué?")], Prompt)
    rows = [Measure(0, tag, "right_language", 1.0, 1.0, 1.0, 1, 1) for tag in ("en", "es")]
    store(run.iteration(0).evaluation.measures, rows, Measure)
    return run


def marker_with(**changes: Any) -> str:
    return json.dumps({"digest": "0" * 20, "parts": {}, "rows": 1, "figures": {}, **changes})


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\xfa",
        b"[" * 100_000,
        b"[]",
        b'{"digest": 1}',
        marker_with(digest="../../../elsewhere").encode(),
        marker_with(parts=["policy"]).encode(),
        marker_with(rows="R").replace('"R"', "9" * 10_000).encode(),
        marker_with(rows=True).encode(),
        marker_with(rows=-1).encode(),
        marker_with(rows=float("nan")).encode(),
        marker_with(rows=10**400).encode(),
        marker_with(figures=7).encode(),
    ],
    ids=lambda content: content[:60].decode(errors="replace"),
)
def test_a_marker_with_odd_content_is_one_error(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured(tmp_path)
    marker = run.prompts.unit("en").marker
    for tag in ("en", "es"):
        store(run.prompts.unit(tag), [], Prompt)
    marker.write_bytes(content)
    with pytest.raises(RunError, match=str(marker)):
        run.prompts.unit("en").read_marker()
    assert main(["status", str(tmp_path)]) == 1
    assert str(marker) in capsys.readouterr().err


def test_parts_of_a_marker_may_be_anything(tmp_path: Path) -> None:
    for name, odd in (("a", [1, {"x": []}]), ("b", {"dpo": None})):
        run = measured(tmp_path / name)
        unit = run.iteration(0).evaluation.scores.unit("es", 0)
        store(unit, [], Score)
        unit.marker.write_text(marker_with(parts={"policy": odd, "reward.algorithm": odd}))
        held_out = run.heldout.unit("es")
        store(held_out, [], Prompt)
        held_out.marker.write_text(marker_with(parts={"rows": odd}))
    notes = compare_runs([tmp_path / "a", tmp_path / "b"]).notes
    assert sum(note.startswith("Not comparable") for note in notes) == 3


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\xfa",
        b"[" * 100_000,
        b"7",
        b'"sample"',
        json.dumps({**PHASE, "phase": ["sample"]}).encode(),
        json.dumps({**PHASE, "iteration": "1"}).encode(),
        json.dumps({**PHASE, "seconds": None}).encode(),
        json.dumps({**PHASE, "seconds": float("nan")}).encode(),
        json.dumps(PHASE).encode()[:-3],
        json.dumps({**PHASE, "seconds": 10**400}).encode(),
        json.dumps({"phase": "sample"}).encode(),
    ],
    ids=lambda line: line[:60].decode(errors="replace"),
)
def test_a_broken_line_of_the_log_is_left_out(line: bytes, tmp_path: Path) -> None:
    run = measured(tmp_path)
    run.log_phase(PHASE)
    with (tmp_path / "phases.jsonl").open("ab") as log:
        log.write(line)  # as a kill leaves it, too: the next line begins anew
    run.log_phase(PHASE)
    assert run.logged_phases() == [PHASE, PHASE]
    [policy] = [row for row in compare_runs([tmp_path]).policies if row.iteration == 1]
    assert policy.minutes == 2


def test_a_table_of_other_rows_is_one_error(tmp_path: Path) -> None:
    unit = Unit(tmp_path / "es.parquet")
    unit.write_rows([Prompt("a", "es", "¿Qué?")], Prompt)
    with pytest.raises(RunError, match=str(unit.path)):
        unit.rows(Response)  # columns are missing
    for values in ([[None]], [[[1]]]):
        unit.write_table(unit.table().set_column(1, "language", values))
        with pytest.raises(RunError, match=str(unit.path)):
            unit.rows(Prompt)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"digest": "D", "items": [1]}', "7", '{"digest": "D"}'])
def test_what_was_kept_and_is_no_work_is_not_used(content: str, tmp_path: Path) -> None:
    unit, fingerprint = Unit(tmp_path / "a.parquet"), Fingerprint({})
    unit.part.write_text(content.replace('"D"', f'"{fingerprint.digest}"'))
    assert Kept(lambda *_: None, unit, fingerprint).items == {}


def test_the_recipe_of_a_run_extends_no_file(tmp_path: Path) -> None:
    run = measured(tmp_path / "run")
    secret = tmp_path / "secret.yaml"
    run.recipe.rename(secret)
    run.recipe.write_text(f"extends: {secret}\n")
    with pytest.raises(RecipeError, match="extends"):
        open_run(run.root)


def test_iterations_are_named_in_one_way(tmp_path: Path) -> None:
    for name in ("iteration_2", "iteration_02", "iteration_x", "iteration_-1", "iteration_\N{SUPERSCRIPT TWO}"):
        (tmp_path / name).mkdir()
    assert [iteration.folder.name for iteration in RunDirectory(tmp_path).iterations()] == ["iteration_2"]


CODE = [("models", "trust_remote_code", True), ("resources", "launch", "sh -c 'touch elsewhere'")]


@pytest.mark.parametrize(("section", "name", "value"), CODE, ids=lambda value: str(value))
def test_the_recipe_of_a_run_does_not_decide_that_code_is_run(
    section: str, name: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"initial": "base", "policy": "aligned"}
    sections: dict[str, Any] = {section: {**(models if section == "models" else {}), name: value}}
    run = begin(tmp_path / "run", **sections)
    write_text(run.root / ".lock", "")
    for use in (lambda: given_recipe(run.recipe), lambda: align(run.recipe, run.root)):
        with pytest.raises(RecipeError) as caught:
            use()
        assert caught.value.keys == (f"{section}.{name}",)
    for command in ("run", "check", "plan"):
        arguments = [command, str(run.recipe), *(["--out", str(run.root)] if command == "run" else [])]
        assert main(arguments) == 1
        assert "--set" in capsys.readouterr().err
    # By name, and in a recipe of one's own, it counts.
    said = given_recipe(run.recipe, [f"{section}.{name}={json.dumps(value)}"])
    assert getattr(getattr(said, section), name) == value
    off = given_recipe(run.recipe, [f"{section}.{name}={'false' if value is True else 'null'}"])
    assert not getattr(getattr(off, section), name)
    own = tmp_path / "recipe.yaml"
    own.write_bytes(run.recipe.read_bytes())
    assert given_recipe(own) == said


def test_a_run_goes_on_without_the_code_that_its_recipe_allows(tmp_path: Path) -> None:
    """Whether code of a model may run decides nothing about a table, and so may be set back."""
    from crosspref.algorithm import phases
    from crosspref.run.phases import settle_recipe

    models = {"initial": "base", "policy": "aligned"}
    run = begin(tmp_path, models={**models, "trust_remote_code": True})
    store(run.iteration(1).responses.unit("es", 0), [], Response)
    content = {"models": models, "languages": ["en", "es"], "prompts": {"source": "prompts.jsonl"}}
    settle_recipe(run, make_recipe(content), phases, lambda _: None)
    assert not run.read_recipe().models.trust_remote_code
    assert api.status(tmp_path)
