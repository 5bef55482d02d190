"""Which pairs reward accuracy is measured on: a stratified sample of what each reward of a run has chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from crosspref.data.records import Instruction, Pair, as_instruction, derive_seed
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.errors import DataError, RecipeError
from crosspref.recipe.files import load_recipe
from crosspref.run.job import Job
from crosspref.run.store import digest_of
from crosspref.stages.select.phase import pairs_by
from crosspref.suites.work import Evaluation

IMBALANCE = "language_imbalance"
"""Stands in the place of the reward for pairs by language imbalance, which have none (A.5)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to an instruction, as whoever judges sees them: it does not show which of them was chosen.

    ``pair_id`` is a hash of the texts: a pair is the same wherever it comes from, and whichever answer was chosen.
    """

    pair_id: str
    language: str
    instruction: Instruction
    answer_a: str
    answer_b: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """One pair of a sample; ``gap`` is chosen_reward - rejected_reward, None where no reward made the pair."""

    comparison: Comparison
    prompt_id: str
    chosen_is_a: bool
    gap: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """The sample of one reward in one iteration and language.

    ``pairs`` counts those to draw from; it leaves out the ``alike`` ones, whose two answers are the same text.
    """

    reward: str
    iteration: int
    language: str
    pairs: int
    alike: int
    sampled: Sequence[Sampled]


def compare(language: str, instruction: Instruction, chosen: str, rejected: str) -> tuple[Comparison, bool]:
    """Return a pair that does not tell which answer was chosen, and whether a is the chosen one.

    Which answer is a follows from the id alone: no seed or setting can turn votes round.
    """
    answers = sorted([chosen, rejected])
    digest = digest_of([language, instruction, *answers])
    if derive_seed(0, 0, digest, language, 0) & 1:
        answers.reverse()
    # It starts with a letter, since a spreadsheet would take 12e4567890 for a number.
    return Comparison(f"p{digest[:14]}", language, instruction, *answers), answers[0] == chosen


def stratified_sample(pairs: Sequence[Sampled], size: int, seed: int) -> list[Sampled]:
    """Return ``size`` pairs, one drawn from each of as many strata of neighbouring gaps, the smallest gaps first.

    So the sample has small and large gaps as the whole does. What is drawn follows from the seed and from which pairs
    there are, not from their order; all are returned where there are no more than ``size``.
    """

    def draw(row: Sampled) -> int:
        return derive_seed(seed, 0, row.comparison.pair_id, row.comparison.language, 0)

    ordered = sorted(pairs, key=lambda row: (row.gap or 0.0, draw(row)))
    count = min(size, len(ordered))
    ends = [number * len(ordered) // count for number in range(count + 1)] if count else []
    return [min(ordered[low:high], key=draw) for low, high in pairwise(ends)]


def draw_samples(work: Evaluation) -> list[Sample]:
    """Return the samples of every reward of a run: iteration by iteration, within each by reward and language.

    The models of ``work.target`` choose iterations: pi_{t-1} made the pairs of iteration t.

    Raises:
        RecipeError: what is measured is no run, or the run has none of the languages.
        DataError: there are no pairs yet.
    """
    run = work.target.run
    if run is None:
        raise RecipeError("The suite reward_accuracy measures the pairs of a run; a model alone has none. Name a run.")
    recipe = load_recipe(run.recipe)
    job = Job(recipe, run, EngineFactory(EngineSettings.of(recipe)), work.reporter)
    languages = [language for language in recipe.languages if work.languages is None or language in work.languages]
    for language in sorted(set(work.languages or ()) - set(languages)):
        work.reporter.say(f"reward_accuracy {language}: the run has no pairs in this language.")
    if not languages:
        raise RecipeError(f"--languages: {run.root} has pairs in {', '.join(recipe.languages)}.")
    names = {candidate.name for candidate in work.target.models}
    size, seed = work.settings.reward_accuracy.pairs, work.settings.seed
    samples = [
        _sample(reward, iteration, language, pairs, size, seed)
        for iteration in range(1, recipe.iterations + 1)
        if f"pi_{iteration - 1}" in names
        for reward, by_language in _pairs_by_reward(job, iteration, languages).items()
        for language, pairs in by_language.items()
    ]
    if not any(sample.sampled for sample in samples):
        raise DataError(
            f"{run.root} has no pairs to be judged yet. `crosspref status {run.root}` says where the run is; they are "
            "made by select."
        )
    return samples


def _pairs_by_reward(job: Job, iteration: int, languages: Sequence[str]) -> dict[str, dict[str, list[Pair]]]:
    """Return the pairs of an iteration by reward and language: those it trained on, and those by its other rewards."""
    places, recipe, say = job.run.iteration(iteration), job.recipe, job.reporter.say
    units = {language: places.pairs.unit(language) for language in languages}
    there = {language: unit for language, unit in units.items() if unit.marker.exists()}
    for language in [language for language in languages if language not in there]:
        say(f"reward_accuracy {language}: iteration {iteration} has no pairs yet.")
    trained = {language: unit.rows(Pair) for language, unit in there.items()}
    if recipe.language_imbalance is not None:
        return {IMBALANCE: trained}
    by_reward: dict[str, dict[str, list[Pair]]] = {recipe.reward.name: trained}
    for other in recipe.reward.also:
        say(f"reward_accuracy: making the pairs of iteration {iteration} by {other}")
        by_reward[other] = {language: pairs_by(job, places, language, other) for language in there}
    return by_reward


def _sample(reward: str, iteration: int, language: str, pairs: Sequence[Pair], size: int, seed: int) -> Sample:
    by_id: dict[str, Sampled] = {}
    alike = 0
    for pair in sorted(pairs, key=lambda pair: pair.prompt_id):
        chosen, rejected = (chat[-1]["content"] for chat in (pair.chosen, pair.rejected))
        if chosen == rejected:
            alike += 1
            continue
        comparison, is_a = compare(language, as_instruction(pair.prompt), chosen, rejected)
        rewards = pair.chosen_reward, pair.rejected_reward
        gap = None if rewards[0] is None or rewards[1] is None else rewards[0] - rewards[1]
        by_id.setdefault(comparison.pair_id, Sampled(comparison, pair.prompt_id, is_a, gap))
    return Sample(reward, iteration, language, len(by_id), alike, stratified_sample([*by_id.values()], size, seed))
