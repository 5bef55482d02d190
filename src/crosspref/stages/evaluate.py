"""Evaluating: what can be counted in held-out responses, and a reward-based win rate that is called what it is.

Nothing here is quality: no person and no judge saw the responses.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product

from crosspref.data.records import Measure, Response, Score
from crosspref.maths.reward import PER_TOKEN
from crosspref.maths.statistics import mean_interval, share_interval, win_rate
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import RewardSettings
from crosspref.run.job import Job
from crosspref.run.phases import Expected, Output, Phase
from crosspref.run.store import Fingerprint, digest_of
from crosspref.stages.sample import SETTINGS as SAMPLING
from crosspref.stages.sample import Drawing, expected_responses, fill_responses
from crosspref.stages.score import SETTINGS as SCORING
from crosspref.stages.score import WITHOUT, Scoring, expected_scores, fill_scores, reward_reference
from crosspref.stages.select.select import Identify

HELD_OUT = -1
"""The iteration that seeds held-out responses: the same for every policy, so that they differ by the policy alone."""

NGRAM = 4
WIN_RATE = "win_rate_rm_per_token"
MEASURES = {
    "right_language": "share of responses identified as the prompt's language (py3langid)",
    "repetition": f"share of the response's {NGRAM}-grams of tokens that stood there before",
    "truncated": "share of responses cut at the token limit",
    "characters": "mean length in characters",
    WIN_RATE: (
        "win rate over pi_0 by R_m per token: the implicit reward of pi_0 (against pi_I, where it has a reference) "
        "given the prompt in its own language (Eq. 12 without penalty), per token. It is not the reward that was "
        "trained on (unless that was R_m), but it comes from the same models: a proxy, not a judgement of quality"
    ),
}
"""The measures and what each is; all are means over responses, with prompts as clusters."""
SHARES = ("right_language", "truncated", WIN_RATE)
"""Those whose values are 0 or 1, or one half for a tie."""


def phase(recipe: Recipe, iteration: int) -> Phase:
    """Return the phase that measures pi_t on the held-out prompts."""
    outputs = [
        Output(
            "held-out responses",
            lambda run: run.iteration(iteration).evaluation.responses,
            (*SAMPLING, "evaluate.n"),
            ("heldout", "policy"),
            ("sample.n",),
            recipe.languages,
        )
    ]
    if recipe.has_implicit_reward:
        scores = Output(
            "held-out scores",
            lambda run: run.iteration(iteration).evaluation.scores,
            SCORING,
            ("held-out responses",),
            (*WITHOUT, "reward.reference", "reward.counting", "reward.prefix"),
            recipe.languages,
        )
        outputs.append(scores)
    measures = Output(
        "measures",
        lambda run: run.iteration(iteration).evaluation.measures,
        ("evaluate.resamples", "seed"),
        ("held-out responses", "held-out scores"),
    )
    return Phase("evaluate", iteration, evaluate_policy, expect_evaluation, [*outputs, measures])


def evaluate_policy(job: Job, iteration: int) -> None:
    """Measure pi_t on the held-out prompts, against pi_0."""
    recipe, places = job.recipe, job.run.iteration(iteration).evaluation
    policy, drawing = job.policy(iteration), Drawing(recipe.evaluate.n, recipe.seed, HELD_OUT)
    fill_responses(job, f"iteration {iteration} evaluate: sample", places.responses, policy, drawing)
    if recipe.has_implicit_reward:
        # Every policy is scored by the same two models, pi_0 and pi_I, on the prompt in its own language.
        models = job.policy(0), reward_reference(job, 1)
        scoring, exact = _scoring(job, iteration), _exact(recipe)
        fill_scores(job, f"iteration {iteration} evaluate: score", [scoring], models, exact)
    fingerprint = _measures_fingerprint(job, iteration)
    if places.measures.finished(fingerprint):
        return
    rows = _measured(job, iteration, recipe.evaluate.resamples)
    places.measures.write_rows(rows, Measure)
    places.measures.finish(fingerprint, len(rows))


def _measured(job: Job, iteration: int, resamples: int) -> list[Measure]:
    """Measure the stored responses of an iteration's policy in every language."""
    recipe, places = job.recipe, job.run.iteration(iteration).evaluation
    bootstrap, rows = Bootstrap(resamples, recipe.seed), list[Measure]()
    for language in recipe.languages:
        responses = places.responses.rows(language)
        rows += measure(responses, language, iteration, job.engines.identifier(language), bootstrap)
        if iteration:
            baseline = job.run.iteration(0).evaluation.scores.rows(language)
            per_token = recipe.reward.algorithm in PER_TOKEN
            scores = places.scores.rows(language)
            won = compare(scores, baseline, language, iteration, bootstrap, per_token=per_token)
            rows += [won] if won else []
    return rows


