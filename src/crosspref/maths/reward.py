"""The implicit reward of a directly aligned model, before the length penalty (Eq. 6, 9, 17), by alignment algorithm.

All functions take log-probabilities summed over the response's tokens, in nats. If an algorithm's loss compares
log-probabilities per token, its reward is per token too.
"""

import math

ALGORITHMS = ("dpo", "kto", "ipo", "simpo", "orpo")
"""The direct alignment algorithms with a known reward."""

PER_TOKEN = frozenset({"ipo", "simpo", "orpo"})
"""The algorithms whose reward is per token. The reward of the others is a sum over tokens."""


def implicit_reward(
    algorithm: str, policy_logprob: float, reference_logprob: float | None, tokens: int, beta: float
) -> float | None:
    """Return a policy's implicit reward after training by ``algorithm``. None for a reward per token of no tokens.

    dpo: beta log(pi(y|x) / pi_ref(y|x)). kto: the same without beta. ipo: the same as dpo, per token. simpo: beta
    log pi(y|x) per token. orpo: log(p / (1 - p)), where log p is log pi(y|x) per token. In nats, times beta if it
    occurs.

    Args:
        algorithm: the algorithm that aligned the policy.
        policy_logprob: log pi(y | x), summed over the response's tokens, nats.
        reference_logprob: log pi_ref(y | x) of the same tokens, nats; None for simpo and orpo only.
        tokens: number of tokens in the sums.
        beta: the beta that the policy was aligned with. The rewards of kto and orpo do not use it.

    Raises:
        ValueError: the algorithm is unknown, or a reference is missing.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"Unknown algorithm {algorithm!r}. Known: {', '.join(ALGORITHMS)}.")
    if algorithm in {"simpo", "orpo"}:
        return _reward_without_reference(algorithm, policy_logprob, tokens, beta)
    if reference_logprob is None:
        raise ValueError(f"The reward of {algorithm} needs the reference's log-probability. Pass reference_logprob.")
    log_ratio = policy_logprob - reference_logprob
    if algorithm == "dpo":  # Eq. 6; Rafailov et al. 2024, "Direct Preference Optimization", section 4
        return beta * log_ratio
    if algorithm == "kto":  # Eq. 17; Ethayarajh et al. 2024, "KTO", where beta is part of the value function
        return log_ratio
    # Azar et al. 2024, "A General Theoretical Paradigm to Understand Learning from Human Preferences", Eq. 17, whose
    # tau is beta. Log-ratios are per token, as in TRL's IPO loss.
    return beta * log_ratio / tokens if tokens else None


def _reward_without_reference(algorithm: str, policy_logprob: float, tokens: int, beta: float) -> float | None:
    if not tokens:
        return None
    if algorithm == "simpo":  # Meng et al. 2024, "SimPO", Eq. 4
        return beta * policy_logprob / tokens
    # Hong et al. 2024, "ORPO", Eq. 3 to 6: the loss compares log-odds without a factor. They are infinite if p is 1.
    mean = policy_logprob / tokens
    return mean - math.log(-math.expm1(mean)) if mean < 0 else math.inf


def finite(reward: float | None) -> float | None:
    """Return a reward that can be compared, or None where there is none or it is infinite or NaN.

    It is infinite where a model rules a token out, or for ORPO where p is 1.
    """
    return reward if reward is not None and math.isfinite(reward) else None


def noise_gap(algorithm: str, beta: float) -> float:
    """Return the reward that corresponds to a log-ratio of 0.5 nats, or 0.0 for rewards per token.

    0.5 nats is a round number near the noise of bfloat16. With SmolLM2-135M the log-probability of a response had a
    standard deviation of 0.56 nats, and a log-ratio, which is what a reward holds, one of 0.42 to 0.76
    (docs/development/lab_notes.md). ``crosspref audit`` measures it for a run.
    """
    return {"dpo": 0.5 * beta, "kto": 0.5}.get(algorithm, 0.0)


def penalised_reward(reward: float, length: float, alpha: float) -> float:
    """Return ``reward - alpha * length`` (Eq. 9); alpha is in reward per unit of length."""
    return reward - alpha * length
