"""Runs that are killed with SIGKILL, in every stage, end as the one that nobody disturbed."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from killing import History, Moment, Strike, run_with_kills
from running import CLI, ForkServer, assert_same_run, environment, small_recipe, times, write_recipe

from crosspref.api import phase_log
from crosspref.run.store import RunDirectory

pytestmark = pytest.mark.slow

PHASES = [(0, "prompts"), (0, "align_english"), (0, "evaluate")] + [
    (iteration, phase) for iteration in (1, 2) for phase in ("sample", "score", "select", "train", "evaluate")
]
STAGES = {"prompts", "align_english", "sample", "score", "select", "train", "evaluate"}
DONE = "*.done.json"
AT_WRITES = [
    Strike("prompts/*.parquet", 2),
    Strike("iteration_0/checkpoints/*/checkpoint-1"),  # begun, and not whole
    Strike("iteration_0/*policy*"),  # trained, and being saved
    Strike(f"iteration_0/evaluation/responses/*/{DONE}", 2, 0.02),
    Strike("iteration_0/evaluation/scores/*/*/*"),  # also a temporary file
    Strike(f"iteration_1/responses/*/{DONE}", 1),
    Strike("iteration_1/responses/*/*", 8),
    Strike("iteration_1/scores/*/*/*", 3),
    Strike("iteration_1/pairs/*.parquet"),  # written, and not marked
    Strike("iteration_1/checkpoints/*/checkpoint-1/*complete", 1, 0.02),
    Strike("iteration_1/checkpoints/*/checkpoint-3", 1, 0.02),
    Strike("iteration_1/policy"),  # in its place, and not marked
    Strike("iteration_1/evaluation/measures.parquet"),
    Strike("iteration_2/responses/*/*.parquet", 3),
    Strike(f"iteration_2/scores/*/*/{DONE}", 3, 0.05),
    Strike(f"iteration_2/pairs/{DONE}"),
    Strike("iteration_2/checkpoints/*/checkpoint-5"),
    Strike(f"iteration_2/evaluation/scores/*/*/{DONE}", 1, 0.05),
]
ONCE = {
    "align_english": Strike("iteration_0/checkpoints/*/checkpoint-*", 1, 0.1),
    "sample": Strike(f"iteration_1/responses/*/{DONE}", 2, 0.1),
    "score": Strike(f"iteration_1/scores/*/*/{DONE}", 2, 0.1),
    "select": Strike(f"iteration_1/pairs/{DONE}"),
    "train": Strike("iteration_1/checkpoints/*/checkpoint-2/*complete"),
    "evaluate": Strike(f"iteration_1/evaluation/responses/*/{DONE}", 1, 0.1),
}
ONE_ITERATION = ["--set", "iterations=1"]
PLANS = ["at writes", "at random moments", *ONCE]


@pytest.fixture(scope="module")
def recipe(
    models: tuple[Path, Path], held_out: Path, preferences: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two iterations with everything: full training in stage 0, adapters later, measures of every policy."""
    training = {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 2, "checkpoint_every": 1}
    changes: dict[str, Any] = {
        "iterations": 2,
        "align_english": {"preferences": str(preferences), **training},
        "train": {"lora": {"rank": 4}, "epochs": 2},
        "evaluate": {"prompts": str(held_out), "n": 2, "resamples": 100},
    }
    return write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", small_recipe(models[0], **changes))


@pytest.fixture(scope="module")
def reference(recipe: Path, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs. A plain process, with another order of sets than the forked ones have."""
    run = tmp_path_factory.mktemp("reference") / "run"
    command = [*CLI, "run", str(recipe), "--out", str(run)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(PYTHONHASHSEED="1"), timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def killed(
    recipe: Path, reference: Path, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], History]]:
    """Returns what became of a plan; all of them run, two at a time."""
    root = tmp_path_factory.mktemp("killed")
    seconds = {row["phase"]: row["seconds"] for row in phase_log(RunDirectory(reference))}
    seconds["align_english"] = seconds["train"]  # its own time has the imports in it, which a forked process is spared
    plans: dict[str, list[Strike | Moment]] = {
        "at writes": list(AT_WRITES),
        "at random moments": [Moment(number, seconds[phase]) for number, (_, phase) in enumerate(PHASES)],
        **{stage: [strike] for stage, strike in ONCE.items()},
    }
    with ThreadPoolExecutor(2) as pool:
        running: dict[str, Future[History]] = {}
        for seed, (name, strikes) in enumerate(plans.items()):
            run = root / name.replace(" ", "_")
            command = ["run", recipe, "--out", run, *(ONE_ITERATION if name in ONCE else ())]
            running[name] = pool.submit(run_with_kills, forks, command, run, strikes, seed)
        yield lambda name: running[name].result()


@pytest.mark.parametrize("plan", PLANS)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    plan: str, killed: Callable[[str], History], reference: Path
) -> None:
    history = killed(plan)
    assert history.hits
    assert_same_run(history.run, reference, iterations=1 if plan in ONCE else 2)
    now = times(history.run)
    again = [name for name, when in history.finished.items() if now.get(name, when) != when]
    assert not again, "what was finished before a kill was made once more"


def test_every_stage_was_hit(killed: Callable[[str], History]) -> None:
    hits = {plan: killed(plan).hits for plan in PLANS}
    for plan, stages in hits.items():
        print(f"{plan}: {len(stages)} kills in {', '.join(stages)}")  # noqa: T201
    counts = Counter(stage.split()[1] for stages in hits.values() for stage in stages)
    print(f"{counts.total()} kills: {dict(counts)}")  # noqa: T201
    assert counts.keys() >= STAGES
    assert counts.total() >= 10


def test_training_goes_on_from_its_last_checkpoint(killed: Callable[[str], History], reference: Path) -> None:
    def tokens(run: Path) -> int:
        marker = json.loads((run / "iteration_1" / "policy.done.json").read_text())
        return int(marker["figures"]["tokens"])

    history = killed("train")
    assert history.hits == ["1 train"]
    assert 0 < tokens(history.run) < tokens(reference)


def test_half_a_line_in_the_log_of_phases_hides_no_other_line(killed: Callable[[str], History]) -> None:
    for plan, phases in {"at writes": PHASES, "score": PHASES[:8], "train": PHASES[:8]}.items():
        log = phase_log(RunDirectory(killed(plan).run))
        assert [(row["iteration"], row["phase"]) for row in log][-len(phases) :] == phases


def test_a_phase_ends_with_the_process_that_started_it(
    recipe: Path, reference: Path, forks: ForkServer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["run", str(recipe), "--out", str(run)]
    apart = [*command, "--set", "resources.process_per_phase=true"]
    with subprocess.Popen([*CLI, *apart], env=environment(), stderr=subprocess.DEVNULL) as parent:
        child = _await_training(parent, run)
        parent.kill()
    _await_end(child)
    left = times(run)
    time.sleep(1)
    assert times(run) == left
    assert not (run / "iteration_0" / "policy.done.json").exists()
    process = forks.spawn(*command, log=tmp_path / "log")
    assert process.wait() == 0, process.output()
    assert_same_run(run, reference)


def _await_training(parent: "subprocess.Popen[bytes]", run: Path) -> int:
    """Wait until training has begun and return the id of the process that does it."""
    while not any(run.glob("iteration_0/checkpoints/*")):
        assert parent.poll() is None
        time.sleep(0.002)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def _await_end(pid: int) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return  # ended, and nobody has asked for its exit code
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the phase outlived the run")
