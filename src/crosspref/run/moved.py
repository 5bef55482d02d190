"""Models, prompts and preferences that lie elsewhere than when a run was begun: what counts is what they hold."""

import json
from collections.abc import Sequence
from pathlib import Path

from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import load_prompts
from crosspref.errors import CrossprefError
from crosspref.languages import ENGLISH
from crosspref.models.files import ADAPTER_CONFIG, read_json
from crosspref.models.locate import locate_model
from crosspref.paths import existing
from crosspref.recipe.schema import Recipe
from crosspref.run.job import digest_rows
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Unit

MODELS = ("policy", "reference", "start", "translator")
PARTS = {
    "models.initial": MODELS,
    "models.policy": MODELS,
    "translate.model": MODELS,
    "prompts.source": ("rows",),
    "evaluate.prompts": ("rows",),
    "align_english.preferences": ("pairs",),
}
"""The settings that name what can move, and the parts of fingerprints that say what it held."""


def holds_the_same(run: RunDirectory, recipe: Recipe, setting: str, units: Sequence[Unit]) -> bool:
    """Tell whether units were made from what a recipe names now, wherever that lay when they were made.

    ``setting`` has changed, and the units depend on it directly.
    """
    if setting not in PARTS:
        return False
    markers = [unit.read_marker()["parts"] for unit in units if unit.marker.exists()]
    made_from = {str(parts[name]) for parts in markers for name in PARTS[setting] if name in parts} - {"none"}
    try:
        return made_from <= _digests(run, recipe, setting)
    except CrossprefError:  # it cannot be read
        return False


def _digests(run: RunDirectory, recipe: Recipe, setting: str) -> set[str]:
    """Return the hashes of what a recipe names by a setting, or by any setting if that is a model's."""
    if PARTS[setting] is MODELS:
        names = {recipe.models.initial, recipe.models.policy, recipe.translate.model} - {None}
        policies = [iteration.policy for iteration in run.iterations()]
        return {locate_model(str(name)).identity for name in names}.union(
            policy.digest for policy in policies if policy.marker.exists()
        )
    if setting == "align_english.preferences":
        return {digest_rows(load_preferences(recipe.align_english.preferences))} if recipe.align_english else set()
    settings = recipe.prompts if setting == "prompts.source" else recipe.held_out
    if settings is None:
        return set()
    loaded = load_prompts(settings, recipe.languages)
    by_language = [
        [prompt for prompt in loaded.prompts if prompt.language == language]
        for language in {ENGLISH, *recipe.languages}
    ]
    return {digest_rows(loaded.dropped), *map(digest_rows, by_language)}


def find_base_again(run: RunDirectory, recipe: Recipe) -> None:
    """Let the run's adapters name the base of the recipe's first model where the one that they name is gone."""
    for config in run.root.glob(f"iteration_*/policy/{ADAPTER_CONFIG}"):
        content = read_json(config)
        named = str(content.get("base_model_name_or_path"))
        if Path(named).is_absolute() and existing(named) is None:
            files = locate_model(recipe.models.policy or recipe.models.initial or "")
            base = files.directory / (files.gguf_file or "")
            text = json.dumps({**content, "base_model_name_or_path": str(base.absolute())}, indent=2)
            Unit(config.parent).replace_text(config, text)