def expect_evaluation(job: Job, iteration: int) -> Iterator[Expected]:
    """Yield what the responses to the held-out prompts, their scores, and the measures must be."""
    recipe, places = job.recipe, job.run.iteration(iteration).evaluation
    policy, drawing = job.policy(iteration), Drawing(recipe.evaluate.n, recipe.seed, HELD_OUT)
    yield from expected_responses(job, places.responses, policy, drawing)
    if places.scores.finished():
        models = job.policy(0), reward_reference(job, 1)
        yield from expected_scores(job, _scoring(job, iteration), models, _exact(recipe))
    if places.measures.marker.exists():
        faults = partial(_measure_faults, job, iteration)
        yield Expected(places.measures, _measures_fingerprint(job, iteration), Measure, faults)


def _measure_faults(job: Job, iteration: int, rows: list[Measure]) -> Iterator[str]:
    """Everything is measured again but the intervals, of which the bootstrap would take long."""
    again = _measured(job, iteration, resamples=2)
    if [replace(row, low=0.0, high=0.0) for row in rows] != [replace(row, low=0.0, high=0.0) for row in again]:
        yield f"its {len(rows)} measures are not the {len(again)} that follow from the responses and scores"


def _scoring(job: Job, iteration: int) -> Scoring:
    """Return where the scores of the responses to the held-out prompts belong."""
    places = job.run.iteration(iteration).evaluation
    before = [job.run.iteration(number).evaluation for number in range(iteration)]
    earlier = [(evaluation.scores, evaluation.responses) for evaluation in before]
    return Scoring("multilingual", places.scores, places.responses, earlier=earlier)


def _exact(recipe: Recipe) -> RewardSettings:
    return recipe.reward.model_copy(update={"counting": "exact"})


def _measures_fingerprint(job: Job, iteration: int) -> Fingerprint:
    places = job.run.iteration(iteration).evaluation
    tables = (places.responses, places.scores)
    units = [unit for table in tables for language in job.recipe.languages for unit in table.units(language)]
    inputs = {"responses and scores": digest_of([unit.digest for unit in units])}
    return Fingerprint(asdict(Bootstrap(job.recipe.evaluate.resamples, job.recipe.seed)), inputs)


def repeated_share(units: Sequence[object]) -> float:
    """Return the share of n-grams that stood earlier in the same sequence; 0.0 where there are none."""
    grams = [tuple(units[start : start + NGRAM]) for start in range(len(units) - NGRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are resampled."""

    resamples: int
    seed: int


def measure(
    responses: Sequence[Response], language: str, iteration: int, identify: Identify | None, bootstrap: Bootstrap
) -> list[Measure]:
    """Return what can be counted in the held-out responses of one language.

    ``identify`` is None for a language that the identifier does not know; its share is then left out, and so is the
    repetition where a response came without token ids. Where there are no responses there is nothing to count.
    """
    if not responses:
        return []
    counts: dict[str, Callable[[Response], float]] = {
        "repetition": lambda response: repeated_share(response.token_ids or []),
        "truncated": lambda response: float(response.finish_reason == "length"),
        "characters": lambda response: float(len(response.text)),
    }
    if any(response.token_ids is None for response in responses):
        del counts["repetition"]
    if identify is not None:
        known = identify
        tag = language.partition("-")[0]
        counts = {"right_language": lambda response: float(known(response.text) == tag), **counts}
    prompts = [response.prompt_id for response in responses]
    return [
        _summary([count(response) for response in responses], prompts, language, iteration, name, bootstrap)
        for name, count in counts.items()
    ]


def compare(
    scores: Sequence[Score],
    baseline: Sequence[Score],
    language: str,
    iteration: int,
    bootstrap: Bootstrap,
    *,
    per_token: bool = False,
) -> Measure | None:
    """Return the win rate over the baseline by reward per token: each response against each one to the same prompt.

    ``per_token`` tells that the rewards are per token already, as those of ipo, simpo and orpo are.

    None where no prompt has responses of both with at least one token and a finite reward.
    """
    own, other = _per_token(scores, per_token), _per_token(baseline, per_token)
    outcomes: list[float] = []
    prompts: list[str] = []
    for prompt_id in sorted(own.keys() & other.keys()):  # a set's order changes from one process to the next
        left, right = zip(*product(own[prompt_id], other[prompt_id]), strict=True)
        outcomes += win_rate(left, right).tolist()
        prompts += [prompt_id] * len(left)
    if not outcomes:
        return None
    return _summary(outcomes, prompts, language, iteration, WIN_RATE, bootstrap)


def _per_token(scores: Sequence[Score], already: bool) -> dict[str, list[float]]:
    by_prompt: dict[str, list[float]] = {}
    for score in sorted(scores, key=lambda score: (score.prompt_id, score.sample)):
        value = score.implicit_reward
        if score.tokens and value is not None and math.isfinite(value):
            by_prompt.setdefault(score.prompt_id, []).append(value if already else value / score.tokens)
    return by_prompt


def _summary(
    values: Sequence[float], prompts: Sequence[str], language: str, iteration: int, name: str, bootstrap: Bootstrap
) -> Measure:
    interval = share_interval if name in SHARES else mean_interval
    mean = interval(values, prompts, **asdict(bootstrap))
    return Measure(iteration, language, name, mean.value, mean.low, mean.high, mean.n, len(set(prompts)))
