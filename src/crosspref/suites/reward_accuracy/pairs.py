"""Which pairs reward accuracy is measured on: a stratified sample of what each reward of a run has chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from crosspref.data.items import MODEL_COLUMNS, Problems, columns_error, join_answers, read_items
from crosspref.data.records import Instruction, Pair, as_instruction, derive_seed
from crosspref.data.rows import Row, column_names
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.errors import DataError, RecipeError
from crosspref.run.job import Job
from crosspref.run.store import digest_of
from crosspref.stages.select.phase import pairs_by
from crosspref.suites.given import WHAT, Given
from crosspref.suites.settings import EvaluationSettings
from crosspref.suites.work import Evaluation

REWARD_COLUMNS = ("reward", "implicit_reward", "score")
"""Where rows of answers have what a reward says of them."""

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
    """What was chosen of two answers; ``gap`` is chosen_reward - rejected_reward, None where no reward chose."""

    comparison: Comparison
    prompt_id: str
    chosen_is_a: bool
    gap: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """The sample of one reward in one iteration and language; the iteration is 0 where answers were given.

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
    recipe = run.read_recipe()
    job = Job(recipe, run, EngineFactory(EngineSettings.of(recipe)), work.reporter)
    languages = [language for language in recipe.languages if work.languages is None or language in work.languages]
    for language in sorted(set(work.languages or ()) - set(languages)):
        work.reporter.say(f"reward_accuracy {language}: the run has no pairs in this language.")
    if not languages:
        raise RecipeError(f"--languages: {run.root} has pairs in {', '.join(recipe.languages)}.")
    names = {candidate.name for candidate in work.target.models}
    samples = [
        _sample(reward, iteration, language, [_of_pair(language, pair) for pair in pairs], work.settings)
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


def given_samples(work: Evaluation) -> list[Sample]:
    """Return the samples of a reward that has rated two sets of answers, one per language.

    Of two answers to an item the one with the higher reward is chosen. Rows name the reward in a column, and the item
    by an id or by the instruction, which the first set needs to have.

    Raises:
        DataError: there are not two sets, a column is missing, or a reward is no number.
    """
    sets = work.given_answers(work.languages)
    if len(sets) != 2:
        names = ", ".join(one.model for one in sets)
        raise DataError(
            f"--answers: reward_accuracy needs answers of two models, and {work.given} has those of {names}. Their "
            f"names are taken from a column ({', '.join(MODEL_COLUMNS)}), or from the files in a directory."
        )
    first, second = sets
    samples = [_given_sample(work, first, second, language) for language in first.rows if language in second.rows]
    if not any(sample.sampled for sample in samples):
        raise DataError(
            f"--answers: {work.given} has no item with two different answers and two different rewards, one of "
            f"{first.model} and one of {second.model}."
        )
    return samples


def _given_sample(work: Evaluation, first: Given, second: Given, language: str) -> Sample:
    problems = Problems()
    items = read_items(first.rows[language], problems, WHAT)
    column, rated = "", list[dict[str, tuple[str, float]]]()
    for given in (first, second):
        texts, rows = join_answers(given.rows[language], items, WHAT, problems)
        column = _reward_column(given.rows[language])
        rated.append({item_id: (text, rows[item_id].number_in(column)) for item_id, text in texts.items()})
    pairs = []
    for item in items:
        both = [one[item.item_id] for one in rated if item.item_id in one]
        if len(both) < 2:
            problems["items without two answers"] += 1
        elif both[0][1] == both[1][1]:
            problems["pairs with equal rewards"] += 1
        else:
            (rejected, lower), (chosen, higher) = sorted(both, key=lambda answer: answer[1])
            comparison, chosen_is_a = compare(language, item.instruction, chosen, rejected)
            pairs.append(Sampled(comparison, item.item_id, chosen_is_a, higher - lower))
    if str(problems):
        work.reporter.say(f"reward_accuracy {language}: {problems}, which are left out.")
    name = f"{column}: {first.model} or {second.model}"
    return _sample(name, 0, language, pairs, work.settings)


def _reward_column(rows: Sequence[Row]) -> str:
    column = next((column for column in REWARD_COLUMNS if column in column_names(rows)), None)
    if column is None:
        raise columns_error(WHAT, rows, "no column with rewards", REWARD_COLUMNS)
    return column


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


def _of_pair(language: str, pair: Pair) -> Sampled:
    chosen, rejected = (chat[-1]["content"] for chat in (pair.chosen, pair.rejected))
    comparison, chosen_is_a = compare(language, as_instruction(pair.prompt), chosen, rejected)
    rewards = pair.chosen_reward, pair.rejected_reward
    gap = None if rewards[0] is None or rewards[1] is None else rewards[0] - rewards[1]
    return Sampled(comparison, pair.prompt_id, chosen_is_a, gap)


def _sample(
    reward: str, iteration: int, language: str, pairs: Sequence[Sampled], settings: EvaluationSettings
) -> Sample:
    differing = [pair for pair in pairs if pair.comparison.answer_a != pair.comparison.answer_b]
    by_id: dict[str, Sampled] = {}
    for pair in sorted(differing, key=lambda pair: pair.prompt_id):
        by_id.setdefault(pair.comparison.pair_id, pair)
    drawn = stratified_sample([*by_id.values()], settings.reward_accuracy.pairs, settings.seed)
    return Sample(reward, iteration, language, len(by_id), len(pairs) - len(differing), drawn)
