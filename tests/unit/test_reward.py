"""Eq. 6, 9 and 17, and the rewards of other algorithms, with numbers that a reader can check in the head."""

import math

import pytest

from crosspref.maths.reward import ALGORITHMS, PER_TOKEN, implicit_reward, noise_gap, penalised_reward


def test_the_reward_of_dpo_changes_its_sign_with_policy_and_reference() -> None:
    # The policy gives the response probability 1/2 and the reference 1/8, four times less: 0.1 * ln 4.
    likely, unlikely = math.log(1 / 2), math.log(1 / 8)
    assert implicit_reward("dpo", likely, unlikely, 9, 0.1) == pytest.approx(0.1386294361, abs=1e-9)
    assert implicit_reward("dpo", unlikely, likely, 9, 0.1) == pytest.approx(-0.1386294361, abs=1e-9)


@pytest.mark.parametrize(
    ("reward", "length", "alpha", "expected"),
    [
        (0.2, 50, 0.0, 0.2),  # no penalty
        (0.2, 50, 0.01, -0.3),  # 0.2 - 50 * 0.01
        (0.2, 50, -0.01, 0.7),  # a negative alpha pays for length
        (-1.5, 0, 0.01, -1.5),  # an empty response costs nothing
    ],
)
def test_length_costs_alpha_per_unit(reward: float, length: float, alpha: float, expected: float) -> None:
    assert penalised_reward(reward, length, alpha) == pytest.approx(expected, abs=1e-12)


def test_equation_9_whole() -> None:
    # Response a: -20 under the policy, -26 under the reference, 40 characters: 0.1 * 6 - 0.005 * 40 = 0.4.
    # Response b: -10 under the policy, -13 under the reference, 10 characters: 0.1 * 3 - 0.005 * 10 = 0.25.
    # Without the penalty a leads by 0.3, with it by 0.15; at alpha = 0.01 both come to 0.2.
    def reward(policy: float, reference: float, characters: int, alpha: float) -> float:
        implicit = implicit_reward("dpo", policy, reference, tokens=9, beta=0.1)
        assert implicit is not None
        return penalised_reward(implicit, characters, alpha)

    assert reward(-20, -26, 40, 0.005) == pytest.approx(0.4)
    assert reward(-10, -13, 10, 0.005) == pytest.approx(0.25)
    assert reward(-20, -26, 40, 0.01) == pytest.approx(reward(-10, -13, 10, 0.01)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("policy", "tokens", "expected"),
    [
        (8 * math.log(1 / 2), 8, 0.0),  # each token 1/2: even odds
        (8 * math.log(3 / 4), 8, math.log(3)),  # each token 3/4: three to one
        (2 * math.log(1 / 5), 2, -math.log(4)),  # one to four
        (-700.0 * 3, 3, -700.0),  # the odds of a tiny probability are that probability
        (-1e-12, 1, -math.log(1e-12)),  # p = 1 - 1e-12: its odds are 1e12, which 1 - exp(-1e-12) would round
        (0.0, 5, math.inf),
    ],
)
def test_the_reward_of_orpo_is_the_log_odds_of_the_mean_token(policy: float, tokens: int, expected: float) -> None:
    assert implicit_reward("orpo", policy, None, tokens, 0.1) == pytest.approx(expected, rel=1e-12, abs=1e-12)


# The reward of -12 nats under the policy and -16 under the reference, over 8 tokens, with beta 0.5; that of a response
# without tokens; and what half a nat of noise is worth, with beta 0.1.
BY_HAND = {
    "dpo": (0.5 * 4, 0.0, 0.05),
    "kto": (4, 0.0, 0.5),
    "ipo": (0.5 * 4 / 8, None, 0.0),
    "simpo": (0.5 * -12 / 8, None, 0.0),
    "orpo": (-1.5 - math.log(1 - math.exp(-1.5)), None, 0.0),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_has_its_own_formula(algorithm: str) -> None:
    reward, without_tokens, noise = BY_HAND[algorithm]
    assert implicit_reward(algorithm, -12.0, -16.0, 8, 0.5) == pytest.approx(reward)
    assert implicit_reward(algorithm, 0.0, 0.0, 0, 0.1) == without_tokens
    assert noise_gap(algorithm, 0.1) == noise


def test_a_reward_per_token_does_not_grow_with_the_response() -> None:
    for algorithm in PER_TOKEN:
        twice = implicit_reward(algorithm, -24.0, -32.0, 16, 0.1)
        assert twice == pytest.approx(implicit_reward(algorithm, -12.0, -16.0, 8, 0.1))


@pytest.mark.parametrize("algorithm", ["simpo", "orpo"])
def test_reward_without_a_reference(algorithm: str) -> None:
    assert implicit_reward(algorithm, -12.0, None, 8, 0.5) == implicit_reward(algorithm, -12.0, -16.0, 8, 0.5)


@pytest.mark.parametrize("algorithm", ["dpo", "kto", "ipo"])
def test_a_missing_reference_is_an_error(algorithm: str) -> None:
    with pytest.raises(ValueError, match=algorithm):
        implicit_reward(algorithm, -12.0, None, 8, 0.1)


def test_an_unknown_algorithm_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'ppo'.*dpo, kto"):
        implicit_reward("ppo", -12.0, -16.0, 8, 0.1)
