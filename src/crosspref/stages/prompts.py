"""Prompts: the run's own copy of the parallel prompts, for training and held out."""

from collections.abc import Iterator
from functools import partial

from crosspref.data.prompts import load_prompts
from crosspref.data.records import Dropped, Instruction, Prompt, as_instruction
from crosspref.languages import ENGLISH
from crosspref.recipe.schema import Recipe
from crosspref.run.job import Job, digest_rows, store_rows
from crosspref.run.layout import DROPPED, TableFolder
from crosspref.run.phases import Expected, Output, Phase
from crosspref.run.store import Fingerprint


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
    return Phase("prompts", 0, read_prompts, expect_prompts, outputs)


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


def expect_prompts(job: Job, _: int) -> Iterator[Expected]:
    """Yield what the tables of prompts must be: nothing but the rows that their markers know."""
    for table in (job.run.prompts, job.run.heldout):
        for name in [*_languages(job.recipe), DROPPED]:
            unit, kind = table.unit(name), Dropped if name == DROPPED else Prompt
            if unit.marker.exists():  # where they came from and what they were, it alone knows
                parts = unit.read_marker()["parts"]
                fingerprint = Fingerprint({key: parts.get(key) for key in ("source", "rows")})
                yield Expected(unit, fingerprint, kind, partial(_prompt_faults, name, parts.get("rows")))


def _prompt_faults(name: str, digest: object, rows: list[Prompt | Dropped]) -> Iterator[str]:
    if digest_rows(rows) != digest:
        yield f"its {len(rows)} rows are not those that its marker knows"
    if name != DROPPED and any(row.language != name for row in rows):
        yield f"it holds prompts in other languages than {name}"
    if name != DROPPED and len({row.prompt_id for row in rows}) < len(rows):
        yield "it holds a prompt twice"


def _languages(recipe: Recipe) -> list[str]:
    """Return the languages whose prompts are stored: English, on which rewards are conditioned, and the recipe's."""
    return list(dict.fromkeys([ENGLISH, *recipe.languages]))


def stored_instructions(prompts: TableFolder, language: str) -> dict[str, Instruction]:
    """Return the stored instructions in one language by prompt_id."""
    table = prompts.unit(language).table()
    ids, instructions = (table.column(name).to_pylist() for name in ("prompt_id", "instruction"))
    return dict(zip(ids, map(as_instruction, instructions), strict=True))
