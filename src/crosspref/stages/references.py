"""The training reference's log-probabilities of the pairs, computed once and carried by a table of pairs."""

from collections.abc import Mapping
from dataclasses import replace

from crosspref.data.records import Pair
from crosspref.models.locate import ModelFiles
from crosspref.recipe.sections import TrainSettings
from crosspref.run.job import Job, digest_rows
from crosspref.run.store import Fingerprint, Unit


def fill_references(
    job: Job,
    iteration: int,
    pairs: Mapping[str, list[Pair]],
    settings: TrainSettings,
    start: ModelFiles,
    reference: ModelFiles | None = None,
) -> None:
    """Fill ``iteration_t/referenced_pairs`` with the pairs of each language and what the reference says of them.

    Without a reference it is the policy that training starts from. It alone is in memory meanwhile. Pairs that are too
    long to be trained on stay without.
    """
    counted = {"max_length": settings.max_length, "lora": settings.lora is not None}
    shards = []
    for language, rows in pairs.items():
        inputs = {"reference": (reference or start).identity, "pairs": digest_rows(rows)}
        shards.append((referenced(job, iteration, language), Fingerprint(counted, inputs), rows))
    todo = [shard for shard in shards if not shard[0].finished(shard[1])]
    if not todo:
        return
    label = f"iteration {iteration} reference"
    job.reporter.say(f"{label}: loading the model")
    trainer = job.engines.trainer(start, settings, reference)
    try:
        with job.reporter.step(label, sum(len(rows) for _, _, rows in todo)) as meter:
            for unit, fingerprint, rows in todo:
                found = trainer.reference_logprobs(rows, meter.advance)
                unit.write_rows([carrying(*both) for both in zip(rows, found, strict=True)], Pair)
                unit.finish(fingerprint, len(rows))
    finally:
        trainer.close()


def carrying(pair: Pair, logprobs: tuple[float, float] | None) -> Pair:
    """Return the pair with the reference's (chosen, rejected) log-probabilities, nats."""
    chosen, rejected = logprobs or (None, None)
    return replace(pair, reference_chosen_logprob=chosen, reference_rejected_logprob=rejected)


def referenced(job: Job, iteration: int, language: str) -> Unit:
    """Return where the pairs of one language lie that carry their reference."""
    return Unit(job.run.iteration(iteration) / "referenced_pairs" / f"{language}.parquet")
