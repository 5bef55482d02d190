"""What the phases of the algorithm share: the job, its shards, and how a shard is filled."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crosspref.data.records import Pair, Prompt, to_table
from crosspref.errors import DataError
from crosspref.models.locate import ADAPTER_CONFIG, ModelFiles, locate_model
from crosspref.protocols import Advance, Engines
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import RewardName, Settings, TrainSettings
from crosspref.run.progress import Reporter
from crosspref.run.ranks import is_main
from crosspref.run.store import Fingerprint, RunDirectory, Unit, digest_of, publish_directory


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


TRAINING_SPEED = ("micro_batch_size", "checkpoint_every", "gradient_checkpointing", "precompute_reference")
"""Settings of training that say how a policy is computed, and not which."""

CARRIED = ("reference_chosen_logprob", "reference_rejected_logprob")
"""Columns of a pair that follow from the pair and the reference, which a fingerprint names by itself."""

Phase = Callable[[Job, int], None]
"""One step of the algorithm at one iteration; its input and output lie in the run directory."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work and of resuming: some prompts of one language, and where their result belongs."""

    unit: Unit
    fingerprint: Fingerprint
    prompts: list[Prompt]
    reward: RewardName | None = None
    english: Sequence[Any] = ()
    """What the work needs of the same prompts in English: the prompts, or the responses."""


def policy(job: Job, iteration: int) -> ModelFiles:
    """Return where pi_t lies: the given pi_0, or what an iteration trained.

    Raises:
        DataError: it has not been trained yet.
    """
    given = job.recipe.models.policy
    if iteration == 0 and given is not None:
        return locate_model(given)
    unit = job.run.policy(iteration)
    if not unit.marker.exists():
        raise DataError(f"{unit.path} is not there yet: the policy of iteration {iteration} has not been trained.")
    # The marker identifies a trained policy by what determined it, so its weights need not be there to compare.
    files = ModelFiles(f"pi_{iteration}", unit.path, None, unit.digest)
    if not (unit.path / ADAPTER_CONFIG).is_file():
        return files
    over = locate_model(str(unit.path))
    return replace(files, directory=over.directory, gguf_file=over.gguf_file, adapter=over.adapter)


def stored_prompts(job: Job, source: str, language: str) -> list[Prompt]:
    """Return the run's own copy of the prompts; ``source`` is ``prompts`` or ``heldout``."""
    rows: list[Prompt] = job.run.prompts(source, language).rows(Prompt)
    return rows


def cut(job: Job, folder: Path, source: str) -> Iterator[tuple[Unit, list[Prompt]]]:
    """Cut the prompts of each language into shards; yield where each shard's result belongs, and its prompts."""
    size = job.recipe.resources.shard_prompts
    for language in job.recipe.languages:
        rows = stored_prompts(job, source, language)
        own = folder / language
        for start in range(0, len(rows), size):
            yield Unit(own / f"{start:08d}.parquet"), rows[start : start + size]


def units_of(folder: Path) -> list[Unit]:
    """Return the shards of one language in order."""
    return [Unit(path) for path in sorted(folder.glob("*.parquet"))]


def rows_of(folder: Path, kind: type) -> list[Any]:
    """Return the rows of all shards of one language."""
    return [row for unit in units_of(folder) for row in unit.rows(kind)]


