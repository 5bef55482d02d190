"""What a finished run says to another recipe or other inputs, and how it is shown."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from running import Run, assert_same_run, assert_stopped, files, succeeded, times, write_recipe

from crosspref.recipe.files import load_recipe, make_recipe
from crosspref.run.layout import RunDirectory
from crosspref.run.store import digest_of


def test_settings_that_change_no_result_may_change(command: Run, recipe_file: Path, done: Path, tmp_path: Path) -> None:
    run = shutil.copytree(done, tmp_path / "run")
    before = times(run)
    changes = ("sample.batch_size=3", "reward.logits_megabytes=64", "train.checkpoint_every=7", "resources.threads=2")
    succeeded(command("run", recipe_file, "--out", run, *(part for one in changes for part in ("--set", one))))
    changed = {name for name, when in times(run).items() if when != before[name]}
    assert changed <= {"recipe.yaml", "report.md"}
    assert load_recipe(run / "recipe.yaml").sample.batch_size == 3


@pytest.mark.parametrize("what", ["prompts", "model"])
def test_changed_inputs_of_the_same_name_stop_the_run(
    command: Run, content: dict[str, Any], done: Path, tmp_path: Path, what: str
) -> None:
    """The recipe is the same to the letter, but what it names is not what the run was made from."""
    run = shutil.copytree(done, tmp_path / "run")
    recipe = make_recipe(content)
    if what == "prompts":
        path = Path(shutil.copy(recipe.prompts.source, tmp_path / "prompts.jsonl"))
        path.write_text(path.read_text(encoding="utf-8").replace("fresh herbs", "dry herbs"), encoding="utf-8")
        changed = {**content, "prompts": {**content["prompts"], "source": str(path)}}
    else:
        path = shutil.copytree(content["models"]["policy"], tmp_path / "policy")
        weights = bytearray((path / "model.safetensors").read_bytes())
        weights[-3] ^= 1
        (path / "model.safetensors").write_bytes(weights)
        changed = {**content, "models": {**content["models"], "policy": str(path)}}
    # As if the file had been changed in its place: the run's recipe names it already.
    write_recipe(run / "recipe.yaml", make_recipe(changed).model_dump(mode="json"))
    before = times(run)
    answer = command("run", write_recipe(tmp_path / "recipe.yaml", changed), "--out", run)
    assert_stopped(answer, "prompts" if what == "prompts" else "policy", str(run))
    assert times(run) == before


def test_what_a_killed_process_left_half_written_is_removed(
    command: Run, recipe_file: Path, done: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(done, tmp_path / "run")
    (run / "iteration_1" / "scores" / "crosslingual" / "es" / ".00000000.parquet.77.tmp").write_bytes(b"PAR1 half")
    (run / "iteration_1" / ".policy.77.tmp" / "deep").mkdir(parents=True)
    # A kill between the policy's marker and the removal of its checkpoints.
    (run / "iteration_1" / "checkpoints" / digest_of("another training") / "checkpoint-3").mkdir(parents=True)
    assert command("run", recipe_file, "--out", run)[0] == 0
    assert_same_run(run, done)
    assert not list(run.rglob("*.tmp")) + list(run.rglob("checkpoints"))


def test_the_resolved_recipe_and_the_log_of_phases_are_in_the_run(content: dict[str, Any], done: Path) -> None:
    assert load_recipe(done / "recipe.yaml") == make_recipe(content)
    log = RunDirectory(done).logged_phases()
    names = ["prompts", "evaluate", "sample", "score", "select", "train", "evaluate"]
    assert [row["phase"] for row in log][: len(names)] == names
    assert all(row["seconds"] >= 0 and row["peak_memory_mb"] > 0 for row in log)
    assert "report.md" in files(done)
