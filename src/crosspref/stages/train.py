"""Training: pi_t from pi_{t-1} on the pairs (Eq. 11, 16), and pi_0 from pi_I on English preferences (stage 0)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from crosspref.data.preferences import load_preferences
from crosspref.data.records import Pair
from crosspref.errors import DataError
from crosspref.languages import ENGLISH
from crosspref.models.locate import ModelFiles
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import TrainSettings
from crosspref.run.job import Job, asking_of, digest_rows, settings_of
from crosspref.run.kept import keeping
from crosspref.run.phases import GIVEN, Expected, Output, Phase
from crosspref.run.progress import Reporter
from crosspref.run.ranks import is_main
from crosspref.run.store import Fingerprint


@dataclass(frozen=True, slots=True)
class Training:
    """What makes a policy: ``section`` of the recipe says how, ``start`` from where.

    Without a reference, the policy that training starts from is its own. ``asking`` is how the models are asked, as
    fingerprints have it.
    """

    section: str
    settings: TrainSettings
    start: ModelFiles
    reference: ModelFiles | None = None
    asking: Mapping[str, Any] = field(default_factory=dict)

    def fingerprint(self, seed: int, pairs: Sequence[Pair]) -> Fingerprint:
        """Return what determines the trained policy."""
        inputs = {"start": self.start.identity, "pairs": digest_rows(pairs)}
        if self.reference is not None:
            inputs["reference"] = self.reference.identity
        return Fingerprint({**settings_of(self.section, self.settings), **self.asking, "seed": seed}, inputs)


def phase(iteration: int) -> Phase:
    """Return the phase that trains pi_t; at iteration 0 that is stage 0."""
    section = _section(iteration)
    inputs = () if iteration == 0 else ("pairs", "policy")
    policy = Output("policy", lambda run: run.iteration(iteration).policy, (section, "seed", "models"), inputs)
    return Phase(section, iteration, train_iteration, expect_policy, [policy], trains=True)


def reference_phase(recipe: Recipe, iteration: int) -> Phase:
    """Return the phase that computes what the training reference says of the pairs, before training."""
    section = _section(iteration)
    pairs = Output(
        "referenced pairs",
        lambda run: run.iteration(iteration).referenced_pairs,
        (f"{section}.max_length", f"{section}.lora", f"{section}.reference", "models"),
        () if iteration == 0 else ("pairs", "policy"),
        names=[ENGLISH] if iteration == 0 else recipe.languages,
    )
    return Phase("reference", iteration, fill_references, expect_references, [pairs])


def _section(iteration: int) -> str:
    return "train" if iteration else "align_english"


def training_of(job: Job, iteration: int) -> Training:
    """Return how the recipe trains the policy that an iteration ends with."""
    recipe, asking = job.recipe, asking_of(job.recipe.models)
    if iteration == 0:
        if recipe.align_english is None:
            raise DataError("The recipe gives pi_0, so that there is nothing to train in iteration 0.")
        return Training(_section(0), recipe.align_english, job.model(recipe.models.initial), asking=asking)
    reference = job.model(recipe.models.initial) if recipe.train.reference == "initial" else None
    return Training(_section(iteration), recipe.train, job.policy(iteration - 1), reference, asking)


def training_pairs(job: Job, iteration: int) -> dict[str, list[Pair]]:
    """Return the pairs that an iteration trains on, by language; in iteration 0 the English preferences."""
    if iteration == 0 and job.recipe.align_english is not None:
        return {ENGLISH: load_preferences(job.recipe.align_english.preferences)}
    table = job.run.iteration(iteration).pairs
    return {language: table.rows(language) for language in job.recipe.languages}


def train_iteration(job: Job, iteration: int) -> None:
    """Eq. 11 or 16: train pi_t from pi_{t-1} on the pairs of all languages; pi_0 from pi_I on English preferences."""
    training = training_of(job, iteration)
    referenced = training.settings.precompute_reference
    by_language = _referenced_pairs(job, iteration) if referenced else training_pairs(job, iteration)
    train_policy(job, iteration, [pair for rows in by_language.values() for pair in rows], training)


def _referenced_pairs(job: Job, iteration: int) -> dict[str, list[Pair]]:
    table = job.run.iteration(iteration).referenced_pairs
    return {language: table.rows(language) for language in (job.recipe.languages if iteration else [ENGLISH])}


def expect_policy(job: Job, iteration: int) -> Iterator[Expected]:
    """Yield what the policy must be made from. Of English preferences the run has no copy but with their reference."""
    training, places = training_of(job, iteration), job.run.iteration(iteration)
    if iteration == 0 and not training.settings.precompute_reference:
        fingerprint = training.fingerprint(job.recipe.seed, [])
        inputs = {**fingerprint.inputs, "pairs": f"{GIVEN}preferences"}
        yield Expected(places.policy, replace(fingerprint, inputs=inputs))
        return
    by_language = training_pairs(job, iteration) if iteration else _referenced_pairs(job, iteration)
    pairs = [pair for rows in by_language.values() for pair in rows]
    yield Expected(places.policy, training.fingerprint(job.recipe.seed, pairs))


def expect_references(job: Job, iteration: int) -> Iterator[Expected]:
    """Yield what the pairs with their reference must be: the pairs themselves, with two log-probabilities or none."""
    training, table = training_of(job, iteration), job.run.iteration(iteration).referenced_pairs
    by_language = training_pairs(job, iteration) if iteration else _referenced_pairs(job, iteration)
    for language, pairs in by_language.items():
        fingerprint = _reference_fingerprint(training, pairs)
        yield Expected(table.unit(language), fingerprint, Pair, partial(_reference_faults, pairs))


def _reference_faults(pairs: Sequence[Pair], rows: list[Pair]) -> Iterator[str]:
    if digest_rows(rows) != digest_rows(pairs):
        yield f"its {len(rows)} pairs are not the {len(pairs)} that were selected"
    for row in rows:
        if (row.reference_chosen_logprob is None) != (row.reference_rejected_logprob is None):
            yield f"the pair of prompt {row.prompt_id!r} has one log-probability of two"


def train_policy(job: Job, iteration: int, pairs: Sequence[Pair], training: Training) -> None:
    """Train the policy that an iteration ends with, from its last checkpoint if there is one.

    Of several processes that train together, each comes here, and the first one writes.

    Raises:
        DataError: there are no pairs.
    """
    places = job.run.iteration(iteration)
    fingerprint = training.fingerprint(job.recipe.seed, pairs)
    unit = places.policy
    if unit.finished(fingerprint):
        if is_main():
            places.remove_checkpoints()  # a kill may have come between the marker and this
        return
    if not pairs:
        raise DataError(
            f"Iteration {iteration} has no pairs to train on. {places.dropped.folder} says why each prompt was "
            "dropped. Where responses are cut, select.truncated: keep or a larger sample.max_new_tokens helps; where "
            "prompts are too long, a smaller one."
        )
    label = f"iteration {iteration} {training.section}"
    job.reporter.say(f"{label}: loading the model")
    trainer = job.engines.trainer(training.start, training.settings, training.reference)
    started = time.monotonic()
    try:
        with job.reporter.step(label, len(pairs) * training.settings.epochs) as meter:
            temporary = unit.temporary()
            figures = trainer.train(pairs, temporary, places.checkpoints(fingerprint), meter.advance)
            unit.publish(temporary)
        say_left_out(job.reporter, training, figures)
    finally:
        trainer.close()
    if not is_main():
        return
    unit.finish(fingerprint, len(pairs), seconds=time.monotonic() - started, tokens=meter.tokens, **figures)
    places.remove_checkpoints()


def say_left_out(reporter: Reporter, training: Training, figures: Mapping[str, Any]) -> None:
    """Say how many pairs were too long to be trained on, if any were; ``figures`` are those of ``Trainer.train``."""
    too_long, longest = figures["too_long"], training.settings.max_length
    if too_long:
        reporter.say(
            f"{too_long} of {figures['pairs'] + too_long} pairs were left out: they are longer than "
            f"{training.section}.max_length ({longest} tokens)."
        )


def fill_references(job: Job, iteration: int) -> None:
    """Compute what the training reference says of the pairs, so that training need not hold it beside the policy.

    Pairs that are too long to be trained on stay without.
    """
    training, table = training_of(job, iteration), job.run.iteration(iteration).referenced_pairs
    todo = []
    for language, rows in training_pairs(job, iteration).items():
        unit, fingerprint = table.unit(language), _reference_fingerprint(training, rows)
        if not unit.finished(fingerprint):
            todo.append((unit, fingerprint, rows))
    if not todo:
        return
    label = f"iteration {iteration} reference"
    job.reporter.say(f"{label}: loading the model")
    trainer = job.engines.trainer(training.start, training.settings, training.reference)
    try:
        with job.reporter.step(label, sum(len(rows) for _, _, rows in todo)) as meter:
            for unit, fingerprint, rows in todo:
                with keeping(meter.advance, unit, fingerprint) as kept:
                    logprobs = trainer.reference_logprobs(rows, kept)
                unit.write_rows([carrying(*both) for both in zip(rows, logprobs, strict=True)], Pair)
                unit.finish(fingerprint, len(rows))
    finally:
        trainer.close()


def _reference_fingerprint(training: Training, pairs: Sequence[Pair]) -> Fingerprint:
    settings, reference = training.settings, training.reference or training.start
    fingerprinted = {"max_length": settings.max_length, "lora": settings.lora is not None, **training.asking}
    return Fingerprint(fingerprinted, {"reference": reference.identity, "pairs": digest_rows(pairs)})


def carrying(pair: Pair, logprobs: tuple[float, float] | None) -> Pair:
    """Return the pair with the reference's (chosen, rejected) log-probabilities, nats."""
    chosen, rejected = logprobs or (None, None)
    return replace(pair, reference_chosen_logprob=chosen, reference_rejected_logprob=rejected)
