"""What a canary measures: how often a trait appears, how that changes, and which reward prefers it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from crosspref.data.records import Pair, Response, Score
from crosspref.languages import ENGLISH
from crosspref.maths.estimate import Estimate
from crosspref.maths.reward import finite, penalised_reward
from crosspref.maths.statistics import mean_interval, win_rate
from crosspref.stages.evaluate import Bootstrap, measure
from crosspref.stages.select.select import Identify

OTHERS = "others"
"""Stands for all languages but English, taken together."""

INITIAL, TAUGHT, BY_RC, BY_RM = "pi_I", "pi_0", "pi_1 by R_c", "pi_1 by R_m"
POLICIES = (INITIAL, TAUGHT, BY_RC, BY_RM)
CHANGES = ((TAUGHT, INITIAL), (BY_RC, TAUGHT), (BY_RM, TAUGHT), (BY_RC, BY_RM))
"""Which policy is compared with which one."""

AUC = {"auc": "raw", "auc_per_token": "per token", "auc_penalised": "less penalty"}
"""The measures of how well a reward prefers the trait, and the reward's form in each."""
KEPT = ("right_language", "truncated", "repetition", "characters")
"""The measures of `stages.evaluate` that tell what else became of the answers."""

Test = Callable[[str], bool]

AnswerKey = tuple[str, str, int]
"""The language, the prompt_id and the number of a sample."""

Observations = Mapping[tuple[str, str, *tuple[int, ...]], float]
"""Values to average, by language, prompt_id and the numbers of the samples that each is of."""


@dataclass(frozen=True, slots=True)
class Figure(Estimate):
    """A mean with its 95% bootstrap interval over ``prompts`` prompts; ``n`` counts the values averaged."""

    prompts: int


Figures = dict[tuple[str, str, str], Figure]
"""By what it is of (a policy, ``policy - policy``, or a reward), language, and measure."""


class FigureBootstrap(Bootstrap):
    """How intervals are made."""

    def figures(self, of: str, measure: str, observations: Observations) -> Figures:
        """Return the mean in each language, in the order of first appearance, and in all but English together."""
        languages = list(dict.fromkeys(language for language, *_ in observations))
        groups = {language: [language] for language in languages}
        foreign = [language for language in languages if language != ENGLISH]
        if len(foreign) > 1:
            groups[OTHERS] = foreign
        figures = {}
        for name, members in groups.items():
            values = {key: value for key, value in observations.items() if key[0] in members}
            prompts = [prompt_id for _, prompt_id, *_ in values]
            mean = mean_interval(list(values.values()), prompts, resamples=self.resamples, seed=self.seed)
            figures[of, name, measure] = Figure(mean.value, mean.low, mean.high, mean.n, len(set(prompts)))
        return figures


@dataclass(frozen=True, slots=True)
class Judged:
    """One iteration's responses, a reward's values of them in each form of `AUC`, and the pairs selected by it."""

    responses: Sequence[Response]
    values: Mapping[str, Mapping[AnswerKey, float]]
    pairs: Sequence[Pair]


def trait_figures(answers: Mapping[str, Sequence[Response]], test: Test, bootstrap: FigureBootstrap) -> Figures:
    """Return how often the trait appears under each policy, and how that changes between those of `CHANGES`.

    A change compares answers of the same prompt, language and sample, which were drawn with the same seed.
    """
    shown: dict[str, Observations] = {
        policy: {_key(row): float(test(row.text)) for row in rows} for policy, rows in answers.items()
    }
    figures: Figures = {}
    for policy, observations in shown.items():
        figures |= bootstrap.figures(policy, "trait", observations)
    for after, before in CHANGES:
        if after in shown and before in shown:
            figures |= bootstrap.figures(f"{after} - {before}", "change", _gaps(shown[after], shown[before]))
    return figures


def other_figures(
    policy: str, answers: Sequence[Response], identifier: Callable[[str], Identify | None], bootstrap: FigureBootstrap
) -> Figures:
    """Return what else can be counted in a policy's answers; ``identifier`` returns what identifies a language."""
    figures: Figures = {}
    for language in dict.fromkeys(row.language for row in answers):
        responses = [row for row in answers if row.language == language]
        for row in measure(responses, language, 0, identifier(language), bootstrap):
            if row.measure in KEPT:
                figures[policy, language, row.measure] = Figure(row.mean, row.low, row.high, row.n, row.prompts)
    return figures


def reward_values(scores: Iterable[Score], alphas: Mapping[str, float], unit: str) -> dict[str, dict[AnswerKey, float]]:
    """Return one reward of each response in each form of `AUC`; what is not finite, or has no tokens, is left out.

    Args:
        scores: the reward of every response.
        alphas: the length penalty of every language, per ``unit``.
        unit: ``characters`` or ``tokens``.
    """
    raw, per_token, penalised = {}, {}, {}
    for score in scores:
        reward, key = finite(score.implicit_reward), _key(score)
        if reward is None:
            continue
        length = (score.characters if unit == "characters" else score.tokens) or 0
        raw[key], penalised[key] = reward, penalised_reward(reward, length, alphas[score.language])
        if score.tokens:
            per_token[key] = reward / score.tokens
    return dict(zip(AUC, (raw, per_token, penalised), strict=True))


def reward_figures(judged: Mapping[str, Judged], test: Test, bootstrap: FigureBootstrap) -> Figures:
    """Return how well each reward prefers the trait, in each form, how much better than the next, and in its pairs.

    The AUC is the probability that of two responses to one prompt, one with the trait and one without, the one with it
    has the higher reward; equal rewards count half. A difference is over what both rewards compare. Of a reward's
    pairs it is returned how much more often the chosen responses have the trait than the rejected ones.
    """
    figures: Figures = {}
    for form in AUC:
        outcomes = {reward: _outcomes(given.responses, given.values[form], test) for reward, given in judged.items()}
        for first, second in pairwise(list(outcomes)):
            outcomes[f"{first} - {second}"] = _gaps(outcomes[first], outcomes[second])
        for of, observations in outcomes.items():
            figures |= bootstrap.figures(of, form, observations)
    for reward, given in judged.items():
        figures |= bootstrap.figures(reward, "chosen_minus_rejected", _chosen_minus_rejected(given.pairs, test))
    return figures


def _outcomes(responses: Sequence[Response], values: Mapping[AnswerKey, float], test: Test) -> Observations:
    """Return, by both samples, whether the response with the trait has a higher reward than the one without."""
    by_prompt: dict[tuple[str, str], tuple[list[AnswerKey], list[AnswerKey]]] = {}
    for response in responses:
        key = _key(response)
        if key in values:
            having, lacking = by_prompt.setdefault(key[:2], ([], []))
            (having if test(response.text) else lacking).append(key)
    comparisons = [pair for sides in by_prompt.values() for pair in product(*sides)]
    won = win_rate([values[one] for one, _ in comparisons], [values[other] for _, other in comparisons]).tolist()
    return {(*one, other[2]): outcome for (one, other), outcome in zip(comparisons, won, strict=True)}


def _chosen_minus_rejected(pairs: Sequence[Pair], test: Test) -> Observations:
    return {
        (pair.language, pair.prompt_id, number): float(test(pair.chosen[-1]["content"]))
        - float(test(pair.rejected[-1]["content"]))
        for number, pair in enumerate(pairs)
    }


def _gaps(left: Observations, right: Observations) -> Observations:
    """Return left - right of what both have, in the order of left: a set's changes from one process to the next."""
    return {key: value - right[key] for key, value in left.items() if key in right}


def _key(row: Response | Score) -> AnswerKey:
    return row.language, row.prompt_id, row.sample
