"""Auditing: how far the scores of a run are from exact ones, and what that noise could change among its pairs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crosspref.data.records import Pair, Score
from crosspref.maths.length_penalty import best_and_worst

SPREADS = 2.0
"""Beyond how many standard deviations of its own noise a gap counts as safe."""


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit found in one language.

    ``noise`` is the standard deviation, and ``largest`` the largest absolute value, of (score of the run - exact score)
    over ``responses`` responses; ``gap`` is the median difference between the penalised rewards of the chosen and the
    rejected response over ``pairs`` pairs of the run, of which ``doubtful`` have a gap below ``SPREADS`` standard
    deviations of what the noise makes of a difference of two scores. All are in nats where the reward is a multiple of
    a log-ratio, else in the reward's unit. Of the ``prompts`` audited prompts that made a pair, ``changed`` have
    another best or worst response by exact scores, and ``exchanged`` prefer the rejected to the chosen one.
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

    @property
    def least_gap(self) -> float:
        """The gap from which on a pair is not doubtful."""
        return least_gap(self.noise)


def least_gap(noise: float) -> float:
    """Return the gap that is safe from a noise: ``SPREADS`` standard deviations of a difference of two scores."""
    return SPREADS * math.sqrt(2) * noise


def audit(
    language: str, scores: Sequence[Score], exact: Sequence[Score], pairs: Sequence[Pair], *, unit: str, scale: float
) -> Audited | None:
    """Compare scores of a run with exact ones of the same responses; None if no response has both.

    Args:
        language: the responses' language.
        scores: the run's, of every response to the audited prompts.
        exact: computed anew; joined by prompt_id and sample.
        pairs: the run's pairs of the whole language.
        unit: ``characters`` or ``tokens``, in which the pairs' alpha penalises length.
        scale: by what rewards are divided to be in nats: beta, or 1 where the reward has none.
    """
    anew = {(row.prompt_id, row.sample): row for row in exact}
    both = [(row, anew[row.prompt_id, row.sample]) for row in scores if (row.prompt_id, row.sample) in anew]
    known = [
        (own, other, own.implicit_reward / scale, other.implicit_reward / scale)
        for own, other in both
        if own.implicit_reward is not None and other.implicit_reward is not None
    ]
    if not known:
        return None
    errors = [mine - theirs for _, _, mine, theirs in known]
    noise = statistics.pstdev(errors) if len(errors) > 1 else abs(errors[0])
    gaps = [
        (pair.chosen_reward - pair.rejected_reward) / scale
        for pair in pairs
        if pair.chosen_reward is not None and pair.rejected_reward is not None
    ]
    paired = {pair.prompt_id: pair for pair in pairs}
    verdicts = [
        _judge([row for row in known if row[0].prompt_id == prompt_id], paired[prompt_id], unit, scale)
        for prompt_id in dict.fromkeys(own.prompt_id for own, *_ in known)
        if prompt_id in paired
    ]
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


def _judge(rows: Sequence[tuple[Score, Score, float, float]], pair: Pair, unit: str, scale: float) -> tuple[bool, bool]:
    """Tell whether exact scores select another pair among the same responses, and whether they turn this one round.

    Responses that were filtered out when the pair was made are not known here, so best and worst are compared with
    what the run's own scores select among the same rows.
    """
    lengths = np.array([(own.characters if unit == "characters" else own.tokens) or 0 for own, *_ in rows], dtype=float)
    alpha = (pair.alpha or 0.0) / scale
    offsets = np.array([0, len(rows)])
    picked = [
        tuple(int(one[0]) for one in best_and_worst(np.array(values), lengths, alpha, offsets))
        for values in ([mine for *_, mine, _ in rows], [theirs for *_, theirs in rows])
    ]
    exact: dict[int | None, float] = {
        own.sample: theirs - alpha * length for (own, _, _, theirs), length in zip(rows, lengths, strict=True)
    }
    chosen, rejected = exact.get(pair.chosen_sample), exact.get(pair.rejected_sample)
    turned = chosen is not None and rejected is not None and chosen < rejected
    return picked[0] != picked[1], turned
