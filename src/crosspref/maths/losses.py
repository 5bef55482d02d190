"""The training losses: one value per pair or example, never an average.

Each value depends only on its own pair or example (and on z_ref for KTO), so the mean over an optimizer step does not
depend on how the step is split into batches. Log-probabilities are sums over a response's tokens. A log-ratio is
log pi(y | x) - log pi_ref(y | x). Both are in nats. All tensors, and the result, have the shape (pairs,), or
(examples,) or (responses,) where there are no pairs. Of a pair, y+ is the chosen response and y- the rejected one.
"""

import torch
from torch.nn.functional import logsigmoid


def dpo_loss(chosen_log_ratios: torch.Tensor, rejected_log_ratios: torch.Tensor, *, beta: float) -> torch.Tensor:
    """Return the DPO loss (Eq. 5, and the first term of Eq. 11, of "Implicit Cross-Lingual Rewarding").

    It is -log sigmoid(beta (chosen - rejected)); beta is the strength of the KL constraint.
    """
    return -logsigmoid(beta * (chosen_log_ratios - rejected_log_ratios))


def ipo_loss(
    chosen_log_ratios: torch.Tensor,
    rejected_log_ratios: torch.Tensor,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """Return the IPO loss (Azar et al. 2024, Eq. 17), (chosen - rejected - 1 / (2 beta))^2, with log-ratios per token.

    The equation has sums. TRL uses means per token, as the paper's authors advised, and so does this function. beta is
    the paper's tau: the target margin is 1 / (2 beta) nats per token.
    """
    margin = chosen_log_ratios / chosen_tokens - rejected_log_ratios / rejected_tokens
    return (margin - 1 / (2 * beta)) ** 2


def simpo_loss(
    chosen_logprobs: torch.Tensor,
    rejected_logprobs: torch.Tensor,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    *,
    beta: float,
    gamma: float,
) -> torch.Tensor:
    """Return the SimPO loss (Meng et al. 2024, Eq. 6), which has no reference.

    It is -log sigmoid(beta (chosen - rejected) - gamma), both per token; gamma is the target margin between rewards,
    which are beta times the mean log-probability of a token.
    """
    margin = chosen_logprobs / chosen_tokens - rejected_logprobs / rejected_tokens
    return -logsigmoid(beta * margin - gamma)


def log_odds(logprobs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return log(p / (1 - p)), where p is the geometric mean of the token probabilities (Hong et al. 2024, Eq. 4).

    In nats. If p rounds to 1, the largest number below 1 is used, so that the odds stay finite.
    """
    mean = (logprobs / tokens).clamp(max=-torch.finfo(logprobs.dtype).eps)
    return mean - torch.log(-torch.expm1(mean))  # expm1, because 1 - exp(mean) loses precision if p is close to 1


def orpo_loss(
    chosen_logprobs: torch.Tensor,
    rejected_logprobs: torch.Tensor,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """Return the odds-ratio term of ORPO (Hong et al. 2024, Eq. 7, weighted as in Eq. 6), which has no reference.

    It is -beta log sigmoid(log-odds of y+ - log-odds of y-); beta is the paper's lambda, the weight of this term. The
    other term of Eq. 6 is ``nll_loss`` of the chosen response with weight 1.
    """
    return -beta * logsigmoid(log_odds(chosen_logprobs, chosen_tokens) - log_odds(rejected_logprobs, rejected_tokens))


def kto_loss(
    log_ratios: torch.Tensor,
    desirable: torch.Tensor,
    kl: torch.Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> torch.Tensor:
    """Return the KTO loss, lambda_y - v(x, y) (Eq. 16 of "Implicit Cross-Lingual Rewarding").

    As printed, Eq. 16 does not multiply z_ref by beta. The KTO paper (Ethayarajh et al. 2024, Eq. 8) and common
    implementations multiply the whole difference by beta, and so does this function.

    Args:
        log_ratios: (examples,), nats.
        desirable: (examples,), bool, whether the response is a chosen one.
        kl: z_ref, a scalar of at least 0, nats (see ``kto_kl``).
        beta: strength of the KL constraint.
        desirable_weight: the papers' lambda for chosen responses (lambda_w, lambda_D).
        undesirable_weight: the papers' lambda for rejected responses (lambda_l, lambda_U).

    Returns:
        (examples,) lambda_w (1 - sigmoid(beta (log-ratio - z_ref))) for a desirable response, and
        lambda_l (1 - sigmoid(beta (z_ref - log-ratio))) for an undesirable one.
    """
    gain = beta * (log_ratios - kl)
    # 1 - sigmoid(z) = sigmoid(-z), which is precise even if z is large.
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def kto_kl(mismatched_log_ratios: torch.Tensor) -> torch.Tensor:
    """Return z_ref, KTO's estimate of KL(pi || pi_ref) (Ethayarajh et al. 2024, section 4.2), without gradient.

    Args:
        mismatched_log_ratios: (examples,), of responses to other prompts, for all examples of a step, nats.

    Returns:
        Their mean, or 0 if the mean is negative; a scalar, nats.
    """
    return mismatched_log_ratios.detach().mean().clamp(min=0)


def nll_loss(logprobs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood per token of the response (the second term of Eq. 11), in nats."""
    return -logprobs / tokens
