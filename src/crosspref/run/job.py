"""What the phases share: the job, its shards, and how shards are filled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crosspref.data.records import LATER as LATER_COLUMNS
from crosspref.data.records import Prompt, to_table
from crosspref.errors import DataError
from crosspref.models.files import file_names, is_adapter
from crosspref.models.locate import ModelFiles, locate_model
from crosspref.protocols import Advance, Engines
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import AskingSettings, Settings
from crosspref.recipe.stages import StageSettings
from crosspref.run.kept import keeping
from crosspref.run.layout import RunDirectory
from crosspref.run.progress import Reporter
from crosspref.run.store import Fingerprint, Unit, digest_of

SPEED = frozenset(
    {
        *("sample.batch_size", "sample.batch_tokens", "reward.batch_tokens", "reward.logits_megabytes"),
        "models.trust_remote_code",
        *(
            f"{section}.{name}"
            for section in ("train", "align_english")
            for name in ("micro_batch_size", "checkpoint_every", "gradient_checkpointing", "precompute_reference")
        ),
    }
)
"""Settings that say how a thing is computed, and not what; they are in no fingerprint and may change at any time."""

LATER = {"select.upper_bound": None}
"""Settings that came later, with the value that stands for what was before: such are in no fingerprint either."""

CARRIED = ("reference_chosen_logprob", "reference_rejected_logprob")
"""Columns of a pair that follow from the pair and the reference, which a fingerprint names by itself."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Who fills shards, and where progress is shown."""

    engines: Engines
    reporter: Reporter


@dataclass(frozen=True, slots=True)
class Job:
    """What every phase needs."""

    recipe: Recipe
    run: RunDirectory
    engines: Engines
    reporter: Reporter

    def policy(self, iteration: int) -> ModelFiles:
        """Return where pi_t lies, as ``find_policy`` does."""
        return find_policy(self.recipe, self.run, iteration)

    def model(self, name: str | None) -> ModelFiles:
        """Return where a model of the recipe lies."""
        return locate_model(name or "")


def find_policy(recipe: Recipe, run: RunDirectory, iteration: int) -> ModelFiles:
    """Return where the policy pi_t of a run lies: the given pi_0, or what an iteration trained.

    Raises:
        DataError: it has not been trained yet.
    """
    given = recipe.models.policy
    if iteration == 0 and given is not None:
        return locate_model(given)
    unit = run.iteration(iteration).policy
    if not unit.marker.exists():
        raise DataError(f"{unit.path} is not there yet: the policy of iteration {iteration} has not been trained.")
    # The marker identifies a trained policy by what determined it, so its weights need not be there to compare.
    files = ModelFiles(f"pi_{iteration}", unit.path, None, unit.digest)
    if not is_adapter(unit.path, file_names(unit.path)):
        return files
    base = locate_model(str(unit.path))
    return replace(files, directory=base.directory, gguf_file=base.gguf_file, adapter=base.adapter)


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work: some prompts of one language, and where their result belongs."""

    unit: Unit
    fingerprint: Fingerprint
    prompts: list[Prompt]


def settings_of(section: str, values: Settings, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return a section's settings for a fingerprint, without those that only say how a thing is computed."""
    settings = {f"{section}.{name}": value for name, value in values.model_dump(mode="json").items()}
    settings = {
        name: value
        for name, value in settings.items()
        if name not in SPEED
        and name.removeprefix(f"{section}.") not in without
        and (name not in LATER or value != LATER[name])
    }
    if settings.get(f"{section}.engine") == "transformers":
        del settings[f"{section}.engine"]  # as it was before there were others, so that runs begun then resume
    lora = settings.get(f"{section}.lora")
    if lora is not None:  # what is off leaves the fingerprint as it was, for the same reason
        off = {"save": "merged", "bits": None}
        settings[f"{section}.lora"] = {name: value for name, value in lora.items() if (name, value) not in off.items()}
    return settings


def fingerprint_alone(settings: StageSettings, *sections: str, **inputs: str) -> Fingerprint:
    """Return what determines the table of a stage that runs alone: some sections of its settings, and its inputs."""
    values: dict[str, Any] = {"seed": settings.seed, **asking_of(settings.models)}
    for section in sections:
        values |= settings_of(section, getattr(settings, section))
    return Fingerprint(values, inputs)


def asking_of(models: AskingSettings) -> dict[str, Any]:
    """Return how models are asked, for a fingerprint; what is at its default leaves it as it was before."""
    values = {name: getattr(models, name) for name in ("date", "chat_template_kwargs", "thinking")}
    fields = AskingSettings.model_fields
    return {f"models.{name}": value for name, value in values.items() if value != fields[name].default}


def digest_rows(rows: Sequence[Any]) -> str:
    """Return a hash of the rows' contents."""
    return digest_of([_contents(row) for row in rows])


def _contents(row: Any) -> list[Any]:
    if isinstance(row, Prompt) and not isinstance(row.instruction, str):
        # In this order since MT-Bench's second turns, so that evaluations that were begun then resume.
        *before, last = row.instruction
        return [row.prompt_id, row.language, last["content"], before]
    values = {name: getattr(row, name) for name in row.__dataclass_fields__ if name not in CARRIED}
    return [value for name, value in values.items() if name not in LATER_COLUMNS or value is not None]


def store_rows(unit: Unit, rows: Sequence[Any], kind: type, settings: dict[str, Any]) -> None:
    """Write rows that came from outside, unless the same ones are there already; ``settings`` say where from."""
    inputs = {"rows": digest_rows(rows)}
    stored = unit.read_marker()["parts"] if unit.marker.exists() else {}
    if stored.get("rows") == inputs["rows"]:  # they may have lain elsewhere
        settings = {name: stored.get(name, value) for name, value in settings.items()}
    fingerprint = Fingerprint(settings, inputs)
    if not unit.finished(fingerprint):
        unit.write_rows(list(rows), kind)
        unit.finish(fingerprint, len(rows))


@dataclass(frozen=True, slots=True)
class Filling:
    """How the shards of one table are filled.

    ``build`` makes the engine; like ``work`` it must be picklable, so that a worker elsewhere can hold the engine.
    ``work`` makes one shard's rows of ``kind`` from the engine and the shard, and advances. ``label`` is what the
    progress bar says, and ``per_prompt`` how many units of progress one prompt is.
    """

    label: str
    kind: type
    build: Callable[[], Any]
    work: Callable[[Any, Any, Advance], list[Any]]
    per_prompt: int = 1


def fill(job: Job | Workers, shards: Sequence[Shard], filling: Filling) -> None:
    """Do the shards that are not done, here or on workers; the model is loaded only if there are any."""
    todo = [shard for shard in shards if not shard.unit.finished(shard.fingerprint)]
    if not todo:
        return
    label, kind, work = filling.label, filling.kind, filling.work
    job.reporter.say(f"{label}: loading the model")

    def tabulate(engine: Any, shard: Shard, advance: Advance) -> Any:
        with keeping(advance, shard.unit, shard.fingerprint) as kept:
            return to_table(work(engine, shard, kept), kind)

    total = filling.per_prompt * sum(len(shard.prompts) for shard in todo)
    with (
        job.engines.executor().map_shards(filling.build, tabulate, todo, job.reporter.say) as results,
        job.reporter.step(label, total) as meter,
    ):
        for done in results(meter.advance):
            # Only this process writes tables, so that what is done twice by workers is stored once.
            done.shard.unit.write_table(done.result)
            done.shard.unit.finish(
                done.shard.fingerprint, done.result.num_rows, seconds=done.seconds, tokens=done.tokens
            )
