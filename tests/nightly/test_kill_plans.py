"""Runs that are killed at every kind of write, and at a random moment of every phase, end as an undisturbed one."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from killing import History, Moment, Strike, full_recipe, run_undisturbed, run_with_kills
from running import ForkServer, Models

from crosspref.run.layout import RunDirectory

PHASES = [(0, "prompts"), (0, "align_english"), (0, "evaluate")] + [
    (iteration, phase) for iteration in (1, 2) for phase in ("sample", "score", "select", "train", "evaluate")
]
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
PLANS = ["at writes", "at random moments"]


@pytest.fixture(scope="module")
def recipe(models: Models, held_out: Path, preferences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", models[0], held_out, preferences, 2)


@pytest.fixture(scope="module")
def reference(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_undisturbed(recipe, tmp_path_factory.mktemp("reference") / "run")


@pytest.fixture(scope="module")
def killed(
    recipe: Path, reference: Path, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], History]]:
    """Returns what became of a plan; both run at the same time."""
    root = tmp_path_factory.mktemp("killed")
    seconds = {row["phase"]: row["seconds"] for row in RunDirectory(reference).logged_phases()}
    seconds["align_english"] = seconds["train"]  # its own time has the imports in it, which a forked process is spared
    at_random = [Moment(number, seconds[phase]) for number, (_, phase) in enumerate(PHASES)]
    with ThreadPoolExecutor(2) as pool:
        running: dict[str, Future[History]] = {}
        for seed, (name, strikes) in enumerate(zip(PLANS, (AT_WRITES, at_random), strict=True)):
            run = root / name.replace(" ", "_")
            running[name] = pool.submit(run_with_kills, forks, ["run", recipe, "--out", run], run, strikes, seed)
        yield lambda name: running[name].result()


@pytest.mark.parametrize("plan", PLANS)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    plan: str, killed: Callable[[str], History], reference: Path
) -> None:
    killed(plan).assert_as_undisturbed(reference)


def test_every_stage_was_hit(killed: Callable[[str], History]) -> None:
    hits = Counter(hit.split()[1] for plan in PLANS for hit in killed(plan).hits)
    assert hits.keys() >= {phase for _, phase in PHASES}, hits
    assert hits.total() >= 10
