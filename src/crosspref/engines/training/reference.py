"""The training reference's log-probabilities of pairs, by the reference alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from crosspref.engines.packed.response_head import add_response_head, distinct_tokens
from crosspref.protocols import Advance


@torch.no_grad()
def pair_logprobs(
    model: Any,
    examples: Sequence[dict[str, list[int]] | None],
    *,
    pairs_at_a_time: int,
    autocast: bool,
    advance: Advance,
) -> list[tuple[float, float] | None]:
    """Return the model's (chosen, rejected) log-probabilities, summed over tokens, nats, as training computes them.

    Args:
        model: a causal language model.
        examples: token ids of each pair (prompt_ids, chosen_ids, rejected_ids); None for a pair that is left out.
        pairs_at_a_time: pairs per forward pass.
        autocast: whether training computes in bfloat16.
        advance: told of finished pairs and tokens.
    """
    add_response_head(model)
    found: list[tuple[float, float] | None] = []
    for start in range(0, len(examples), pairs_at_a_time):
        part = examples[start : start + pairs_at_a_time]
        kept = [example for example in part if example is not None]
        values: list[float] = []
        if kept:
            rows = _rows(kept, model.device)
            with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast):
                values = model(**rows).tolist()
            advance(len(part), distinct_tokens(rows))
        else:
            advance(len(part), 0)
        pairs = iter(zip(values[: len(kept)], values[len(kept) :], strict=True))
        found += [None if example is None else next(pairs) for example in part]
    return found


def _rows(examples: Sequence[dict[str, list[int]]], device: torch.device) -> dict[str, torch.Tensor]:
    """Return first the chosen and then the rejected rows, padded with zeros: (2 pairs, tokens) each."""
    cut = [(pair["prompt_ids"], pair[kind]) for kind in ("chosen_ids", "rejected_ids") for pair in examples]
    columns = {
        "input_ids": [prompt + response for prompt, response in cut],
        "attention_mask": [[1] * (len(prompt) + len(response)) for prompt, response in cut],
        "completion_mask": [[0] * len(prompt) + [1] * len(response) for prompt, response in cut],
    }
    return {
        name: pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
        for name, rows in columns.items()
    }
