"""Auditing, on numbers small enough to work out by hand."""

import math

import pytest

from crosspref.data.records import Pair, Score
from crosspref.reports.audit import Audited, audit, least_gap


def score(prompt_id: str, sample: int, reward: float | None, characters: int = 10) -> Score:
    return Score(prompt_id, "es", sample, "crosslingual", -1.0, -2.0, 5, characters, reward)


def pair(prompt_id: str, chosen: tuple[int, float], rejected: tuple[int, float], alpha: float = 0.0) -> Pair:
    return Pair(prompt_id, "es", [], [], [], chosen[0], rejected[0], None, None, chosen[1], rejected[1], alpha)


def found(stored: list[Score], exact: list[Score], pairs: list[Pair]) -> Audited:
    row = audit("es", stored, exact, pairs, unit="characters", scale=0.1)
    assert row is not None
    return row


def test_noise_and_gaps_are_in_nats() -> None:
    # Errors of +.03 and -.01 in rewards are +.3 and -.1 nats at beta .1: mean .1, standard deviation .2.
    stored = [score("a", 0, 0.53), score("a", 1, 0.09)]
    exact = [score("a", 1, 0.10), score("a", 0, 0.50)]
    row = found(stored, exact, [pair("a", (0, 0.53), (1, 0.09)), pair("b", (0, 0.2), (1, 0.1))])
    assert (row.noise, row.largest, row.responses) == (pytest.approx(0.2), pytest.approx(0.3), 2)
    # Gaps of 4.4 and 1 nats; doubtful is what lies below 2 * sqrt(2) * .2 = .566 nats.
    assert (row.gap, row.pairs, row.doubtful) == (pytest.approx(2.7), 2, 0)
    assert least_gap(row.noise) == pytest.approx(2 * math.sqrt(2) * 0.2)
    assert (row.changed, row.exchanged, row.prompts) == (0, 0, 1)
    row = found(stored, exact, [pair("a", (0, 0.53), (1, 0.09)), pair("b", (0, 0.15), (1, 0.1))])
    assert (row.pairs, row.doubtful) == (2, 1)


@pytest.mark.parametrize(
    ("stored", "exact", "made", "changed", "exchanged"),
    [
        # Exact scores turn the pair round.
        ([0.5, 0.4], [0.3, 0.4], pair("a", (0, 0.5), (1, 0.4)), 1, 1),
        # Another response is the best one, but the pair is not turned round.
        ([0.5, 0.45, 0.1], [0.5, 0.55, 0.1], pair("a", (0, 0.5), (2, 0.1)), 1, 0),
        # Without the penalty sample 1 would be the best; it is 20 characters longer, at .01 each.
        ([0.5, 0.6, 0.1], [0.5, 0.6, 0.1], pair("a", (0, 0.4), (2, 0.0), alpha=0.01), 0, 0),
        ([0.5, 0.6, 0.1], [0.35, 0.6, 0.1], pair("a", (0, 0.4), (2, 0.0), alpha=0.01), 1, 0),
        # Exact rewards prefer the rejected response by .05; its 20 characters more cost .2.
        ([0.6, 0.5], [0.45, 0.5], pair("a", (0, 0.5), (1, 0.2), alpha=0.01), 0, 0),
        ([0.6, 0.5], [0.45, 0.5], pair("a", (0, 0.6), (1, 0.5)), 1, 1),
    ],
)
def test_pairs_that_exact_scores_would_not_make(
    stored: list[float], exact: list[float], made: Pair, changed: int, exchanged: int
) -> None:
    def scores(rewards: list[float]) -> list[Score]:
        """Sample 1 is 20 characters longer than the others."""
        return [score("a", sample, reward, 30 if sample == 1 else 10) for sample, reward in enumerate(rewards)]

    row = found(scores(stored), scores(exact), [made])
    assert (row.changed, row.exchanged, row.prompts) == (changed, exchanged, 1)


def test_what_has_no_reward_is_left_out() -> None:
    stored = [score("a", 0, None), score("a", 1, 0.2)]
    assert found(stored, [score("a", 0, None), score("a", 1, 0.2)], []).responses == 1
    assert audit("es", stored[:1], stored[:1], [], unit="tokens", scale=1.0) is None
