"""The implicit reward (Eq. 6, 9 of "Implicit Cross-Lingual Rewarding")."""


def implicit_reward(policy_logprob: float, reference_logprob: float, beta: float) -> float:
    """Return beta * log(pi(y|x) / pi_ref(y|x)) (Eq. 6), in nats times beta.

    Args:
        policy_logprob: log pi(y | x), summed over the response's tokens, nats.
        reference_logprob: log pi_ref(y | x) of the same tokens, nats.
        beta: the beta with which the policy was aligned.
    """
    return beta * (policy_logprob - reference_logprob)


def penalised_reward(reward: float, length: float, alpha: float) -> float:
    """Return ``reward - alpha * length`` (Eq. 9); alpha is in reward per unit of length."""
    return reward - alpha * length
