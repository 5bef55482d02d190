"""Training on Ray's workers, through Ray Train's TorchTrainer."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util import placement_group, remove_placement_group

from crosspref.engines.ray.cluster import DEATHS, living_nodes, needs_of
from crosspref.errors import CrossprefError, RunError
from crosspref.escape import one_line
from crosspref.recipe.sections import RaySettings

PATIENCE = 5.0
"""Seconds between two looks at what nodes there are, while training waits for its places."""


class Faults:
    """An actor that keeps what is wrong with the input, which would be wrong again: it must not be tried again."""

    def __init__(self) -> None:
        self.kept: list[CrossprefError] = []

    def keep(self, error: CrossprefError) -> None:
        """Keep an error."""
        self.kept.append(error)

    def first(self) -> CrossprefError | None:
        """Return the first one."""
        return self.kept[0] if self.kept else None


def train_together(settings: RaySettings, phase: Callable[[], None], folder: Path) -> None:
    """Run the phase on all workers at once; see ``protocols.Executor``."""
    wait_for_room(settings)
    faults = ray.remote(Faults).options(num_cpus=0).remote()
    state = folder.resolve() / ".ray_train"
    trainer = TorchTrainer(
        _loop,
        train_loop_config={
            "phase": phase,
            "folder": str(Path.cwd()),
            "gpus": settings.gpus_per_worker,
            "faults": faults,
        },
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=needs_of(settings),
        ),
        run_config=RunConfig(
            name="train", storage_path=str(state), failure_config=FailureConfig(max_failures=DEATHS - 1)
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        # Behind its first line Ray puts the workers' tracebacks; a worker's own error is the last line of one.
        said = one_line(str(error).strip().splitlines()[-1])
        raise RunError(
            f"Training on Ray failed {DEATHS} times: {said}\nIts last checkpoint is kept: run it again to go on."
        ) from error
    finally:
        fault: CrossprefError | None = ray.get(faults.first.remote())
        ray.kill(faults)
        shutil.rmtree(state, ignore_errors=True)
    if fault is not None:
        raise fault


def wait_for_room(settings: RaySettings) -> None:
    """Wait until all workers have a place at once, as training needs them; others may hold some of the places.

    Raises:
        RunError: the nodes that are there, or that are left once Ray has noticed that one is gone, have too few.
    """
    places = [{name: amount for name, amount in needs_of(settings).items() if amount}] * settings.workers
    while True:
        require_room(settings)
        group = placement_group(places)
        try:
            if group.wait(PATIENCE):
                return
        finally:
            remove_placement_group(group)


def require_room(settings: RaySettings) -> None:
    """Raise RunError if the nodes that are there cannot hold all workers at once."""
    needs, nodes = needs_of(settings), living_nodes()
    room = sum(min(int(node.get(name, 0) / amount) for name, amount in needs.items() if amount) for node in nodes)
    if room < settings.workers:
        raise RunError(
            f"Training takes ray.workers ({settings.workers}) workers at once, each with {needs['CPU']:g} CPUs and "
            f"{needs['GPU']:g} GPUs; Ray's {len(nodes)} nodes have room for {room}. Ask for less, or add nodes."
        )


def _loop(config: dict[str, Any]) -> None:
    """Run the phase as one of the workers."""
    if config["gpus"] == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if Path(config["folder"]).is_dir():
        os.chdir(config["folder"])
    try:
        config["phase"]()
    except CrossprefError as error:
        ray.get(config["faults"].keep.remote(error))
