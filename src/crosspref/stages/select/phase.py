"""The phase that makes pairs: by a reward (Eq. 10, 15), or by language imbalance (section A.5)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from functools import partial
from itertools import combinations

import pyarrow as pa
import pyarrow.dataset

from crosspref.data.records import Agreement, Dropped, Pair, from_table
from crosspref.maths.reward import noise_gap
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import RewardName
from crosspref.run.job import Job, settings_of
from crosspref.run.layout import Iteration
from crosspref.run.phases import Expected, Output, Phase
from crosspref.run.store import Fingerprint, Unit
from crosspref.stages.prompts import stored_instructions
from crosspref.stages.select.agree import RewardResult, agree
from crosspref.stages.select.language_imbalance import expected_imbalance_pairs, make_imbalance_pairs
from crosspref.stages.select.select import PairRules, Part, Selection, pair_faults, select_parts

PART_BYTES = 16 << 20
"""Shards are read together until their responses have this size: opening a small file costs more than reading it."""


def phase(recipe: Recipe, iteration: int) -> Phase:
    """Return the phase that makes the pairs, and compares all rewards of the recipe with one another."""
    settings = ("length_penalty", "select", "language_imbalance")
    outputs = [
        Output(
            "pairs",
            lambda run: run.iteration(iteration).pairs,
            (*settings, "reward.name"),
            ("responses", "translations", "scores", "prompts"),
            names=recipe.languages,
        )
    ]
    compared = [] if recipe.language_imbalance else list(combinations(recipe.reward.names, 2))
    if compared:
        outputs.append(
            Output(
                "agreement",
                lambda run: run.iteration(iteration).agreement,
                (*settings, "evaluate.resamples", "seed"),
                ("scores",),
                names=[agreement_name(*rewards) for rewards in compared],
            )
        )
    return Phase("select", iteration, make_pairs, expect_pairs, outputs)


def make_pairs(job: Job, iteration: int) -> None:
    """Eq. 10, 15: solve the length penalty per language and take the best and the worst response to each prompt."""
    places = job.run.iteration(iteration)
    if job.recipe.language_imbalance:
        make_imbalance_pairs(job, places)
    else:
        _make_reward_pairs(job, places)


def expect_pairs(job: Job, iteration: int) -> Iterator[Expected]:
    """Yield what the pairs, and what the agreement of rewards, must be. Pairs are selected again to compare them."""
    recipe, places = job.recipe, job.run.iteration(iteration)
    if recipe.language_imbalance:
        yield from expected_imbalance_pairs(job, places)
        return
    for language in recipe.languages:
        fingerprint = _pairs_fingerprint(job, places, language, recipe.reward.name)
        faults = partial(_pair_faults, job, places, language)
        yield Expected(places.pairs.unit(language), fingerprint, Pair, faults)
    for rewards in combinations(recipe.reward.names, 2):
        unit = places.agreement.unit(agreement_name(*rewards))
        faults = partial(_agreement_faults, job, places, *rewards)
        yield Expected(unit, _agreement_fingerprint(job, places, *rewards), Agreement, faults)


def _pair_faults(job: Job, places: Iteration, language: str, rows: list[Pair]) -> Iterator[str]:
    yield from pair_faults(rows, pairs_by(job, places, language, job.recipe.reward.name))
    without = stored_instructions(places.prompts, language).keys() - {row.prompt_id for row in rows}
    if {row.prompt_id for row in places.dropped.rows(language)} != without:
        yield f"the {len(without)} prompts without a pair are not those that were dropped"


def _make_reward_pairs(job: Job, places: Iteration) -> None:
    """Make the pairs of every language by ``reward.name``, and compare all rewards of the recipe with one another."""
    recipe = job.recipe
    for language in recipe.languages:
        fingerprint = _pairs_fingerprint(job, places, language, recipe.reward.name)
        unit = places.pairs.unit(language)
        if unit.finished(fingerprint):
            continue
        with unit.writer(Pair) as write:
            selection = _select(job, places, language, recipe.reward.name, write)
        places.dropped.unit(language).write_rows(selection.dropped, Dropped)
        places.length_penalty(language).write_table(selection.curve())
        unit.finish(fingerprint, len(selection.length_differences), **selection.figures())
        job.reporter.say(f"iteration {places.number} select {language}: {selection.summary()}")
    for rewards in combinations(recipe.reward.names, 2):
        _compare(job, places, *rewards)


def pairs_by(job: Job, places: Iteration, language: str, reward: RewardName) -> list[Pair]:
    """Return the pairs that one of the recipe's rewards makes of an iteration's responses, as the phase makes them."""
    pairs: list[Pair] = []
    _select(job, places, language, reward, lambda table: pairs.extend(from_table(table, Pair)))
    return pairs


def _select(
    job: Job, places: Iteration, language: str, reward: RewardName, write: Callable[[pa.Table], None]
) -> Selection:
    settings = job.recipe.reward
    rules = PairRules(
        language,
        stored_instructions(places.prompts, language),
        job.recipe.length_penalty,
        job.recipe.select,
        job.engines.identifier(language),
        noise=0.0 if reward == "reward_model" else noise_gap(settings.algorithm, settings.beta),
        always_ended=settings.counting == "znlp",
    )
    return select_parts(_parts(places, language, reward), rules, write)


def _parts(places: Iteration, language: str, reward: RewardName) -> list[Part]:
    """Return the shards of one language, as many in a part as have PART_BYTES together."""
    parts: list[list[Unit]] = []
    size = PART_BYTES
    for unit in places.responses.units(language):
        if size >= PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(unit)
        size += unit.path.stat().st_size
    scores = places.scores(reward)
    return [
        Part(partial(_columns, units), partial(_columns, [scores.matching(unit) for unit in units])) for units in parts
    ]


def _columns(units: Sequence[Unit], names: list[str]) -> pa.Table:
    """Read some columns of several shards, one below the other."""
    try:
        paths = [str(unit.path) for unit in units]
        return pa.dataset.dataset(paths, format="parquet", partitioning=None).to_table(columns=names)
    except (OSError, pa.ArrowException):
        # One by one, to say which.
        return pa.concat_tables([unit.table().select(names) for unit in units])


def agreement_name(reward: RewardName, other: RewardName) -> str:
    """Return the name of the unit that says how far two rewards agree."""
    return f"{reward}-{other}"


def _compare(job: Job, places: Iteration, reward: RewardName, other: RewardName) -> None:
    """Store how far two rewards agree, in every language."""
    fingerprint = _agreement_fingerprint(job, places, reward, other)
    unit = places.agreement.unit(agreement_name(reward, other))
    if unit.finished(fingerprint):
        return
    rows = _agreements(job, places, reward, other, job.recipe.evaluate.resamples)
    unit.write_rows(rows, Agreement)
    unit.finish(fingerprint, len(rows))


def _agreement_faults(
    job: Job, places: Iteration, reward: RewardName, other: RewardName, rows: list[Agreement]
) -> Iterator[str]:
    """Everything is computed again but the intervals, of which the bootstrap would take long."""
    again = _agreements(job, places, reward, other, resamples=2)
    stored, computed = (
        [[None if value != value else value for value in astuple(replace(row, low=0.0, high=0.0))] for row in each]
        for each in (rows, again)
    )
    if stored != computed:
        yield "it is not the agreement of the scores and pairs"


def _agreements(job: Job, places: Iteration, reward: RewardName, other: RewardName, resamples: int) -> list[Agreement]:
    """Return how far two rewards agree, in every language."""

    def result(name: RewardName, language: str) -> RewardResult:
        scores = places.scores(name).rows(language)
        return RewardResult(name, scores, pairs_by(job, places, language, name))

    options = {"resamples": resamples, "seed": job.recipe.seed}
    return [
        agree(places.number, language, result(reward, language), result(other, language), **options)
        for language in job.recipe.languages
    ]


def _agreement_fingerprint(job: Job, places: Iteration, reward: RewardName, other: RewardName) -> Fingerprint:
    recipe = job.recipe
    inputs = {
        f"{name} {language}": _pairs_fingerprint(job, places, language, name).digest
        for name in (reward, other)
        for language in recipe.languages
    }
    return Fingerprint({"resamples": recipe.evaluate.resamples, "seed": recipe.seed}, inputs)


def _pairs_fingerprint(job: Job, places: Iteration, language: str, reward: RewardName) -> Fingerprint:
    recipe = job.recipe
    settings = {**settings_of("length_penalty", recipe.length_penalty), **settings_of("select", recipe.select)}
    return Fingerprint(settings, {"scores": places.scores(reward).digest([language])})
