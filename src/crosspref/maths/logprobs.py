"""Log-probabilities of given tokens from hidden states, in tiles, so that the logits never exist as a whole."""

import torch
from torch.utils.checkpoint import checkpoint


def token_logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return log softmax(logits)[ids].

    Args:
        logits: (tokens, vocabulary), any float dtype.
        ids: (tokens,), int64.

    Returns:
        (tokens,), float32, nats.
    """
    logits = logits.float()
    return logits.gather(-1, ids[:, None]).squeeze(-1) - logits.logsumexp(-1)


def tiled_logprobs(
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    budget: int = 128 << 20,
) -> torch.Tensor:
    """Return the log-probability of each token, projecting a few positions at a time through the output layer.

    With gradients, each tile's logits are computed again in the backward pass instead of being kept.

    Args:
        hidden: (tokens, width), the hidden states that predict ``ids``.
        ids: (tokens,), int64.
        weight: (vocabulary, width) of the output layer.
        bias: (vocabulary,) of the output layer, or None.
        scale: logits are multiplied by it (Cohere, Granite).
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2), or None.
        budget: bytes that the float32 logits and their temporaries may take, those of the backward pass included.

    Returns:
        (tokens,), float32, nats.
    """

    def tile(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = torch.nn.functional.linear(hidden, weight, bias).float()
        if scale != 1.0:
            logits = logits * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return token_logprobs(logits, ids)

    # So many float32 buffers of a tile live at once: logits, their scaled or capped form, and logsumexp's temporary; in
    # the backward pass also the gradients of logsumexp and of the picked logits.
    gradients = torch.is_grad_enabled()
    rows = max(1, budget // ((5 if gradients else 3) * 4 * weight.shape[0]))
    tiles = [(hidden[start : start + rows], ids[start : start + rows]) for start in range(0, len(ids), rows)]
    if gradients:
        return torch.cat([checkpoint(tile, *part, use_reentrant=False) for part in tiles])
    return torch.cat([tile(*part) for part in tiles])
