"""The output layer of transformers' models: log-probabilities without the logits of every position."""

import functools
from typing import Any

import torch

from crosspref.errors import ModelError
from crosspref.maths.logprobs import tiled_logprobs, token_logprobs

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
    """Return log-probabilities (tokens,), nats, of ids (tokens,) from hidden states (tokens, width)."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    scale = getattr(config, "logit_scale", None)  # Cohere multiplies its logits, Granite divides them
    if scale is None:
        scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    bias = getattr(head, "bias", None)
    return tiled_logprobs(hidden, ids, head.weight, bias, scale=float(scale), softcap=softcap, budget=budget)


def without_wrapper(model: Any) -> Any:
    """Return the causal language model inside a wrapper for adapters, which are in its layers either way."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def require_known_head(model: Any) -> None:
    """Raise ModelError unless ``head_logprobs`` agrees with the model's own logits on a few made-up tokens."""
    model = without_wrapper(model)
    ids = torch.tensor(made_up_ids(model), device=model.device)
    row = {"input_ids": ids[None], "use_cache": False}
    own = float(token_logprobs(model(**row).logits[0, :-1], ids[1:]).sum())
    found = float(head_logprobs(model, model.base_model(**row).last_hidden_state[0, :-1], ids[1:], LOGITS_BYTES).sum())
    if not abs(found - own) <= SELF_CHECK_TOLERANCE.get(model.dtype, 0.3) * len(ids):
        raise ModelError(
            f"{type(model).__name__} cannot be trained: its output layer does more than a projection, by which its "
            f"log-probability of {len(ids) - 1} tokens is {own:.4g} nats and not {found:.4g}."
        )


def add_response_head(model: Any) -> None:
    """Let a causal language model return the log-probability of each row's response, (rows,), nats.

    It does so when it is called with a ``completion_mask``, and only projects the masked positions to the vocabulary.
    The forward method is replaced, and not passed by, so that wrappers for distribution and adapters keep working.
    """
    causal = without_wrapper(model)
    original = causal.forward

    @functools.wraps(original)
    def forward(*args: Any, completion_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if completion_mask is None:
            return original(*args, **kwargs)
        chosen_positions = completion_mask[:, 1:].bool()
        inputs = {"input_ids": kwargs["input_ids"], "attention_mask": kwargs["attention_mask"]}
        hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1][chosen_positions]
        ids = kwargs["input_ids"][:, 1:][chosen_positions]
        values = head_logprobs(causal, hidden, ids, LOGITS_BYTES)
        rows = torch.zeros(chosen_positions.shape, dtype=values.dtype, device=values.device)
        return rows.masked_scatter(chosen_positions, values).sum(1)

    causal.forward = forward
