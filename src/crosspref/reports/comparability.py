"""What forbids comparing the measures of several runs, and what a run does not have yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosspref.data.records import Measure
from crosspref.errors import RunError
from crosspref.recipe.files import load_recipe
from crosspref.recipe.schema import Recipe
from crosspref.run.store import RunDirectory, Unit

SAMPLING = ("temperature", "top_p", "max_new_tokens", "max_prompt_tokens")
"""Settings of sampling that held-out responses share with the training ones."""

JUDGES = {
    "policy": "pi_0",
    "reference": "pi_I",
    **{name: name for name in ("reward.algorithm", "reward.counting", "reward.end_of_turn")},
}
"""Parts of the fingerprint of held-out scores that decide a win rate; beta scales both of its sides alike."""


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run, by the name that the comparison gives it, and what was measured in it so far."""

    name: str
    run: RunDirectory
    recipe: Recipe
    measures: list[Measure]

    def judged_by(self) -> dict[str, Any]:
        """Return what the held-out scores were made from; nothing where there are none."""
        shards = sorted(self.run.root.glob("iteration_*/evaluation/scores/multilingual/*/*.parquet"))
        finished = [unit for unit in map(Unit, shards) if unit.marker.exists()]
        return dict(finished[0].read_marker()["parts"]) if finished else {}

    def held_out(self, language: str) -> str | None:
        """Return a digest of the held-out prompts in one language."""
        unit = self.run.prompts("heldout", language)
        return unit.read_marker()["parts"].get("rows") if unit.marker.exists() else None


def read_run(directory: str | Path, name: str) -> ComparedRun:
    """Return what a run directory holds.

    Raises:
        RunError: it holds no run.
    """
    run = RunDirectory(directory)
    if not run.recipe.exists():
        raise RunError(f"{run.root} holds no run: there is no {run.recipe.name} in it.")
    units = [Unit(path) for path in sorted(run.root.glob("iteration_*/evaluation/measures.parquet"))]
    measures = [row for unit in units if unit.marker.exists() for row in unit.rows(Measure)]
    return ComparedRun(name, run, load_recipe(run.recipe), measures)


def warnings(runs: Sequence[ComparedRun]) -> list[str]:
    """Return what forbids comparing the measures of these runs with one another."""
    languages = dict.fromkeys(language for run in runs for language in run.recipe.languages)
    by_groups: dict[str, list[str]] = {}
    for language in languages:
        asked = [run for run in runs if language in run.recipe.languages]
        groups = _groups(asked, [run.held_out(language) for run in asked], shown=False)
        by_groups.setdefault(groups, []).append(language)
    found = [(f"the held-out prompts in {', '.join(tags)}", groups) for groups, tags in by_groups.items()]
    found.append(("the languages", _groups(runs, [", ".join(sorted(run.recipe.languages)) for run in runs])))
    judged_by = [run.judged_by() for run in runs]
    for key, name in JUDGES.items():
        groups = _groups(runs, [parts.get(key) for parts in judged_by], shown=name == key)
        found.append((f"{name} behind the win rate", groups))
    found += [(f"sample.{key}", _groups(runs, [getattr(run.recipe.sample, key) for run in runs])) for key in SAMPLING]
    return [f"Not comparable: the runs differ in {what}: {groups}." for what, groups in found if groups]


def _groups(runs: Sequence[ComparedRun], values: Sequence[Any], *, shown: bool = True) -> str:
    """Say which runs have which value; nothing where all have the same. A digest is not worth being shown."""
    groups: dict[Any, list[str]] = {}
    for run, value in zip(runs, values, strict=True):
        groups.setdefault(value, []).append(run.name)
    if len(groups) < 2:
        return ""
    if shown:
        return "; ".join(f"{value} in {', '.join(names)}" for value, names in groups.items())
    return " against ".join(", ".join(names) for names in groups.values())


def unfinished(runs: Sequence[ComparedRun]) -> list[str]:
    """Return what runs do not have yet, or will not have."""
    notes = []
    for run in runs:
        total, measuring = run.recipe.iterations, run.recipe.evaluate.prompts is not None
        trained = sum(run.run.policy(iteration).marker.exists() for iteration in range(1, total + 1))
        measured = len({row.iteration for row in run.measures if row.iteration <= total})
        if trained < total or (measuring and measured < total + 1):
            counted = f"{trained} of {total} policies are trained"
            counted += f", and {measured} of {total + 1} are measured" if measuring else ""
            notes.append(f"{run.name} is not finished: {counted}.")
        if not measuring:
            notes.append(f"{run.name} has no measures: its recipe names no evaluate.prompts.")
    return notes
