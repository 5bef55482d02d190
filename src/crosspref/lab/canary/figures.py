"""What a canary measures: how often a trait appears, how that changes, and which reward prefers it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from crosspref.data.records import Measure, Pair, Response, Score
from crosspref.languages import ENGLISH
from crosspref.maths.reward import penalised_reward
from crosspref.maths.statistics import mean_interval, win_rate
from crosspref.stages.evaluate import measure
from crosspref.stages.select.select import Identify

OTHERS = "others"
"""Stands for all languages but English, taken together."""

INITIAL, TAUGHT, BY_RC, BY_RM = "pi_I", "pi_0", "pi_1 by R_c", "pi_1 by R_m"
POLICIES = (INITIAL, TAUGHT, BY_RC, BY_RM)
CHANGES = ((TAUGHT, INITIAL), (BY_RC, TAUGHT), (BY_RM, TAUGHT), (BY_RC, BY_RM))
"""Which policy is compared with which one."""

AUC = {
    "auc": "raw",
    "auc_per_token": "per token",
    "auc_penalised": "less penalty",
}
"""The measures of how well a reward prefers the trait, and the reward's form in each."""
KEPT = ("right_language", "truncated", "repetition", "characters")
"""The measures of `stages.evaluate` that tell what else became of the answers."""

