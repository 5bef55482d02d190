"""``crosspref check``: everything that can be found wrong in seconds, without torch and without running."""

import shlex
from collections.abc import Iterator

from crosspref.api import check_models
from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import LoadedPrompts, load_prompts
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.languages import ENGLISH
from crosspref.recipe.schema import Recipe
from crosspref.run.launching import launch_command


def check_recipe(recipe: Recipe) -> Iterator[str]:
    """Yield one line per thing that was checked; ``note`` lines are worth a look, but stop nothing.

    Raises:
        CrossprefError: at the first thing that would stop a run.
    """
    for role, files in check_models(recipe).items():
        yield f"ok    model {role}: {files.name}"
    if recipe.models.policy is not None and recipe.models.initial is not None:
        yield "ok    policy and initial model have the same tokenizer and chat template"
    if recipe.resources.launch is not None:
        yield f"ok    training is started by: {shlex.join(launch_command(recipe.resources))}"
    training = load_prompts(recipe.prompts, recipe.languages)
    yield from _describe("prompts", training)
    if recipe.held_out is not None:
        held_out = load_prompts(recipe.held_out, recipe.languages)
        yield from _describe("held-out prompts", held_out)
        seen = {prompt.instruction for prompt in training.prompts}
        common = sum(prompt.instruction in seen for prompt in held_out.prompts)
        if common:
            yield f"note  {common} held-out prompts are training prompts too: the evaluation will look too good"
    if recipe.align_english is not None:
        yield f"ok    {len(load_preferences(recipe.align_english.preferences))} English preference pairs"
    if recipe.language_imbalance is not None:
        ids = {prompt.prompt_id for prompt in training.prompts}
        absent = [name for name in recipe.language_imbalance.translation_prompts if name not in ids]
        if absent:
            yield f"note  {len(absent)} of language_imbalance.translation_prompts are no prompts, as {absent[0]!r}"
    engines = EngineFactory(EngineSettings.of(recipe))
    unknown = [language for language in recipe.languages if engines.identifier(language) is None]
    if unknown:
        yield f"note  the language of responses cannot be identified for: {', '.join(unknown)}"
    trained = [prompt for prompt in training.prompts if prompt.language in recipe.languages]
    each = 1 if recipe.language_imbalance else recipe.sample.n
    count = len(trained) * each * recipe.iterations
    yield f"ok    ready: {count:,} responses of at most {recipe.sample.max_new_tokens:,} tokens to sample"


def _describe(what: str, loaded: LoadedPrompts) -> Iterator[str]:
    languages = dict.fromkeys(prompt.language for prompt in loaded.prompts)
    counts = {language: sum(prompt.language == language for prompt in loaded.prompts) for language in languages}
    shown = ", ".join(f"{language} {count}" for language, count in counts.items())
    yield f"ok    {what}: {counts[ENGLISH]} in English, {shown}"
    if loaded.dropped:
        yield f"note  {what}: {len(loaded.dropped)} rows will be dropped"
