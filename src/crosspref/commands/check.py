"""``crosspref check``: everything that can be found wrong in seconds, without running; torch is a child's."""

import argparse
import importlib.util
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from crosspref.api import examine
from crosspref.commands import RECIPE, add_set
from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import LoadedPrompts, load_prompts
from crosspref.data.records import as_text
from crosspref.data.sources import place_of
from crosspref.engines import EngineFactory, EngineSettings, find_engine
from crosspref.errors import CrossprefError, raise_all
from crosspref.languages import ENGLISH
from crosspref.models.locate import place_of_model
from crosspref.recipe.schema import Recipe
from crosspref.run.layout import given_recipe
from crosspref.run.processes import launch_command
from crosspref.run.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help=RECIPE)
    add_set(parser)


def execute(options: argparse.Namespace) -> None:
    recipe = given_recipe(options.recipe, options.overrides)
    say(f"ok    recipe {options.recipe}")
    for line in check_recipe(recipe):
        say(line)


def check_recipe(recipe: Recipe, *, apart: bool = True) -> Iterator[str]:
    """Yield a line for each thing that was checked; one that begins with ``note`` is worth a look, but stops nothing.

    A path that is not there is named at once, in a line that begins with ``fault``, and again in the error: all else
    takes longer. ``apart`` is as for ``api.examine``.

    Raises:
        CrossprefError: after the last check, what would stop a run: the error itself, or one for several.
    """
    missing = list(_missing_places(recipe))
    yield from (f"fault {fault}" for fault in missing)
    lines, found = examine(recipe, apart=apart)
    faults = missing + found
    yield from lines
    for check in (_servers, _launcher, _prompts, _preferences):
        try:
            yield from check(recipe)
        except CrossprefError as error:
            faults.append(error)
    raise_all(faults)
    yield "ok    ready"


def _missing_places(recipe: Recipe) -> Iterator[CrossprefError]:
    """Yield an error for each model and each file that is not where the recipe says; nothing is read."""
    looks: list[Callable[[], object]] = [partial(place_of_model, name) for name in recipe.model_names.values()]
    sources = [*recipe.prompts.sources, *(recipe.held_out.sources if recipe.held_out else ())]
    if recipe.align_english is not None:
        sources.append(recipe.align_english.preferences)
    looks += [partial(place_of, source) for source in sources]
    for look in looks:
        try:
            look()
        except CrossprefError as error:
            yield error


def _servers(recipe: Recipe) -> Iterator[str]:
    """Ask the servers for the models with which the run begins: pi_0 if it is given, and pi_I where they score."""
    uses_servers = "server" in (recipe.sample.engine, recipe.reward.engine)
    if not uses_servers or importlib.util.find_spec("openai") is None:
        return
    models = {"pi_0": recipe.models.policy}
    if recipe.reward.engine == "server" and recipe.models.initial is not None:
        models["pi_I"] = recipe.models.initial
    with closing(find_engine("client", "server")(recipe.server)) as client:
        for role, name in models.items():
            if name is None:  # stage 0 makes it
                client.require_answer(role)
                yield f"ok    the server that {role} needs to be served by answers"
            else:
                yield f"ok    {role} is served at {client.find(role, Path(name)).url}"


def _launcher(recipe: Recipe) -> Iterator[str]:
    if recipe.resources.launch is not None:
        yield f"ok    training is started by: {shlex.join(launch_command(recipe.resources))}"


def _prompts(recipe: Recipe) -> Iterator[str]:
    training = load_prompts(recipe.prompts, recipe.languages)
    yield from _describe("prompts", training)
    if recipe.held_out is not None:
        held_out = load_prompts(recipe.held_out, recipe.languages)
        yield from _describe("held-out prompts", held_out)
        trained = {as_text(prompt.instruction) for prompt in training.prompts}
        common = sum(as_text(prompt.instruction) in trained for prompt in held_out.prompts)
        if common:
            yield f"note  {common} held-out prompts are training prompts too: the evaluation will look too good"
    if recipe.language_imbalance is not None:
        ids = {prompt.prompt_id for prompt in training.prompts}
        absent = [name for name in recipe.language_imbalance.translation_prompts if name not in ids]
        if absent:
            yield f"note  {len(absent)} of language_imbalance.translation_prompts are no prompts, as {absent[0]!r}"
    identifier = EngineFactory(EngineSettings.of(recipe)).identifier
    unknown = [language for language in recipe.languages if identifier(language) is None]
    if unknown:
        yield f"note  the language of responses cannot be identified for: {', '.join(unknown)}"
    prompts = sum(prompt.language in recipe.languages for prompt in training.prompts)
    count = prompts * (1 if recipe.language_imbalance else recipe.sample.n) * recipe.iterations
    yield f"ok    {count:,} responses of at most {recipe.sample.max_new_tokens:,} tokens to sample"


def _describe(what: str, loaded: LoadedPrompts) -> Iterator[str]:
    languages = dict.fromkeys(prompt.language for prompt in loaded.prompts)
    counts = {language: sum(prompt.language == language for prompt in loaded.prompts) for language in languages}
    shown = ", ".join(f"{language} {count}" for language, count in counts.items())
    yield f"ok    {what}: {counts[ENGLISH]} in English, {shown}"
    if loaded.dropped:
        yield f"note  {what}: {len(loaded.dropped)} rows will be dropped"


def _preferences(recipe: Recipe) -> Iterator[str]:
    if recipe.align_english is not None:
        yield f"ok    {len(load_preferences(recipe.align_english.preferences))} English preference pairs"
