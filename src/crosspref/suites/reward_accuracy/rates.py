"""From outcomes to reward accuracy with its intervals, per reward, iteration and language, and what differs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crosspref.maths.estimate import UNKNOWN, Change, Estimate
from crosspref.maths.statistics import newcombe_interval, wilson_interval
from crosspref.reports.table import columns
from crosspref.suites.reward_accuracy.judges import Judged
from crosspref.suites.reward_accuracy.pairs import Sample

ALL = "all"
"""Stands in the place of the language for the pairs of all languages together."""

LACKING = "no verdict"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often a judge prefers what a reward has chosen, in one language, or over the pairs of all.

    Shares from 0 to 1 with 95% intervals, nan where there are none. ``accuracy`` counts a tie as one half,
    ``decided`` leaves ties out. Of ``sampled`` pairs out of ``pairs``, ``failed`` ones have no verdict that can be
    read and ``lacking`` ones none at all; the rest, ``n``, are ``wins`` (of the chosen answer), ``losses`` and
    ``ties``, including the ``contradicted`` ones, where the two orders prefer different answers. ``kind`` is what
    judges: judge, reward model or people.
    """

    kind: str
    judge: str
    reward: str
    iteration: int
    language: str
    pairs: int
    sampled: int
    n: int
    wins: int
    losses: int
    ties: int
    contradicted: int
    failed: int
    lacking: int
    accuracy: Estimate = field(metadata=columns("accuracy", "low", "high"))
    decided: Estimate
    date: str


@dataclass(frozen=True, slots=True)
class AccuracyChange:
    """By how much the accuracy of a reward differs from another one's, ties as one half."""

    kind: str
    judge: str
    reward: str
    iteration: int
    other_reward: str
    other_iteration: int
    language: str
    change: Change = field(metadata=columns("difference", "low", "high", "verdict", "n"))


@dataclass(frozen=True, slots=True)
class PairOutcome:
    """What one judge said of one pair of a sample: ``outcome`` is 1 where it prefers the chosen answer, 0.5 a tie."""

    id: str
    kind: str
    judge: str
    reward: str
    iteration: int
    language: str
    prompt_id: str
    chosen: str
    gap: float
    outcome: float
    failure: str


def outcomes_of(judged: Judged, samples: Sequence[Sample]) -> list[PairOutcome]:
    """Return what one judge said of every pair of some samples."""
    rows = []
    for sample in samples:
        for pair in sample.sampled:
            outcome = judged.outcomes.get(pair.comparison.pair_id)
            value = math.nan if outcome is None or outcome.value is None else outcome.value
            rows.append(
                PairOutcome(
                    id=pair.comparison.pair_id,
                    kind=judged.kind,
                    judge=judged.name,
                    reward=sample.reward,
                    iteration=sample.iteration,
                    language=sample.language,
                    prompt_id=pair.prompt_id,
                    chosen="a" if pair.chosen_is_a else "b",
                    gap=math.nan if pair.gap is None else pair.gap,
                    outcome=value if pair.chosen_is_a else 1 - value,
                    failure=LACKING if outcome is None else outcome.failure or "",
                )
            )
    return rows


def accuracies_of(judged: Judged, samples: Sequence[Sample]) -> list[Accuracy]:
    """Return the accuracies by one judge: for every sample, and after those of a reward for all its languages."""
    by_reward: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        by_reward.setdefault((sample.reward, sample.iteration), []).append(sample)
    rows = []
    for of_reward in by_reward.values():
        rows += [_accuracy(judged, [sample], sample.language) for sample in of_reward]
        if len(of_reward) > 1:
            rows.append(_accuracy(judged, of_reward, ALL))
    return rows


def _accuracy(judged: Judged, samples: Sequence[Sample], language: str) -> Accuracy:
    """Return the accuracy over the samples of one reward; prompts are the clusters of its interval."""
    rows = outcomes_of(judged, samples)
    known = [row for row in rows if not math.isnan(row.outcome)]
    values = [row.outcome for row in known]
    outcomes = [judged.outcomes[row.id] for row in rows if row.id in judged.outcomes]
    return Accuracy(
        kind=judged.kind,
        judge=judged.name,
        reward=samples[0].reward,
        iteration=samples[0].iteration,
        language=language,
        pairs=sum(sample.pairs for sample in samples),
        sampled=len(rows),
        n=len(known),
        wins=values.count(1.0),
        losses=values.count(0.0),
        ties=values.count(0.5),
        contradicted=sum(outcome.contradicted for outcome in outcomes),
        failed=len(outcomes) - len(known),
        lacking=len(rows) - len(outcomes),
        accuracy=_share(known),
        decided=_share([row for row in known if row.outcome != 0.5]),
        date=judged.date,
    )


def _share(rows: Sequence[PairOutcome]) -> Estimate:
    return wilson_interval([row.outcome for row in rows], [row.prompt_id for row in rows]) if rows else UNKNOWN


def changes_of(rows: Sequence[Accuracy]) -> list[AccuracyChange]:
    """Return how the rewards of one judge differ: iterations from the one before, rewards from the first one.

    They chose from different pairs, so the intervals are those of independent shares (Newcombe).
    """
    by_reward: dict[tuple[str, int], dict[str, Accuracy]] = {}
    for row in rows:
        by_reward.setdefault((row.reward, row.iteration), {})[row.language] = row
    changes = []
    for new, old in _compared(list(by_reward)):
        for language, row in by_reward[new].items():
            other = by_reward[old].get(language)
            if other is not None and row.n and other.n:
                change = Change.of(newcombe_interval(row.accuracy, other.accuracy))
                changes.append(AccuracyChange(row.kind, row.judge, *new, *old, language, change))
    return changes


def _compared(keys: Sequence[tuple[str, int]]) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    pairs = []
    first: Mapping[int, str] = {iteration: reward for reward, iteration in reversed(keys)}
    for reward, iteration in keys:
        if (reward, iteration - 1) in keys:
            pairs.append(((reward, iteration), (reward, iteration - 1)))
        if first[iteration] != reward:
            pairs.append(((first[iteration], iteration), (reward, iteration)))
    return pairs
