"""Prompts: the run's own copy of the parallel prompts, for training and held out."""

from crosspref.data.prompts import load_prompts
from crosspref.data.records import Dropped, Instruction, Prompt, as_instruction
from crosspref.languages import ENGLISH
from crosspref.recipe.schema import Recipe
from crosspref.run.job import Job, store_rows
from crosspref.run.layout import DROPPED, TableFolder
from crosspref.run.phases import Output, Phase


def phase(recipe: Recipe) -> Phase:
    """Return the phase that stores the prompts."""
    names = [*_languages(recipe), DROPPED]
    settings = ("languages", "prompts")
    outputs = [Output("prompts", lambda run: run.prompts, settings, names=names, label="prompts")]
    if recipe.evaluate.prompts is not None:
        held_out = (*settings, "evaluate.prompts", "evaluate.limit")
        without = ("prompts.source", "prompts.limit")
        label = "held-out prompts"
        outputs.append(Output("heldout", lambda run: run.heldout, held_out, without=without, names=names, label=label))
    return Phase("prompts", 0, read_prompts, outputs)


def read_prompts(job: Job, _: int) -> None:
    """Read, check and store the parallel prompts, for training and held out."""
    recipe = job.recipe
    for table, settings in ((job.run.prompts, recipe.prompts), (job.run.heldout, recipe.held_out)):
        if settings is None:
            continue
        name, stored = table.folder.name, {"source": settings.source}
        loaded = load_prompts(settings, recipe.languages)
        for language in _languages(recipe):
            rows = [prompt for prompt in loaded.prompts if prompt.language == language]
            store_rows(table.unit(language), rows, Prompt, stored)
            job.reporter.say(f"{name} {language}: {len(rows)}")
        store_rows(table.unit(DROPPED), loaded.dropped, Dropped, stored)
        if loaded.dropped:
            job.reporter.say(f"{name}: {len(loaded.dropped)} dropped, see {table.unit(DROPPED).path}")


def _languages(recipe: Recipe) -> list[str]:
    """Return the languages whose prompts are stored: English, on which rewards are conditioned, and the recipe's."""
    return list(dict.fromkeys([ENGLISH, *recipe.languages]))


def stored_instructions(prompts: TableFolder, language: str) -> dict[str, Instruction]:
    """Return the stored instructions in one language by prompt_id."""
    table = prompts.unit(language).table()
    ids, instructions = (table.column(name).to_pylist() for name in ("prompt_id", "instruction"))
    return dict(zip(ids, map(as_instruction, instructions), strict=True))
