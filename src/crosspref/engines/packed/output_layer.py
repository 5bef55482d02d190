"""The output layer of transformers' models: log-probabilities without the logits of every position."""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from crosspref.maths.logprobs import tiled_logprobs

SELF_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Nats per token by which a fast path may differ from the model's own forward pass before it is given up. The bfloat16
value is above rounding (about 0.1) and far below what a missing soft-cap, scale or position shift makes (over 1)."""

LOGITS_BYTES = 128 << 20
"""How much memory float32 logits may take at a time in training."""


def made_up_ids(model: Any, count: int = 16) -> list[int]:
    """Return token ids on which two ways of computing the same can be compared."""
    size = model.config.get_text_config().vocab_size
    return [(7 * index * index + 11 * index + 5) % size for index in range(count)]


def head_logprobs(model: Any, hidden: torch.Tensor, ids: torch.Tensor, budget: int) -> torch.Tensor:
    """Return log-probabilities (tokens,), nats, of ids (tokens,) from hidden states (tokens, width).

    Raises:
        NotImplementedError: an adapter changes the output layer, which is then more than its weight.
    """
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if isinstance(head, LoraLayer) and not head.disable_adapters and set(head.active_adapters) & set(head.lora_A):
        raise NotImplementedError("an adapter changes its output layer")
    scale = getattr(config, "logit_scale", None)  # Cohere multiplies its logits, Granite divides them
    if scale is None:
        scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    bias = getattr(head, "bias", None)
    return tiled_logprobs(hidden, ids, head.weight, bias, scale=float(scale), softcap=softcap, budget=budget)
