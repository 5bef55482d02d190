"""From outcomes to reward accuracy with its intervals, per reward, iteration and language, and what differs."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crosspref.maths.estimate import UNKNOWN, Change, Estimate
from crosspref.maths.statistics import newcombe_interval, wilson_interval
from crosspref.suites.reward_accuracy.judges import Judged, Outcome
from crosspref.suites.reward_accuracy.pairs import Sample, Sampled

ALL = "all"
"""Stands in the place of the language for the pairs of all languages together."""

LACKING = "no verdict"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often a judge prefers what a reward has chosen, in one language, or over the pairs of all.

    Shares from 0 to 1 with 95% intervals, nan where there are none. ``accuracy`` counts a tie as one half,
    ``decided`` leaves ties out. Of ``sampled`` pairs out of ``pairs``, ``failed`` ones have no verdict that can be
    read and ``lacking`` ones none at all; the rest, ``n``, are ``wins`` (of the chosen answer), ``losses`` and
    ``ties``, among which are the ``contradicted`` ones, of which each order of showing said something else.
    ``kind`` is what judges: judge, reward model or people.
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
    accuracy: float
    low: float
    high: float
    decided: float
    decided_low: float
    decided_high: float
    date: str


@dataclass(frozen=True, slots=True)
class AccuracyChange:
    """By how much the accuracy of a reward differs from another one's, ties as one half; ``n`` pairs of both.

    ``verdict`` is ``better`` or ``worse`` only where the interval says so.
    """

    kind: str
    judge: str
    reward: str
    iteration: int
    other_reward: str
    other_iteration: int
    language: str
    difference: float
    low: float
    high: float
    verdict: str
    n: int


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


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table: a judge on the sample of one reward, or on those of all languages."""

    judged: Judged
    reward: str
    iteration: int
    language: str
    pairs: int
    found: Sequence[tuple[Sampled, Outcome | None]]

    def outcomes(self) -> tuple[list[float], list[str]]:
        """Return for every pair that was judged 1, 0 or 0.5, for the chosen answer, and its prompt."""
        known = [(row, one.value) for row, one in self.found if one is not None and one.value is not None]
        values = [value if row.chosen_is_a else 1 - value for row, value in known]
        return values, [row.prompt_id for row, _ in known]

    def intervals(self) -> tuple[Estimate, Estimate]:
        """Return the accuracy with ties as one half, and with ties left out; prompts are the clusters."""
        values, prompts = self.outcomes()
        clear = [(value, prompt) for value, prompt in zip(values, prompts, strict=True) if value != 0.5]
        return (
            wilson_interval(values, prompts) if values else UNKNOWN,
            wilson_interval([value for value, _ in clear], [prompt for _, prompt in clear]) if clear else UNKNOWN,
        )

    def failures(self) -> Counter[str]:
        """Return why pairs have no outcome."""
        reasons = [LACKING if one is None else one.failure for _, one in self.found]
        return Counter(reason for reason in reasons if reason)

    def row(self) -> Accuracy:
        """Return the row of the table."""
        values, _ = self.outcomes()
        half, decided = self.intervals()
        lacking = self.failures()[LACKING]
        return Accuracy(
            self.judged.kind,
            self.judged.name,
            self.reward,
            self.iteration,
            self.language,
            self.pairs,
            len(self.found),
            len(values),
            values.count(1.0),
            values.count(0.0),
            values.count(0.5),
            sum(one is not None and one.contradicted for _, one in self.found),
            len(self.found) - len(values) - lacking,
            lacking,
            half.value,
            half.low,
            half.high,
            decided.value,
            decided.low,
            decided.high,
            self.judged.date,
        )

    def pair_rows(self) -> list[PairOutcome]:
        """Return what was said of each pair."""
        rows = []
        for row, one in self.found:
            value = None if one is None else one.value
            own = math.nan if value is None else value if row.chosen_is_a else 1 - value
            failure = LACKING if one is None else one.failure or ""
            rows.append(
                PairOutcome(
                    row.comparison.pair_id, self.judged.kind, self.judged.name, self.reward, self.iteration,
                    self.language, row.prompt_id, "a" if row.chosen_is_a else "b",
                    math.nan if row.gap is None else row.gap, own, failure,
                )
            )  # fmt: skip
        return rows


def cells_of(judged: Judged, samples: Sequence[Sample]) -> list[Cell]:
    """Return the cells of one judge: of every sample, and after those of a reward the one of all its languages."""
    by_reward: dict[tuple[str, int], list[Cell]] = {}
    for sample in samples:
        found = [(row, judged.outcomes.get(row.comparison.pair_id)) for row in sample.sampled]
        cell = Cell(judged, sample.reward, sample.iteration, sample.language, sample.pairs, found)
        by_reward.setdefault((sample.reward, sample.iteration), []).append(cell)
    for (reward, iteration), own in by_reward.items():
        if len(own) > 1:
            every = [pair for cell in own for pair in cell.found]
            own.append(Cell(judged, reward, iteration, ALL, sum(cell.pairs for cell in own), every))
    return [cell for own in by_reward.values() for cell in own]


def changes_of(cells: Sequence[Cell]) -> list[AccuracyChange]:
    """Return how the rewards of one judge's cells differ: iterations from the one before, rewards from the first one.

    Their pairs are others, so their intervals are those of independent shares (Newcombe).
    """
    by_reward: dict[tuple[str, int], dict[str, Cell]] = {}
    for cell in cells:
        by_reward.setdefault((cell.reward, cell.iteration), {})[cell.language] = cell
    found = []
    for own, other in _compared(list(by_reward)):
        for language, cell in by_reward[own].items():
            if language in by_reward[other]:
                change = _change(cell, by_reward[other][language])
                found += [change] if change else []
    return found


def _compared(keys: Sequence[tuple[str, int]]) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    pairs = []
    first: Mapping[int, str] = {iteration: reward for reward, iteration in reversed(keys)}
    for reward, iteration in keys:
        if (reward, iteration - 1) in keys:
            pairs.append(((reward, iteration), (reward, iteration - 1)))
        if first[iteration] != reward:
            pairs.append(((first[iteration], iteration), (reward, iteration)))
    return pairs


def _change(cell: Cell, other: Cell) -> AccuracyChange | None:
    (own, _), (theirs, _) = cell.intervals(), other.intervals()
    if not own.n or not theirs.n:
        return None
    gap = newcombe_interval(own, theirs)
    return AccuracyChange(
        cell.judged.kind, cell.judged.name, cell.reward, cell.iteration, other.reward, other.iteration, cell.language,
        gap.value, gap.low, gap.high, Change.of(gap).verdict, gap.n,
    )  # fmt: skip
