"""A run that is killed with SIGKILL once in every stage ends as the one that nobody disturbed; nightly kills more."""

import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from killing import History, Strike, assert_all_end, full_recipe, run_undisturbed, run_with_kills
from running import CLI, ForkServer, Models, assert_same_run, environment, times

from crosspref.run.layout import RunDirectory

PHASES = ["prompts", "align_english", "evaluate", "sample", "score", "select", "train", "evaluate"]
DONE = "*.done.json"
ONCE_PER_STAGE = [
    Strike("prompts/*.parquet", 2),
    Strike("iteration_0/checkpoints/*/checkpoint-*", 1, 0.1),
    Strike(f"iteration_1/responses/*/{DONE}", 2, 0.1),
    Strike(f"iteration_1/scores/*/*/{DONE}", 2, 0.1),
    Strike(f"iteration_1/pairs/{DONE}"),
    Strike("iteration_1/checkpoints/*/checkpoint-2/*complete"),
    Strike(f"iteration_1/evaluation/responses/*/{DONE}", 1, 0.1),
]


@pytest.fixture(scope="module")
def recipe(models: Models, held_out: Path, preferences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", models[0], held_out, preferences, 1)


@pytest.fixture(scope="module")
def reference(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_undisturbed(recipe, tmp_path_factory.mktemp("reference") / "run")


@pytest.fixture(scope="module")
def killed(recipe: Path, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> History:
    run = tmp_path_factory.mktemp("killed") / "run"
    return run_with_kills(forks, ["run", recipe, "--out", run], run, ONCE_PER_STAGE, seed=0)


def test_a_run_killed_in_every_stage_ends_as_an_uninterrupted_one(killed: History, reference: Path) -> None:
    assert len(killed.hits) == len(ONCE_PER_STAGE)
    killed.assert_as_undisturbed(reference)


def test_training_resumes_from_its_last_checkpoint(killed: History, reference: Path) -> None:
    def tokens(run: Path) -> int:
        marker = json.loads((run / "iteration_1" / "policy.done.json").read_text())
        return int(marker["figures"]["tokens"])

    assert "1 train" in killed.hits
    assert 0 < tokens(killed.run) < tokens(reference)


def test_half_a_line_in_the_log_of_phases_hides_no_other_line(killed: History) -> None:
    assert [row["phase"] for row in RunDirectory(killed.run).logged_phases()][-len(PHASES) :] == PHASES


def test_a_phase_ends_with_the_process_that_started_it(
    recipe: Path, reference: Path, forks: ForkServer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["run", str(recipe), "--out", str(run)]
    apart = [*command, "--set", "resources.process_per_phase=true"]
    with subprocess.Popen([*CLI, *apart], env=environment(), stderr=subprocess.DEVNULL) as parent:
        child = _await_training(parent, run)
        parent.kill()
    assert_all_end([child], 10)
    left = times(run)
    time.sleep(1)
    assert times(run) == left
    assert not (run / "iteration_0" / "policy.done.json").exists()
    forks.run(*command, log=tmp_path / "log")
    assert_same_run(run, reference)


def _await_training(parent: "subprocess.Popen[bytes]", run: Path) -> psutil.Process:
    """Wait until training has begun and return the process that does it."""
    while not any(run.glob("iteration_0/checkpoints/*")):
        assert parent.poll() is None
        time.sleep(0.002)
    [child] = psutil.Process(parent.pid).children()
    return child
