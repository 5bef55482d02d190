"""What a changed recipe would invalidate in a run that was begun with another one."""

from typing import Any

from crosspref.errors import RunError
from crosspref.recipe.files import dump_recipe, flatten, load_recipe
from crosspref.recipe.schema import Recipe
from crosspref.run.store import RunDirectory, write_text

RESULTS = {
    "prompts": "prompts/*.done.json",
    "held-out prompts": "heldout/*.done.json",
    "align_english": "iteration_0/policy.done.json",
    "evaluation of pi_0": "iteration_0/evaluation/*/**/*.done.json",
    "sample": "iteration_*/responses/*/*.done.json",
    "translate": "iteration_*/translations/*/*.done.json",
    "score": "iteration_*/scores/*/*/*.done.json",
    "select": "iteration_*/pairs/*.done.json",
    "train": "iteration_[1-9]*/policy.done.json",
    "evaluate": "iteration_[1-9]*/evaluation/*/**/*.done.json",
}
"""The done-markers of every kind of result. From `sample` on each builds on the one before."""

_BUILT = list(RESULTS)
_FROM_SAMPLE, _FROM_SCORE, _FROM_SELECT, _FROM_TRAIN = (
    _BUILT[_BUILT.index(stage) :] for stage in ("sample", "score", "select", "train")
)
_FROM_PI_0 = _BUILT[_BUILT.index("align_english") :]

AFFECTED = {
    "models": _FROM_PI_0,
    "languages": _BUILT,
    "prompts": _BUILT,
    "seed": _FROM_PI_0,
    "align_english": _FROM_PI_0,
    "sample": ["evaluation of pi_0", *_FROM_SAMPLE],
    "sample.n": _FROM_SAMPLE,
    "translate": ["translate"],
    "reward": ["evaluation of pi_0", *_FROM_SCORE],
    "reward.name": _FROM_SELECT,
    "reward.reference": _FROM_SCORE,
    "reward.counting": _FROM_SCORE,
    "length_penalty": _FROM_SELECT,
    "select": _FROM_SELECT,
    "language_imbalance": _FROM_SAMPLE,
    "train": _FROM_TRAIN,
    "evaluate": ["evaluation of pi_0", "evaluate"],
    "evaluate.prompts": ["held-out prompts", "evaluation of pi_0", "evaluate"],
    "evaluate.limit": ["held-out prompts", "evaluation of pi_0", "evaluate"],
    "server.protocol": ["evaluation of pi_0", *_FROM_SAMPLE],
    "resources.shard_prompts": ["evaluation of pi_0", *_FROM_SAMPLE],
}
"""The results that depend on a section, or on a setting that differs from its section in this."""

FREE = (
    "iterations",
    "resources",
    "vllm",
    "server",
    "ray",
    "sample.batch_size",
    "sample.batch_tokens",
    "reward.also",
    "reward.reward_model",
    "reward.batch_tokens",
    "reward.logits_megabytes",
    "train.micro_batch_size",
    "train.checkpoint_every",
    "train.gradient_checkpointing",
    "train.precompute_reference",
    "align_english.micro_batch_size",
    "align_english.checkpoint_every",
    "align_english.gradient_checkpointing",
    "align_english.precompute_reference",
)
"""Settings that may change at any time: they say how far to go, how to compute, or what to compare with."""


def settle_recipe(run: RunDirectory, recipe: Recipe) -> None:
    """Write the resolved recipe into the run, if it fits what was done there already.

    Raises:
        RunError: finished work depends on a setting that has changed since.
    """
    if run.recipe.exists():
        changed = changed_settings(flatten(load_recipe(run.recipe)), flatten(recipe))
        lost = {key: _finished(run, affected_by(key)) for key in changed}
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
        if not changed:
            return
    write_text(run.recipe, dump_recipe(recipe))


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of every setting that differs."""
    keys = dict.fromkeys([*old, *new])
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def affected_by(key: str) -> list[str]:
    """Return which results depend on a setting; none for one that may change at any time."""
    section = key.partition(".")[0]
    if key in AFFECTED:
        return AFFECTED[key]
    return [] if key in FREE or section in FREE else AFFECTED[section]


def _finished(run: RunDirectory, affected: list[str]) -> list[str]:
    """Name the finished units of these results, as counts."""
    counts = {name: sum(1 for _ in run.root.glob(RESULTS[name])) for name in affected}
    return [f"{name} ({count} finished)" for name, count in counts.items() if count]