def settings_of(section: str, values: Settings, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return a section's settings for a fingerprint; those in ``without`` say how a thing is computed, not what."""
    found = {f"{section}.{k}": v for k, v in values.model_dump(mode="json").items() if k not in without}
    if found.get(f"{section}.engine") == "transformers":
        del found[f"{section}.engine"]  # as it was before there were others, so that runs begun then go on
    lora = found.get(f"{section}.lora")
    if lora is not None:  # likewise: what is off leaves the fingerprint as it was
        off = {"save": "merged", "bits": None}
        found[f"{section}.lora"] = {name: value for name, value in lora.items() if (name, value) not in off.items()}
    return found


def digest_rows(rows: Sequence[Any]) -> str:
    """Return a hash of the rows' contents."""
    return digest_of([[getattr(row, name) for name in row.__dataclass_fields__ if name not in CARRIED] for row in rows])


def store_rows(unit: Unit, rows: Sequence[Any], kind: type, settings: dict[str, Any]) -> None:
    """Write rows that came from outside, unless the same ones are there already."""
    fingerprint = Fingerprint(settings, {"rows": digest_rows(rows)})
    if not unit.finished(fingerprint):
        unit.write_rows(list(rows), kind)
        unit.finish(fingerprint, len(rows))


def fill(
    job: Job | Workers,
    label: str,
    shards: Sequence[Shard],
    kind: type,
    per_prompt: int,
    build: Callable[[], Any],
    work: Callable[[Any, Any, Advance], list[Any]],
) -> None:
    """Do the shards that are not done, here or on workers; the model is loaded only if there are any.

    Args:
        job: the job, or its workers alone.
        label: what the progress bar says.
        shards: all shards of the phase.
        kind: of which record the results are.
        per_prompt: how many units of progress one prompt is.
        build: makes the engine; picklable, as work is, so that a worker can hold the engine.
        work: makes one shard's rows, and advances.
    """
    todo = [shard for shard in shards if not shard.unit.finished(shard.fingerprint)]
    if not todo:
        return
    job.reporter.say(f"{label}: loading the model")

    def tabulate(engine: Any, shard: Shard, advance: Advance) -> Any:
        return to_table(work(engine, shard, advance), kind)

    total = per_prompt * sum(len(shard.prompts) for shard in todo)
    with (
        job.engines.map_shards(build, tabulate, todo, job.reporter.say) as results,
        job.reporter.step(label, total) as meter,
    ):
        for done in results(meter.advance):
            # Only this process writes, so that what is done twice by workers is stored once.
            done.shard.unit.write_table(done.result)
            figures = {"seconds": done.seconds, "tokens": done.tokens}
            done.shard.unit.finish(done.shard.fingerprint, done.result.num_rows, **figures)


def training_fingerprint(
    section: str,
    settings: TrainSettings,
    seed: int,
    start: ModelFiles,
    pairs: Sequence[Pair],
    reference: ModelFiles | None = None,
) -> Fingerprint:
    """Return what determines a trained policy."""
    counted = settings_of(section, settings, without=TRAINING_SPEED)
    inputs = {"start": start.identity, "pairs": digest_rows(pairs)}
    if reference is not None:
        inputs["reference"] = reference.identity
    return Fingerprint({**counted, "seed": seed}, inputs)


def train_policy(
    job: Job,
    iteration: int,
    pairs: Sequence[Pair],
    section: str,
    settings: TrainSettings,
    start: ModelFiles,
    reference: ModelFiles | None = None,
) -> None:
    """Train the policy that an iteration ends with, going on from its last checkpoint.

    Without a reference, the policy that training starts from is its own. Of several processes that train together, each
    comes here, and the first one writes.
    """
    fingerprint = training_fingerprint(section, settings, job.recipe.seed, start, pairs, reference)
    unit = job.run.policy(iteration)
    if unit.finished(fingerprint):
        if is_main():
            job.run.remove_checkpoints(iteration)  # a kill may have come between the marker and this
        return
    if not pairs:
        raise DataError(
            f"Iteration {iteration} has no pairs to train on. {job.run.iteration(iteration) / 'dropped'} says why each "
            "prompt was dropped; select.truncated: keep or a larger sample.max_new_tokens often helps."
        )
    label = f"iteration {iteration} {section}"
    job.reporter.say(f"{label}: loading the model")
    trainer = job.engines.trainer(start, settings, reference)
    started = time.monotonic()
    try:
        with job.reporter.step(label, len(pairs) * settings.epochs) as meter:
            temporary = unit.temporary()
            checkpoints = job.run.checkpoints(iteration, fingerprint)
            figures = trainer.train(pairs, temporary, checkpoints, meter.advance)
            publish_directory(temporary, unit.path)
    finally:
        trainer.close()
    if not is_main():
        return
    unit.finish(fingerprint, len(pairs), seconds=time.monotonic() - started, tokens=meter.tokens, **figures)
    job.run.remove_checkpoints(iteration)
