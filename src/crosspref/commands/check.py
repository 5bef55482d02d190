"""``crosspref check``: everything that can be found wrong in seconds, without torch and without running."""

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from crosspref.api import check_models
from crosspref.commands import RECIPE, add_set
from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import LoadedPrompts, load_prompts
from crosspref.data.records import as_text
from crosspref.engines import EngineFactory, EngineSettings, find_engine, require_library
from crosspref.errors import CrossprefError, ModelError, RecipeError
from crosspref.languages import ENGLISH
from crosspref.plan.costs import scored_models
from crosspref.plan.shapes import read_shape
from crosspref.recipe.files import load_recipe
from crosspref.recipe.schema import Recipe
from crosspref.run.processes import launch_command

DEVICE_SECONDS = 120.0
"""How long the child process that looks for a device may take: it imports torch, from a slow disk perhaps."""

LOOK_FOR_DEVICE = """
import sys, torch
name = sys.argv[1]
if name == "auto":
    name = "cuda" if torch.cuda.is_available() else "cpu"
torch.zeros(1, device=name)
print(torch.cuda.mem_get_info(name)[1] if name.startswith("cuda") else 0)
"""
"""Prints the bytes of memory of the device that its argument names, 0 for one that is no GPU; fails without it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help=RECIPE)
    add_set(parser)


def execute(options: argparse.Namespace) -> None:
    """Print a line for each thing that was checked."""
    recipe = load_recipe(options.recipe, options.overrides)
    print(f"ok    recipe {options.recipe}")
    for line in check_recipe(recipe):
        print(line)


def check_recipe(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each thing that was checked; one that begins with ``note`` is worth a look, but stops nothing.

    Raises:
        CrossprefError: after the last check, what would stop a run: the error itself, or one for several.
    """
    faults: list[CrossprefError] = []
    for check in (_models, _libraries, _servers, _launcher, _device, _prompts, _preferences):
        try:
            yield from check(recipe)
        except CrossprefError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        listed = "\n".join(f"- {fault}" for fault in faults)
        raise CrossprefError(f"{len(faults)} things would stop this run:\n{listed}")
    yield "ok    ready"


def _models(recipe: Recipe) -> Iterator[str]:
    for role, files in check_models(recipe).items():
        yield f"ok    model {role}: {files.name}"
        if files.gguf_file is not None:
            require_library("gguf", f"Reading {files.name}")
    if recipe.models.policy is not None and recipe.models.initial is not None:
        yield "ok    policy and initial model have the same tokenizer and chat template"


def _libraries(recipe: Recipe) -> Iterator[str]:
    """Look for the optional libraries that the recipe's choices need."""
    loras = [section.lora for section in (recipe.align_english, recipe.train) if section is not None]
    needed = {
        "vllm": (recipe.sample.engine == "vllm", "sample.engine: vllm"),
        "openai": (_uses_servers(recipe), "The engine server"),
        "ray": (recipe.resources.executor == "ray", "resources.executor: ray"),
        "bitsandbytes": (any(lora is not None and lora.bits for lora in loras), "lora.bits: 4 (QLoRA)"),
    }
    for library, (is_needed, purpose) in needed.items():
        if is_needed:
            require_library(library, purpose)
            yield f"ok    library {library}"


def _uses_servers(recipe: Recipe) -> bool:
    return "server" in (recipe.sample.engine, recipe.reward.engine)


def _servers(recipe: Recipe) -> Iterator[str]:
    """Ask the servers for the models with which the run begins: pi_0 if it is given, and pi_I where they score."""
    if not _uses_servers(recipe) or importlib.util.find_spec("openai") is None:
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


def _device(recipe: Recipe) -> Iterator[str]:
    """Look for the device, and compare its memory with the weights, which are the least that has to fit."""
    if recipe.resources.executor == "ray":  # devices and memory are the workers'
        return
    device, available = _find_device(recipe.resources.device)
    yield f"ok    device {device} with {available / 1e9:,.1f} GB" if available else f"ok    device {device}"
    for name, needed in _weights(recipe):
        if available and needed > available:
            raise ModelError(
                f"{name} does not fit: the weights alone take {needed / 1e9:,.1f} GB, and {device} has "
                f"{available / 1e9:,.1f} GB. Use a smaller model, a larger device, or an engine that spreads the model "
                "over several devices; `crosspref plan` says more."
            )


def _weights(recipe: Recipe) -> Iterator[tuple[str, float]]:
    """Yield a name and the bytes of every model that has to be on one device, at the least: those held together as one.

    A model that cannot be found has been reported already.
    """
    try:
        models = check_models(recipe)
        bytes_of = {
            role: read_shape(files).parameters * (4 if recipe.resources.dtype == "float32" else 2)
            for role, files in models.items()
        }
    except CrossprefError:
        return
    policy = "policy" if "policy" in models else "initial"
    samples_here = recipe.sample.engine == "transformers"
    scores_here = recipe.language_imbalance is None and recipe.reward.engine == "transformers"
    trains_here = recipe.resources.launch is None and not (recipe.train.lora and recipe.train.lora.bits)
    if samples_here or scores_here or trains_here:
        yield f"The policy {models[policy].name}", bytes_of[policy]
    # Models over one base share it; of a pi_0 that stage 0 will make it is not known yet.
    has_two = "initial" in models and models[policy].base != models["initial"].base and scored_models(recipe) == 2
    if scores_here and has_two:
        yield f"Scoring with {models[policy].name} and its reference", bytes_of[policy] + bytes_of["initial"]
    for role in ("translator", "reward model"):
        if role in models:
            yield f"The {role} {models[role].name}", bytes_of[role]


def _find_device(name: str) -> tuple[str, int]:
    """Return the device that a recipe names, and its memory in bytes, 0 if that is not known.

    Raises:
        RecipeError: it is not on this machine.
    """
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
    if name == "cpu" or (name == "auto" and not has_gpu):
        return "cpu", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    child = [sys.executable, "-c", LOOK_FOR_DEVICE, name]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            child, capture_output=True, text=True, errors="replace", timeout=DEVICE_SECONDS, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise RecipeError(f"resources.device: {name} did not answer within {DEVICE_SECONDS:.0f} s.") from error
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise RecipeError(f"resources.device: {name} cannot be used on this machine: {why}") from error
    return name, int(done.stdout.split()[-1])


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
