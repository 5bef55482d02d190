"""Eq. 6 and 9 with numbers that a reader can check in the head."""

import math

import pytest

from crosspref.maths.reward import implicit_reward, penalised_reward


@pytest.mark.parametrize(
    ("policy", "reference", "beta", "expected"),
    [
        # The policy gives the response probability 1/2 and the reference 1/8, four times less: 0.1 * ln 4.
        (math.log(1 / 2), math.log(1 / 8), 0.1, 0.1386294361),
        # The other way round the reward changes its sign and nothing else.
        (math.log(1 / 8), math.log(1 / 2), 0.1, -0.1386294361),
        # -30 against -32 nats: the policy likes the response better, by 2 nats.
        (-30.0, -32.0, 0.1, 0.2),
        (-30.0, -32.0, 0.5, 1.0),
        (-30.0, -30.0, 0.1, 0.0),
        (0.0, -7.0, 1.0, 7.0),
    ],
)
def test_implicit_reward_is_beta_times_the_log_ratio(
    policy: float, reference: float, beta: float, expected: float
) -> None:
    assert implicit_reward(policy, reference, beta) == pytest.approx(expected, abs=1e-9)


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
        return penalised_reward(implicit_reward(policy, reference, beta=0.1), characters, alpha)

    assert reward(-20, -26, 40, 0.005) == pytest.approx(0.4)
    assert reward(-10, -13, 10, 0.005) == pytest.approx(0.25)
    assert reward(-20, -26, 40, 0.01) == pytest.approx(reward(-10, -13, 10, 0.01)) == pytest.approx(0.2)
