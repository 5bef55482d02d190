"""``crosspref audit``: how far a run's scores are from exact ones, and what that could change among its pairs.

For the exact scores, responses are scored again in float32, one at a time.
"""

import math
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosspref.data.records import Pair, Score
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.errors import RunError
from crosspref.languages import ENGLISH
from crosspref.maths.length_penalty import best_and_worst
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import RewardName
from crosspref.reports.report import SYMBOLS
from crosspref.reports.table import Report, label
from crosspref.run.job import Job, asking_of, settings_of
from crosspref.run.kept import Parts
from crosspref.run.layout import Iteration, RunDirectory, open_run
from crosspref.run.progress import Reporter
from crosspref.run.store import Fingerprint, digest_of
from crosspref.stages import score as scoring
from crosspref.stages.score import reward_reference

HAS_BETA = frozenset({"dpo", "ipo", "simpo"})
"""Algorithms whose reward is beta times something in nats (IPO and SimPO: per token)."""

SPREADS = 2.0
"""A gap is safe if it is larger than this many standard deviations of its own noise."""


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit found in one language.

    ``noise`` is the standard deviation, and ``largest`` the largest absolute value, of (score of the run - exact score)
    over ``responses`` responses; ``gap`` is the median difference between the penalised rewards of the chosen and the
    rejected response over ``pairs`` pairs of the run, of which ``doubtful`` have a gap below ``least_gap``. All are in
    nats where the reward is a multiple of a log-ratio, else in the reward's unit. Of the ``prompts`` audited prompts
    that made a pair, ``changed`` have another best or worst response by exact scores, and ``exchanged`` prefer the
    rejected to the chosen one.
    """

    language: str
    noise: float
    largest: float
    responses: int
    gap: float
    pairs: int
    doubtful: int
    changed: int
    exchanged: int
    prompts: int


@dataclass(frozen=True, slots=True)
class _Rescored:
    """A response with its reward in the run and its exact reward, in nats."""

    score: Score
    reward: float
    exact: float


def audit_run(
    run_dir: str, iteration: int | None, prompts: int, reporter: Reporter, *, trust_remote_code: bool = False
) -> tuple[Report, list[Audited], int]:
    """Score every response to some prompts of each language again; return the differences and the iteration.

    Whatever engine the run used, transformers loads the models in float32, and each response is a batch of its own, so
    there is no padding.

    Args:
        run_dir: the run.
        iteration: whose scores to audit; the last one with pairs in every language if None.
        prompts: how many prompts per language, drawn with the recipe's seed.
        reporter: shows progress.
        trust_remote_code: whether code that comes with the models may run, whatever the run's recipe says.

    Raises:
        RunError: there are no scores to audit.
        DataError: a policy has not been trained yet.
        ModelError: a model's files are no longer there.
    """
    run, recipe = open_run(run_dir)
    places, name = _auditable(run, recipe, iteration), recipe.reward.name
    number, seed = places.number, recipe.seed
    exact_recipe = recipe.model_copy(
        update={
            "models": recipe.models.model_copy(update={"trust_remote_code": trust_remote_code}),
            "reward": recipe.reward.model_copy(update={"engine": "transformers", "batch_tokens": 1}),
            "resources": recipe.resources.model_copy(update={"dtype": "float32", "executor": "local"}),
        }
    )
    job = Job(exact_recipe, run, EngineFactory(EngineSettings.of(exact_recipe)), reporter)
    # A reward of kto or orpo has no beta in it, so it is in nats as it is.
    scale = recipe.reward.beta if recipe.reward.algorithm in HAS_BETA else 1.0
    chosen = {language: _draw(places, name, language, prompts, seed) for language in recipe.languages}
    models = job.policy(number - 1), reward_reference(job, number)
    parts = _parts(job, places, models, chosen)
    reporter.say(f"audit of iteration {number}: loading the models in float32")
    scorer = job.engines.scorer(*models)
    audited = []
    try:
        with reporter.step(f"audit of iteration {number}", sum(map(len, chosen.values()))) as meter:
            for language, ids in chosen.items():
                translated = name == "translated" and language != ENGLISH
                with parts.keeping(meter.advance, language) as kept:
                    exact = scoring.score(
                        _about(places.responses.rows(language), ids),
                        [row for tag in {language, ENGLISH} for row in run.prompts.rows(tag)],
                        scorer,
                        settings=exact_recipe.reward,
                        reward=name,
                        advance=kept,
                        translations=_about(places.translations.rows(language), ids) if translated else [],
                    )
                stored, pairs = _about(places.scores(name).rows(language), ids), _pairs(places, language)
                row = audit(language, stored, exact, pairs, unit=recipe.length_penalty.unit, scale=scale)
                audited += [row] if row else []
    finally:
        scorer.close()
    parts.remove()
    return _report(audited, number, name, scale), audited, number


def audit(
    language: str, scores: Sequence[Score], exact: Sequence[Score], pairs: Sequence[Pair], *, unit: str, scale: float
) -> Audited | None:
    """Compare scores of a run with exact ones of the same responses; None if no response has both.

    Args:
        language: the responses' language.
        scores: the run's, of every response to the audited prompts.
        exact: computed again.
        pairs: the run's, of the whole language.
        unit: ``characters`` or ``tokens``, in which the pairs' alpha penalises length.
        scale: by what rewards are divided to be in nats: beta, or 1 where the reward has none.
    """
    exact_rewards = {(row.prompt_id, row.sample): row.implicit_reward for row in exact}
    by_prompt: dict[str, list[_Rescored]] = {}
    for row in scores:
        reward = exact_rewards.get((row.prompt_id, row.sample))
        if row.implicit_reward is not None and reward is not None:
            rescored = _Rescored(row, row.implicit_reward / scale, reward / scale)
            by_prompt.setdefault(row.prompt_id, []).append(rescored)
    errors = [row.reward - row.exact for rows in by_prompt.values() for row in rows]
    if not errors:
        return None
    noise = statistics.pstdev(errors) if len(errors) > 1 else abs(errors[0])
    gaps = [
        (pair.chosen_reward - pair.rejected_reward) / scale
        for pair in pairs
        if pair.chosen_reward is not None and pair.rejected_reward is not None
    ]
    paired = {pair.prompt_id: pair for pair in pairs}
    verdicts = [_judge(rows, paired[name], unit, scale) for name, rows in by_prompt.items() if name in paired]
    return Audited(
        language,
        noise,
        max(map(abs, errors)),
        len(errors),
        statistics.median(gaps) if gaps else math.nan,
        len(gaps),
        sum(gap < least_gap(noise) for gap in gaps),
        sum(changed for changed, _ in verdicts),
        sum(exchanged for _, exchanged in verdicts),
        len(verdicts),
    )


def least_gap(noise: float) -> float:
    """Return ``SPREADS`` standard deviations of the noise in a difference of two scores."""
    return SPREADS * math.sqrt(2) * noise


def _judge(rows: Sequence[_Rescored], pair: Pair, unit: str, scale: float) -> tuple[bool, bool]:
    """Tell whether exact scores select another pair among the same responses, and whether they reverse this one.

    Responses that were filtered out when the pair was made are not known here. So best and worst are compared with
    those that the run's scores select among the same rows.
    """
    sizes = [row.score.characters if unit == "characters" else row.score.tokens for row in rows]
    lengths = np.array([size or 0 for size in sizes], dtype=float)
    alpha = (pair.alpha or 0.0) / scale
    offsets = np.array([0, len(rows)])
    selected = [
        tuple(int(place[0]) for place in best_and_worst(np.array(rewards), lengths, alpha, offsets))
        for rewards in ([row.reward for row in rows], [row.exact for row in rows])
    ]
    penalised: dict[int | None, float] = {
        row.score.sample: row.exact - alpha * length for row, length in zip(rows, lengths, strict=True)
    }
    chosen, rejected = penalised.get(pair.chosen_sample), penalised.get(pair.rejected_sample)
    turned = chosen is not None and rejected is not None and chosen < rejected
    return selected[0] != selected[1], turned


def _auditable(run: RunDirectory, recipe: Recipe, number: int | None) -> Iteration:
    """Return the iteration to audit, by default the last one with pairs in every language, or raise RunError."""
    paired = [
        places
        for places in run.iterations()
        if places.number and all(places.pairs.unit(language).marker.exists() for language in recipe.languages)
    ]
    places = (paired[-1] if paired else None) if number is None else run.iteration(number)
    name = recipe.reward.name
    if places is None or name == "reward_model" or not places.scores(name).finished():
        which = "any iteration" if places is None else f"iteration {places.number}"
        raise RunError(
            f"{run.root} has no implicit rewards of {which} to audit. `crosspref status {run.root}` says where it is."
        )
    if recipe.reward.counting == "znlp":
        raise RunError("What the released scripts count (znlp) depends on batches: it cannot be scored one at a time.")
    return places


def _parts(job: Job, places: Iteration, models: scoring.Models, chosen: Mapping[str, set[str]]) -> Parts:
    """Return where exact scores are kept until all are there: beside the report, if one may write there."""
    tables = [places.responses, *([places.translations] if job.recipe.reward.name == "translated" else [])]
    inputs = {
        "models": digest_of([model.identity for model in models if model is not None]),
        "rows": digest_of([unit.digest for table in tables for unit in table.stored()]),
        "prompts": digest_of({language: sorted(ids) for language, ids in chosen.items()}),
    }
    settings = {**settings_of("reward", job.recipe.reward), **asking_of(job.recipe.models)}
    return Parts(places.audit if os.access(places.folder, os.W_OK) else None, Fingerprint(settings, inputs))


def _pairs(places: Iteration, language: str) -> list[Pair]:
    unit = places.pairs.unit(language)
    return unit.rows(Pair) if unit.marker.exists() else []


def _draw(places: Iteration, reward: RewardName, language: str, count: int, seed: int) -> set[str]:
    """Return the ids of some prompts whose responses are scored, those with a pair first."""
    scored = sorted({row.prompt_id for row in places.scores(reward).rows(language)})
    random.Random(f"{seed} {language}").shuffle(scored)  # noqa: S311 - nothing to do with secrets
    paired = {row.prompt_id for row in _pairs(places, language)}
    return set(sorted(scored, key=lambda prompt_id: prompt_id not in paired)[:count])


def _about(rows: Sequence[Any], ids: set[str]) -> list[Any]:
    """Return the rows about some prompts."""
    return [row for row in rows if row.prompt_id in ids]


def _report(audited: Sequence[Audited], iteration: int, reward: RewardName, scale: float) -> Report:
    rows = [
        [
            label(row.language),
            f"{row.noise:.2g}",
            f"{row.largest:.2g}",
            str(row.responses),
            "" if math.isnan(row.gap) else f"{row.gap:.2f}",
            f"{row.doubtful}/{row.pairs}",
            f"{row.changed}/{row.prompts}",
            f"{row.exchanged}/{row.prompts}",
        ]
        for row in audited
    ]
    worst = least_gap(max((row.noise for row in audited), default=0.0))
    return Report(
        f"Audit of {SYMBOLS[reward]}, iteration {iteration}: the run's scores against float32, nats",
        ["language", "noise", "largest", "n", "median\ngap", "doubtful\npairs", "other\npair", "turned\nround"],
        rows,
        [
            "noise: standard deviation of (the run's score - the exact one), before the length penalty, over n "
            "responses; largest: the largest. median gap: between the penalised rewards of the chosen and the rejected "
            f"response, over the run's pairs. doubtful pairs: those whose gap is below {SPREADS:g} standard deviations "
            "of the noise of a difference. other pair: of the audited prompts with a pair, those for which exact "
            "scores of the same responses select another one; turned round: those of which exact scores prefer the "
            "rejected response. For rewards per token (ipo, simpo, orpo) read: nats per token.",
            f"With select.min_gap {worst * scale:.2g} ({worst:.2g} nats) no doubtful pair would be left; "
            "resources.dtype: float32 makes the noise smaller.",
        ],
        left=1,
    )
