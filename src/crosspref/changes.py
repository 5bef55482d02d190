"""What a changed recipe would invalidate in a run that was begun with another one."""

from typing import Any

from crosspref.errors import RunError
from crosspref.recipe import Recipe
from crosspref.recipe_file import dump_recipe, flatten, load_recipe
from crosspref.store import RunDirectory, write_text

STAGES = ("prompts", "align_english", "sample", "score", "select", "train", "evaluate")
"""The stages in the order in which they build on each other."""

FIRST_STAGE = {
    "models": "align_english",
    "languages": "prompts",
    "prompts": "prompts",
    "seed": "align_english",
    "align_english": "align_english",
    "sample": "sample",
    "reward": "score",
    "length_penalty": "select",
    "select": "select",
    "train": "train",
    "evaluate": "evaluate",
    "resources.shard_prompts": "sample",
}
"""The first stage whose results depend on a section."""

FREE = (
    "iterations",
    "resources",
    "sample.batch_size",
    "reward.batch_tokens",
    "reward.logits_megabytes",
    "train.micro_batch_size",
    "train.checkpoint_every",
    "train.gradient_checkpointing",
    "align_english.micro_batch_size",
    "align_english.checkpoint_every",
    "align_english.gradient_checkpointing",
)
"""Settings that may change at any time: they say how far to go and how to compute, not what."""


def settle_recipe(run: RunDirectory, recipe: Recipe) -> None:
    """Write the resolved recipe into the run, if it fits what was done there already.

    Raises:
        RunError: finished work depends on a setting that has changed since.
    """
    if run.recipe.exists():
        changed = _changed(flatten(load_recipe(run.recipe)), flatten(recipe))
        lost = {key: _finished(run, _first_stage(key)) for key in changed}
        lines = [
            f"  - {key}: {old!r} -> {new!r} would invalidate {', '.join(lost[key])}"
            for key, (old, new) in changed.items()
            if lost[key]
        ]
        if lines:
            raise RunError(
                f"The recipe has changed since the run in {run.root} was begun:\n" + "\n".join(lines) + "\n"
                "Nothing was touched. Use a new run directory, or set these back (the run's recipe is "
                f"{run.recipe}). To throw the old results away and begin again: rm -r {run.root}"
            )
    write_text(run.recipe, dump_recipe(recipe))


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys([*old, *new])
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _first_stage(key: str) -> str | None:
    if key in FIRST_STAGE:
        return FIRST_STAGE[key]
    if key in FREE or key.partition(".")[0] in FREE:
        return None
    return FIRST_STAGE[key.partition(".")[0]]


def _finished(run: RunDirectory, first: str | None) -> list[str]:
    """Name the finished units of a stage and of those that build on it, as counts."""
    if first is None:
        return []
    counts = {
        "prompts": len(list(run.root.glob("prompts/*.done.json"))),
        "align_english": len(list(run.root.glob("iteration_0/policy.done.json"))),
        "sample": len(list(run.root.glob("iteration_*/responses/*/*.done.json"))),
        "score": len(list(run.root.glob("iteration_*/scores/*/*.done.json"))),
        "select": len(list(run.root.glob("iteration_*/pairs/*.done.json"))),
        "train": len(list(run.root.glob("iteration_[1-9]*/policy.done.json"))),
        "evaluate": len(list(run.root.glob("iteration_*/evaluation/*/*/*.done.json"))),
    }
    affected = STAGES[STAGES.index(first) :]
    return [f"{stage} ({counts[stage]} finished)" for stage in affected if counts[stage]]