Test = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its 95% bootstrap interval over prompts.

    ``of`` is a policy, ``policy - policy``, or a reward. ``n`` counts the values averaged, ``prompts`` the clusters.
    """

    of: str
    language: str
    measure: str
    mean: float
    low: float
    high: float
    n: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are made."""

    resamples: int
    seed: int

    def figure(
        self, of: str, language: str, measure: str, values: Sequence[float], prompts: Sequence[str]
    ) -> list[Figure]:
        """Return the mean of values with the prompt of each; nothing where there are none."""
        if not values:
            return []
        found = mean_interval(values, prompts, resamples=self.resamples, seed=self.seed)
        return [Figure(of, language, measure, found.value, found.low, found.high, found.n, len(set(prompts)))]


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A response with a reward of it in each of the forms of `AUC`; None per token where it has no tokens."""

    response: Response
    rewards: tuple[float, float | None, float]


def trait_figures(answers: Mapping[str, Sequence[Response]], test: Test, bootstrap: Bootstrap) -> list[Figure]:
    """Return how often the trait appears under each policy, and how that changes between those of `CHANGES`.

    A change compares answers of the same prompt, language and sample, which were drawn with the same seed.
    """
    figures = []
    for policy, rows in answers.items():
        for language, own in grouped(rows):
            values, prompts = [float(test(row.text)) for row in own], [row.prompt_id for row in own]
            figures += bootstrap.figure(policy, language, "trait", values, prompts)
    for after, before in CHANGES:
        if after in answers and before in answers:
            known = {_key(row): row for row in answers[before]}
            for language, own in grouped([row for row in answers[after] if _key(row) in known]):
                values = [float(test(row.text)) - float(test(known[_key(row)].text)) for row in own]
                prompts = [row.prompt_id for row in own]
                figures += bootstrap.figure(f"{after} - {before}", language, "change", values, prompts)
    return figures


def other_figures(
    policy: str, answers: Sequence[Response], identifier: Callable[[str], Identify | None], bootstrap: Bootstrap
) -> list[Figure]:
    """Return what else can be counted in a policy's answers; ``identifier`` returns what tells a language's texts."""
    found: list[Measure] = []
    for language in dict.fromkeys(row.language for row in answers):
        own, identify = [row for row in answers if row.language == language], identifier(language)
        found += measure(own, language, 0, identify=identify, resamples=bootstrap.resamples, seed=bootstrap.seed)
    return [
        Figure(policy, row.language, row.measure, row.mean, row.low, row.high, row.n, row.prompts)
        for row in found
        if row.measure in KEPT
    ]


def rewarded(
    responses: Sequence[Response], scores: Sequence[Score], alphas: Mapping[str, float], unit: str
) -> list[Rewarded]:
    """Join responses with one reward's scores, by key; what has no finite reward is left out.

    Args:
        responses: the responses.
        scores: one reward of them.
        alphas: the length penalty of every language, per ``unit``.
        unit: ``characters`` or ``tokens``.
    """
    known = {_key(score): score for score in scores}
    found = []
    for row in responses:
        score = known.get(_key(row))
        value = score.implicit_reward if score else None
        if score is None or value is None or not math.isfinite(value):
            continue
        length = (score.characters if unit == "characters" else score.tokens) or 0
        per_token = value / score.tokens if score.tokens else None
        found.append(Rewarded(row, (value, per_token, penalised_reward(value, length, alphas[row.language]))))
    return found


def reward_figures(rewards: Mapping[str, Sequence[Rewarded]], test: Test, bootstrap: Bootstrap) -> list[Figure]:
    """Return how well each reward prefers the trait, in each of its forms, and how much better one does than the next.

    The AUC is the probability that of two responses to one prompt, one with the trait and one without, the one with it
    has the higher reward; equal rewards count half. A difference of two is over what both rewards compare.
    """
    figures = []
    for form, name in enumerate(AUC):
        outcomes = {symbol: _outcomes(rows, form, test) for symbol, rows in rewards.items()}
        for first, second in pairwise(list(outcomes)):
            both = outcomes[first].keys() & outcomes[second].keys()
            # In their own order: a set's changes from one process to the next.
            found = {key: value - outcomes[second][key] for key, value in outcomes[first].items() if key in both}
            outcomes[f"{first} - {second}"] = found
        for of, found in outcomes.items():
            for language, members in _groups(list(dict.fromkeys(key[0] for key in found))):
                own = {key: value for key, value in found.items() if key[0] in members}
                figures += bootstrap.figure(of, language, name, list(own.values()), [key[1] for key in own])
    return figures


def _outcomes(rows: Sequence[Rewarded], form: int, test: Test) -> dict[tuple[str, str, int, int], float]:
    """Return by language, prompt_id and both samples whether the response with the trait has the higher reward."""
    by_prompt: dict[tuple[str, str], list[tuple[int, bool, float]]] = {}
    for row in rows:
        value, response = row.rewards[form], row.response
        if value is not None:
            entry = (response.sample, test(response.text), value)
            by_prompt.setdefault((response.language, response.prompt_id), []).append(entry)
    met = [
        ((*key, left[0], right[0]), left[2], right[2])
        for key, own in by_prompt.items()
        for left, right in product(own, own)
        if left[1] and not right[1]
    ]
    won = win_rate([left for _, left, _ in met], [right for *_, right in met]).tolist()
    return dict(zip([key for key, *_ in met], won, strict=True))


def pair_figures(reward: str, pairs: Sequence[Pair], test: Test, bootstrap: Bootstrap) -> list[Figure]:
    """Return how much more often the chosen responses of a reward's pairs have the trait than the rejected ones."""
    figures = []
    for language, own in grouped(pairs):
        values = [float(test(pair.chosen[-1]["content"])) - float(test(pair.rejected[-1]["content"])) for pair in own]
        prompts = [pair.prompt_id for pair in own]
        figures += bootstrap.figure(reward, language, "chosen_minus_rejected", values, prompts)
    return figures


def grouped(rows: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the rows of each language in the order of first appearance, then those of all but English together."""
    for language, members in _groups(list(dict.fromkeys(row.language for row in rows))):
        yield language, [row for row in rows if row.language in members]


def _groups(languages: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    yield from ((language, [language]) for language in languages)
    others = [language for language in languages if language != ENGLISH]
    if len(others) > 1:
        yield OTHERS, others


def _key(row: Response | Score) -> tuple[str, str, int]:
    return row.prompt_id, row.language, row.sample
