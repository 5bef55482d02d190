"""Where a run is: how many units of each phase are done."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crosspref.errors import RunError
from crosspref.languages import ENGLISH
from crosspref.recipe.files import load_recipe
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import TrainSettings
from crosspref.run.store import RunDirectory


@dataclass(frozen=True, slots=True)
class PhaseStatus:
    """How far one phase is; ``total`` is None while it is not known how much there is to do."""

    iteration: int
    phase: str
    done: int
    total: int | None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.total is not None and self.done >= self.total


def run_status(run: RunDirectory) -> list[PhaseStatus]:
    """Return the phases of a run in their order.

    Raises:
        RunError: there is no run in the directory.
    """
    if not run.recipe.exists():
        raise RunError(f"{run.root} holds no run: there is no {run.recipe.name} in it.")
    recipe = load_recipe(run.recipe)
    training, held_out = (_shards(run, recipe, source, recipe.languages) for source in ("prompts", "heldout"))
    foreign = _shards(run, recipe, "prompts", [language for language in recipe.languages if language != ENGLISH])
    sources = 2 if recipe.evaluate.prompts else 1
    done = sum(run.prompts(name, "dropped").marker.exists() for name in ("prompts", "heldout"))
    phases = [PhaseStatus(0, "prompts", done, sources)]
    if recipe.align_english:
        phases += _training(run, 0, "align_english", recipe.align_english, [ENGLISH])
    phases += _evaluation(run, recipe, 0, held_out)
    for iteration in range(1, recipe.iterations + 1):
        folder = f"iteration_{iteration}"
        phases.append(PhaseStatus(iteration, "sample", _count(run, f"{folder}/responses/*"), training))
        if recipe.needs_translations:
            phases.append(PhaseStatus(iteration, "translate", _count(run, f"{folder}/translations/*"), foreign))
        if recipe.language_imbalance is None:
            total = None if training is None else training * len(recipe.reward.names)
            done = sum(_count(run, f"{folder}/scores/{reward}/*") for reward in recipe.reward.names)
            phases.append(PhaseStatus(iteration, "score", done, total))
        phases.append(PhaseStatus(iteration, "select", _count(run, f"{folder}/pairs"), len(recipe.languages)))
        phases += _training(run, iteration, "train", recipe.train, recipe.languages)
        phases += _evaluation(run, recipe, iteration, held_out)
    return phases


def _shards(run: RunDirectory, recipe: Recipe, source: str, languages: Sequence[str]) -> int | None:
    units = [run.prompts(source, language) for language in languages]
    if not all(unit.marker.exists() for unit in units):
        return None
    return sum(math.ceil(int(unit.read_marker()["rows"]) / recipe.resources.shard_prompts) for unit in units)


def _training(
    run: RunDirectory, iteration: int, phase: str, settings: TrainSettings, languages: Sequence[str]
) -> list[PhaseStatus]:
    found = [PhaseStatus(iteration, phase, int(run.policy(iteration).marker.exists()), 1)]
    if settings.precompute_reference:
        carried = _count(run, f"iteration_{iteration}/referenced_pairs")
        found.insert(0, PhaseStatus(iteration, "reference", carried, len(languages)))
    return found


def _evaluation(run: RunDirectory, recipe: Recipe, iteration: int, shards: int | None) -> list[PhaseStatus]:
    if recipe.evaluate.prompts is None:
        return []
    folder = f"iteration_{iteration}/evaluation"
    done = _count(run, f"{folder}/responses/*") + _count(run, f"{folder}/scores/*/*") + _count(run, folder)
    tables = 1 + recipe.has_implicit_reward
    return [PhaseStatus(iteration, "evaluate", done, None if shards is None else tables * shards + 1)]


def _count(run: RunDirectory, folder: str) -> int:
    return sum(1 for _ in run.root.glob(f"{folder}/*.done.json"))
