"""Agreement of two rewards: do they put the same responses in the same order, and do they choose the same pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crosspref.data.records import Agreement, Pair, Score
from crosspref.maths.estimate import UNKNOWN
from crosspref.maths.statistics import kendall_tau, mean_interval


@dataclass(frozen=True, slots=True)
class RewardResult:
    """What one reward says of the responses in one language: its scores, and the pairs that it selects."""

    reward: str
    scores: Sequence[Score]
    pairs: Sequence[Pair]


def agree(
    iteration: int, language: str, first: RewardResult, second: RewardResult, *, resamples: int, seed: int
) -> Agreement:
    """Return how far two rewards of the same responses agree in one language.

    Scores are joined by prompt_id and sample; a response without a finite reward under both is left out. Pairs are
    joined by prompt_id; those without sample numbers are left out.

    Args:
        iteration: the iteration whose responses these are.
        language: the tag of the responses' language.
        first: one reward.
        second: the other reward.
        resamples: bootstrap resamples of tau's interval, over prompts.
        seed: seeds the bootstrap.
    """
    taus = [tau for tau in _taus(first.scores, second.scores) if not math.isnan(tau)]
    tau = mean_interval(taus, resamples=resamples, seed=seed) if taus else UNKNOWN
    left, right = _samples(first.pairs), _samples(second.pairs)
    selected = [(left[prompt_id], right[prompt_id]) for prompt_id in left.keys() & right.keys()]
    return Agreement(
        iteration,
        language,
        first.reward,
        second.reward,
        tau.value,
        tau.low,
        tau.high,
        tau.n,
        same_chosen=_share([one[0] == two[0] for one, two in selected]),
        same_rejected=_share([one[1] == two[1] for one, two in selected]),
        same_pair=_share([one == two for one, two in selected]),
        swapped=_share([one == two[::-1] for one, two in selected]),
        pairs=len(selected),
    )


def _taus(scores: Sequence[Score], other_scores: Sequence[Score]) -> list[float]:
    """Return tau-b within each prompt, nan where it is not defined; in the order of the ids, as the bootstrap needs."""
    left, right = _finite(scores), _finite(other_scores)
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for key in sorted(left.keys() & right.keys()):
        by_prompt.setdefault(key[0], []).append((left[key], right[key]))
    return [kendall_tau(*zip(*rewards, strict=True)) for rewards in by_prompt.values()]


def _finite(scores: Sequence[Score]) -> dict[tuple[str, int], float]:
    return {
        (score.prompt_id, score.sample): score.implicit_reward
        for score in scores
        if score.implicit_reward is not None and math.isfinite(score.implicit_reward)
    }


def _samples(pairs: Sequence[Pair]) -> dict[str, tuple[int, int]]:
    """Return the chosen and the rejected sample by prompt."""
    return {
        pair.prompt_id: (pair.chosen_sample, pair.rejected_sample)
        for pair in pairs
        if pair.chosen_sample is not None and pair.rejected_sample is not None
    }


def _share(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes) if outcomes else math.nan
