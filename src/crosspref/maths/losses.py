"""The training loss (Eq. 11 of "Implicit Cross-Lingual Rewarding")."""

import torch
from torch.nn.functional import logsigmoid


def dpo_nll_loss(
    chosen_logprobs: torch.Tensor,
    rejected_logprobs: torch.Tensor,
    reference_chosen_logprobs: torch.Tensor,
    reference_rejected_logprobs: torch.Tensor,
    chosen_tokens: torch.Tensor,
    *,
    beta: float,
    nll_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two terms of Eq. 11 per pair: DPO, and the NLL of the chosen response per token of that response.

    Each pair's value depends on that pair alone, so the mean over a batch does not depend on how it is cut up.

    Args:
        chosen_logprobs: (pairs,), log pi(y+ | x) summed over the response, nats.
        rejected_logprobs: (pairs,), log pi(y- | x), nats.
        reference_chosen_logprobs: (pairs,), log pi_ref(y+ | x), nats.
        reference_rejected_logprobs: (pairs,), log pi_ref(y- | x), nats.
        chosen_tokens: (pairs,), how many tokens were summed for y+.
        beta: strength of the KL constraint.
        nll_weight: weight of the NLL term; 1 in the paper.

    Returns:
        (pairs,) DPO term and (pairs,) weighted NLL term; their sum is the loss.
    """
    margin = (chosen_logprobs - reference_chosen_logprobs) - (rejected_logprobs - reference_rejected_logprobs)
    return -logsigmoid(beta * margin), -nll_weight * chosen_logprobs / chosen_tokens
