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


def test_a_gap_within_the_noise_is_doubtful() -> None:
    stored = [score("a", 0, 0.53), score("a", 1, 0.09)]
    exact = [score("a", 0, 0.50), score("a", 1, 0.10)]
    row = found(stored, exact, [pair("a", (0, 0.53), (1, 0.09)), pair("b", (0, 0.15), (1, 0.1))])
    assert (row.pairs, row.doubtful) == (2, 1)


def test_a_pair_that_exact_scores_turn_round_is_counted() -> None:
    stored = [score("a", 0, 0.5), score("a", 1, 0.4)]
    exact = [score("a", 0, 0.3), score("a", 1, 0.4)]
    row = found(stored, exact, [pair("a", (0, 0.5), (1, 0.4))])
    assert (row.changed, row.exchanged, row.prompts) == (1, 1, 1)


def test_another_best_response_is_counted_though_the_pair_is_not_turned_round() -> None:
    stored = [score("a", 0, 0.5), score("a", 1, 0.45), score("a", 2, 0.1)]
    exact = [score("a", 0, 0.5), score("a", 1, 0.55), score("a", 2, 0.1)]
    row = found(stored, exact, [pair("a", (0, 0.5), (2, 0.1))])
    assert (row.changed, row.exchanged, row.prompts) == (1, 0, 1)


def test_the_length_penalty_of_the_pair_holds_for_exact_scores() -> None:
    # Without the penalty sample 1 would be the best; it is 20 characters longer, at .01 each.
    stored = [score("a", 0, 0.5, 10), score("a", 1, 0.6, 30), score("a", 2, 0.1, 10)]
    row = found(stored, stored, [pair("a", (0, 0.4), (2, 0.0), alpha=0.01)])
    assert (row.noise, row.changed, row.exchanged) == (0.0, 0, 0)
    exact = [score("a", 0, 0.35, 10), score("a", 1, 0.6, 30), score("a", 2, 0.1, 10)]
    assert found(stored, exact, [pair("a", (0, 0.4), (2, 0.0), alpha=0.01)]).changed == 1


def test_a_pair_is_turned_round_under_the_penalty_and_not_without() -> None:
    # Exact rewards prefer the rejected response by .05; it is 10 characters longer, which costs .1.
    stored = [score("a", 0, 0.6, 10), score("a", 1, 0.5, 20)]
    exact = [score("a", 0, 0.45, 10), score("a", 1, 0.5, 20)]
    assert found(stored, exact, [pair("a", (0, 0.5), (1, 0.3), alpha=0.01)]).exchanged == 0
    assert found(stored, exact, [pair("a", (0, 0.6), (1, 0.5))]).exchanged == 1


def test_what_has_no_reward_is_left_out() -> None:
    stored = [score("a", 0, None), score("a", 1, 0.2)]
    assert found(stored, [score("a", 0, None), score("a", 1, 0.2)], []).responses == 1
    assert audit("es", stored[:1], stored[:1], [], unit="tokens", scale=1.0) is None
