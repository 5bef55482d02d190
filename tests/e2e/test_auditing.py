"""``crosspref audit`` on a finished run, and on one whose scores were changed by a known amount."""

import json
import shutil
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from running import Models, Run, small_recipe

from crosspref import align
from crosspref.data.records import Score
from crosspref.errors import RunError
from crosspref.recipe.files import dump_recipe
from crosspref.reports.audit import audit_run, least_gap
from crosspref.run.layout import open_run
from crosspref.run.progress import Reporter
from crosspref.run.store import Unit


@pytest.fixture(scope="module")
def run(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(done, tmp_path_factory.mktemp("audit") / "run"))


def test_float32_scores_have_no_noise(run: Path, command: Run) -> None:
    code, out, _ = command("audit", run)
    assert code == 0
    assert "Audit of R_c, iteration 1" in out
    assert (run / "iteration_1" / "audit.md").read_text(encoding="utf-8").startswith("# Audit of R_c")
    _, rows, _ = audit_run(str(run), None, 8, Reporter())
    assert [row.language for row in rows] == ["en", "es"]
    for row in rows:
        assert row.responses == 15  # all 5 prompts of the run, with 3 responses each
        assert row.largest < 1e-3
        assert (row.changed, row.exchanged) == (0, 0)


def test_scores_that_are_off_are_found(run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    for path in (copied / "iteration_1" / "scores" / "crosslingual" / "es").glob("*.parquet"):
        unit, off = Unit(path), cycle((0.2, -0.2))  # 2 nats at beta .1
        rows = [replace(row, implicit_reward=row.implicit_reward + next(off)) for row in unit.rows(Score)]
        unit.write_rows(rows, Score)
    english, spanish = audit_run(str(copied), 1, 8, Reporter())[1]
    assert english.largest < 1e-3
    assert spanish.noise == pytest.approx(2.0, abs=0.05)
    assert spanish.largest == pytest.approx(2.0, abs=1e-3)
    assert spanish.changed > 0


def test_a_reward_without_beta_is_in_nats_as_it_is(models: Models, tmp_path: Path) -> None:
    root = tmp_path / "run"
    align(small_recipe(*models, iterations=1, reward={"algorithm": "kto"}), root)
    for path in (root / "iteration_1" / "scores" / "crosslingual" / "en").glob("*.parquet"):
        unit = Unit(path)
        unit.write_rows([replace(row, implicit_reward=row.implicit_reward + 2) for row in unit.rows(Score)], Score)
    report, rows, _ = audit_run(str(root), 1, 8, Reporter())
    assert rows[0].largest == pytest.approx(2.0, abs=1e-3)
    least = least_gap(max(row.noise for row in rows))
    assert f"select.min_gap {least:.2g} ({least:.2g} nats)" in report.notes[1]


def test_fewer_prompts_are_audited_if_asked(run: Path) -> None:
    assert [row.responses for row in audit_run(str(run), 1, 2, Reporter())[1]] == [6, 6]


def test_what_cannot_be_audited_is_said(run: Path, tmp_path: Path, command: Run) -> None:
    code, _, errors = command("audit", tmp_path)
    assert code == 1
    assert "holds no run" in errors
    code, _, errors = command("audit", run, "--iteration", "3")
    assert code == 1
    assert "no implicit rewards of iteration 3" in errors
    assert command("audit", run, "--prompts", "0")[0] == 1
    with pytest.raises(RunError, match="holds no run"):
        audit_run(str(tmp_path), None, 1, Reporter())


def test_code_that_comes_with_a_model_runs_only_if_the_person_asks_for_it(
    run: Path, models: Models, command: Run, tmp_path: Path
) -> None:
    """The run came from somebody else, with models of theirs, and a recipe that allows their code to run."""
    ran = tmp_path / "ran"
    theirs: dict[str, Any] = {"trust_remote_code": True}
    for role, model in zip(("initial", "policy"), models, strict=True):
        copied = shutil.copytree(model, tmp_path / role)
        code = f"import pathlib, transformers\npathlib.Path({str(ran)!r}).touch()\n"
        (copied / "own.py").write_text(f"{code}class Own(transformers.LlamaConfig):\n    pass\n")
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "own.Own"}}))
        theirs[role] = str(copied)
    foreign, recipe = open_run(shutil.copytree(run, tmp_path / "run"))
    changed = recipe.model_copy(update={"models": recipe.models.model_copy(update=theirs)})
    foreign.recipe.write_text(dump_recipe(changed))
    assert command("audit", foreign.root)[0] == 0
    assert not ran.exists()
    command("audit", foreign.root, "--trust-remote-code")
    assert ran.exists()
