"""Runs of many processes (a launcher's ranks, a cluster of Ray) that are killed: nothing is left, nothing is lost."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from killing import assert_all_end, assert_same_policy, command_of
from running import CLI, ForkServer, Models, content, environment, files, small_recipe, wait_for, write_recipe

ON_RAY = "resources.executor=ray"
TORCHRUN = "torchrun --standalone --nproc-per-node 2"
STEPS = "iteration_1/checkpoints/*/checkpoint-1"
SAMPLED = "iteration_1/responses/*/*.done.json"


@pytest.fixture(scope="module")
def recipe(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One iteration whose training has enough steps to be hit."""
    train = {"batch_size": 2, "micro_batch_size": 1, "epochs": 4}
    resources = {"process_per_phase": True, "shard_prompts": 1}
    content = small_recipe(*models, iterations=1, prompts={"limit": 6}, train=train, resources=resources)
    return write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", content)


@pytest.fixture(scope="module")
def reference(recipe: Path, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process."""
    run = tmp_path_factory.mktemp("reference") / "run"
    alone = ["--set", "resources.process_per_phase=false"]
    forks.run("run", recipe, "--out", run, *alone, log=run.with_name("log"))
    return run


def start(recipe: Path, run: Path, log: Path, *changes: str) -> "subprocess.Popen[bytes]":
    """Start the command in a session of its own, as a terminal would."""
    options = [part for change in changes for part in ("--set", change)]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*CLI, "run", str(recipe), "--out", str(run), *options],
            env=environment(OMP_NUM_THREADS="1"),
            start_new_session=True,
            stdout=output,
            stderr=output,
        )


def descendants(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def strike(process: "subprocess.Popen[bytes]", number: signal.Signals, log: Path) -> None:
    """Kill the run alone, or press Ctrl-C, which its whole group gets."""
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 130), log.read_text()


def assert_same(run: Path, reference: Path) -> None:
    """Tables are equal to the last bit, and the policy up to the rounding of gradients that were added up apart."""
    ours, theirs = files(run), files(reference)
    tables = [name for name in theirs if name.endswith(".parquet")]
    assert tables == [name for name in ours if name.endswith(".parquet")]
    assert [name for name in tables if content(ours[name]) != content(theirs[name])] == []
    assert_same_policy(run, reference)


def before_training(reference: Path, run: Path) -> Path:
    """Copy a run as it was when training was next."""
    shutil.copytree(reference, run)
    shutil.rmtree(run / "iteration_1" / "policy")
    (run / "iteration_1" / "policy.done.json").unlink()
    return run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ranks_of_a_launcher_end_with_the_run(
    number: signal.Signals, recipe: Path, reference: Path, tmp_path: Path
) -> None:
    run, log, launch = before_training(reference, tmp_path / "run"), tmp_path / "log", f"resources.launch={TORCHRUN}"
    with start(recipe, run, log, launch) as process:
        wait_for(run, STEPS, process.poll)
        below = descendants(process)
        ranks = [child.environ().get("RANK") for child in below]
        assert {"0", "1"} <= set(ranks), [command_of(child) for child in below]
        strike(process, number, log)
    assert_all_end(below, 20)
    assert not (run / "iteration_1" / "policy.done.json").exists()
    if number == signal.SIGKILL:
        with start(recipe, run, log, launch) as process:
            assert process.wait(240) == 0, log.read_text()
        assert_same(run, reference)


@pytest.mark.parametrize(("number", "pattern"), [(signal.SIGKILL, SAMPLED), (signal.SIGINT, STEPS)])
def test_a_cluster_of_ray_ends_with_the_run(
    number: signal.Signals, pattern: str, recipe: Path, reference: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    run, log = tmp_path / "run", tmp_path / "log"
    if pattern == STEPS:
        before_training(reference, run)
    with start(recipe, run, log, ON_RAY) as process:
        wait_for(run, pattern, process.poll)
        below = descendants(process)
        assert any("raylet" in " ".join(command_of(child)) for child in below), [command_of(child) for child in below]
        strike(process, number, log)
    # Nobody tells Ray's agents of a SIGKILL: they look for their parent now and then, and give up after a minute.
    assert_all_end(below, 120)


def test_a_worker_that_dies_in_training_on_ray_costs_nothing_but_time(
    recipe: Path, reference: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    run, log = before_training(reference, tmp_path / "run"), tmp_path / "log"
    with start(recipe, run, log, ON_RAY) as process:
        wait_for(run, STEPS, process.poll)
        workers = [child for child in descendants(process) if "TrainWorker" in " ".join(command_of(child))]
        assert len(workers) == 2, [command_of(child) for child in descendants(process)]
        workers[1].kill()
        assert process.wait(240) == 0, log.read_text()
    assert_same(run, reference)
