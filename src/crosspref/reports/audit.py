"""``crosspref audit``: some responses of a run scored anew in float32, one at a time, and compared with its scores."""

import math
import random
from collections.abc import Sequence

from crosspref.data.records import Pair, Response, Score, Translation
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.errors import RunError
from crosspref.languages import ENGLISH, LANGUAGES
from crosspref.recipe.files import load_recipe
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import RewardName
from crosspref.reports.noise import SPREADS, Audited, audit
from crosspref.reports.report import SYMBOLS
from crosspref.reports.table import Report
from crosspref.run.job import Job, policy, rows_of, stored_prompts
from crosspref.run.progress import Reporter
from crosspref.run.store import RunDirectory, Unit
from crosspref.stages import score as scoring
from crosspref.stages.tables import reward_reference

HAS_BETA = frozenset({"dpo", "ipo", "simpo"})
"""Algorithms whose reward is beta times something in nats (IPO and SimPO: per token)."""


def audit_run(
    run_dir: str, iteration: int | None, prompts: int, reporter: Reporter
) -> tuple[Report, list[Audited], int]:
    """Score every response to some prompts of each language anew, and return what differs and the iteration.

    Whatever engine the run used, transformers loads the models in float32, and each response is a batch of its own, so
    that nothing is padded.

    Args:
        run_dir: the run.
        iteration: whose scores to audit; the last one with pairs in every language if None.
        prompts: how many prompts per language, drawn with the recipe's seed.
        reporter: shows progress.

    Raises:
        RunError: there are no scores to audit.
        DataError: a policy has not been trained yet.
        ModelError: a model's files are not there any more.
    """
    run = RunDirectory(run_dir)
    recipe, number = _auditable(run, iteration)
    name = recipe.reward.name
    exact = recipe.model_copy(
        update={
            "reward": recipe.reward.model_copy(update={"engine": "transformers", "batch_tokens": 1}),
            "resources": recipe.resources.model_copy(update={"dtype": "float32", "executor": "local"}),
        }
    )
    job = Job(exact, run, EngineFactory(EngineSettings.of(exact)), reporter)
    # A reward of kto or orpo has no beta in it, so it is in nats as it is.
    scale = recipe.reward.beta if recipe.reward.algorithm in HAS_BETA else 1.0
    chosen = {language: _draw(job, number, language, name, prompts) for language in recipe.languages}
    reporter.say(f"audit of iteration {number}: loading the models in float32")
    scorer = job.engines.scorer(policy(job, number - 1), reward_reference(job, number))
    found = []
    try:
        with reporter.step(f"audit of iteration {number}", sum(map(len, chosen.values()))) as meter:
            for language, ids in chosen.items():
                responses, stored, translations = _rows(run, number, language, name, ids)
                asked = [row for tag in {language, ENGLISH} for row in stored_prompts(job, "prompts", tag)]
                anew = scoring.score(
                    responses, asked, scorer, settings=exact.reward, reward=name, advance=meter.advance,
                    translations=translations,
                )  # fmt: skip
                unit = Unit(run.iteration(number) / "pairs" / f"{language}.parquet")
                pairs = unit.rows(Pair) if unit.marker.exists() else []
                row = audit(language, stored, anew, pairs, unit=recipe.length_penalty.unit, scale=scale)
                found += [row] if row else []
    finally:
        scorer.close()
    return _report(found, number, name, scale), found, number


def _auditable(run: RunDirectory, iteration: int | None) -> tuple[Recipe, int]:
    """Return the run's recipe and the iteration to audit, or raise RunError."""
    if not run.recipe.exists():
        raise RunError(f"{run.root} holds no run: there is no {run.recipe.name} in it.")
    recipe = load_recipe(run.recipe)
    number = _newest(run, recipe.languages) if iteration is None else iteration
    if number is None or recipe.reward.name == "reward_model" or not _scored(run, number, recipe.reward.name):
        raise RunError(
            f"{run.root} has no implicit rewards of {'any iteration' if number is None else f'iteration {number}'} to "
            f"audit. `crosspref status {run.root}` says where it is."
        )
    if recipe.reward.counting == "znlp":
        raise RunError("What the released scripts count (znlp) depends on batches: it cannot be scored one at a time.")
    return recipe, number


def _newest(run: RunDirectory, languages: Sequence[str]) -> int | None:
    """Return the last iteration whose pairs are made in every language, so that gaps can be told."""
    numbers = [int(path.name.rpartition("_")[2]) for path in run.root.glob("iteration_[1-9]*")]
    whole = [
        number
        for number in numbers
        if all(Unit(run.iteration(number) / "pairs" / f"{tag}.parquet").marker.exists() for tag in languages)
    ]
    return max(whole, default=None)


def _scored(run: RunDirectory, iteration: int, reward: RewardName) -> bool:
    return any((run.iteration(iteration) / "scores" / reward).glob("*/*.done.json"))


def _draw(job: Job, iteration: int, language: str, reward: RewardName, count: int) -> set[str]:
    """Return the ids of some prompts whose responses are scored, those with a pair first."""
    folder = job.run.iteration(iteration)
    scored = sorted({row.prompt_id for row in rows_of(folder / "scores" / reward / language, Score)})
    random.Random(f"{job.recipe.seed} {language}").shuffle(scored)  # noqa: S311 - nothing to do with secrets
    unit = Unit(folder / "pairs" / f"{language}.parquet")
    paired = {row.prompt_id for row in unit.rows(Pair)} if unit.marker.exists() else set()
    return set(sorted(scored, key=lambda prompt_id: prompt_id not in paired)[:count])


def _rows(
    run: RunDirectory, iteration: int, language: str, reward: RewardName, ids: set[str]
) -> tuple[list[Response], list[Score], list[Translation]]:
    folder = run.iteration(iteration)
    responses = [row for row in rows_of(folder / "responses" / language, Response) if row.prompt_id in ids]
    scores = [row for row in rows_of(folder / "scores" / reward / language, Score) if row.prompt_id in ids]
    translated = reward == "translated" and language != ENGLISH
    rows = rows_of(folder / "translations" / language, Translation) if translated else []
    return responses, scores, [row for row in rows if row.prompt_id in ids]


def _report(found: Sequence[Audited], iteration: int, reward: RewardName, scale: float) -> Report:
    rows = [
        [
            f"{row.language} {LANGUAGES.get(row.language, '')}".strip(),
            f"{row.noise:.2g}",
            f"{row.largest:.2g}",
            str(row.responses),
            "" if math.isnan(row.gap) else f"{row.gap:.2f}",
            f"{row.doubtful}/{row.pairs}",
            f"{row.changed}/{row.prompts}",
            f"{row.exchanged}/{row.prompts}",
        ]
        for row in found
    ]
    worst = max((row.least_gap for row in found), default=0.0)
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
