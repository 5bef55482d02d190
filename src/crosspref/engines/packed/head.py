"""From hidden states to log-probabilities, without the logits of every position: for scoring and for training.

Training asks a causal language model for the log-probability of each row's response. Rows come padded, as batches are;
a model that takes packed rows computes them as one, in which a prompt stands once for all of its responses.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch.nn.utils.rnn import pad_sequence

from crosspref.engines.packed.rows import NAME, attending, pack, packed_attention, predicting_states
from crosspref.engines.self_check import SelfCheck, made_up_ids, plain_logprobs
from crosspref.engines.transformers.models import even_length
from crosspref.maths.logprobs import tiled_logprobs

LOGITS_BYTES = 128 << 20
"""How much memory float32 logits may take at a time in training."""

TAKES_PACKED_ROWS = "crosspref_takes_packed_rows"
"""An attribute of a model that was checked: whether it takes packed rows."""

PaddedRows = dict[str, torch.Tensor]
"""input_ids, attention_mask and completion_mask, each (rows, tokens): prompts, their responses, and padding."""


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


def padded_rows(
    rows: Sequence[tuple[list[int], list[int]]], pad: int = 0, device: torch.device | None = None
) -> PaddedRows:
    """Return prompts and their responses, given as token ids, as rows that are padded on the right."""
    columns = {
        "input_ids": (pad, [prompt + response for prompt, response in rows]),
        "attention_mask": (0, [[1] * (len(prompt) + len(response)) for prompt, response in rows]),
        "completion_mask": (0, [[0] * len(prompt) + [1] * len(response) for prompt, response in rows]),
    }
    return {
        name: pad_sequence([torch.tensor(row, device=device) for row in table], batch_first=True, padding_value=padding)
        for name, (padding, table) in columns.items()
    }


def distinct_tokens(rows: PaddedRows) -> int:
    """Return how many tokens the rows have, each prompt counted once."""
    cut = _without_padding(rows)
    return sum(map(len, {tuple(prompt) for prompt, _ in cut})) + sum(len(response) for _, response in cut)


def without_wrapper(model: Any) -> Any:
    """Return the causal language model inside a wrapper for adapters, which are in its layers either way."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def add_response_head(model: Any) -> None:
    """Let a causal language model return the log-probability of each row's response, (rows,), nats.

    It does so when it is called with a ``completion_mask``, and only projects the masked positions to the vocabulary.
    The forward method is replaced, and not passed by, so that wrappers for distribution and adapters keep working.
    """
    causal = without_wrapper(model)
    original, config = causal.forward, causal.config.get_text_config()
    function = config._attn_implementation
    packs = getattr(causal, TAKES_PACKED_ROWS, False)
    if packs:
        config._attn_implementation = NAME  # for good: gradient checkpointing computes layers again while going back

    @functools.wraps(original)
    def forward(*args: Any, completion_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if completion_mask is None:
            with attending(config, function):
                return original(*args, **kwargs)
        rows = {name: kwargs[name] for name in ("input_ids", "attention_mask")} | {"completion_mask": completion_mask}
        return _packed_sums(causal, rows, function) if packs else _padded_sums(causal, rows)

    causal.forward = forward


@torch.no_grad()
def require_known_head(model: Any) -> None:
    """Compare with the model's own logits on a few made-up tokens, and note whether it takes packed rows.

    This is for whole models: the weights of one that is being trained may be cut up over processes.

    Raises:
        ModelError: ``head_logprobs`` gives something else.
    """
    causal = without_wrapper(model)
    ids = made_up_ids(causal)
    rows = padded_rows([(ids[:1], ids[1:])], device=causal.device)
    SelfCheck(causal, "cannot be trained", stops=True).passes(
        "its output layer does more than a projection",
        lambda: _padded_sums(causal, rows).tolist(),
        lambda: [float(plain_logprobs(causal, ids[:1], ids[1:]).sum())],
        [len(ids)],
    )
    setattr(causal, TAKES_PACKED_ROWS, _takes_packed_rows(causal))


def _takes_packed_rows(causal: Any) -> bool:
    """Tell whether a model takes packed rows, by a few made-up ones."""
    check = SelfCheck(causal, "is trained on padded rows")
    if even_length(causal.config.get_text_config()) < math.inf:
        return check.fails("its positions depend on how long a row is")
    ids = made_up_ids(causal)
    cut = [(ids[:6], ids[6:14]), (ids[3:8], ids[1:5]), (ids[:6], ids[9:12])]

    def packed() -> list[float]:
        with packed_attention(causal) as function:
            sums: list[float] = _packed_sums(causal, padded_rows(cut, device=causal.device), function).tolist()
        return sums

    return check.passes(
        "a prompt cannot be shared by several responses",
        packed,
        lambda: [float(plain_logprobs(causal, *row).sum()) for row in cut],
        [len(response) for _, response in cut],
    )


def _without_padding(rows: PaddedRows) -> list[tuple[list[int], list[int]]]:
    """Return prompt and response of each row; a token that nothing stands before is a prompt."""
    columns = [rows[name].tolist() for name in ("input_ids", "attention_mask", "completion_mask")]
    cut = []
    for ids, real, answers in zip(*columns, strict=True):
        kept = [(token, answer) for token, there, answer in zip(ids, real, answers, strict=True) if there]
        first = next((place for place, (_, answer) in enumerate(kept) if answer), len(kept))
        tokens = [token for token, _ in kept]
        cut.append((tokens[: max(1, first)], tokens[max(1, first) :]))
    return cut


def _packed_sums(causal: Any, rows: PaddedRows, function: str) -> torch.Tensor:
    """Return the log-probability (rows,), nats, of each row's response from one packed row."""
    cut = _without_padding(rows)
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (prompt, response) in enumerate(cut):
        groups.setdefault(tuple(prompt), []).extend([number] if response else [])
    row = pack([(list(ids), [cut[number][1] for number in numbers]) for ids, numbers in groups.items()], causal.device)
    values = head_logprobs(causal, predicting_states(causal, row, function), row.targets, LOGITS_BYTES)
    order = [number for numbers in groups.values() for number in numbers]
    parts = dict(zip(order, torch.split(values, row.lengths), strict=True))
    return torch.stack([parts.get(number, values[:0]).sum() for number in range(len(cut))])


def _padded_sums(causal: Any, rows: PaddedRows) -> torch.Tensor:
    """Return the same from the rows as they are."""
    counted = rows["completion_mask"][:, 1:].bool()
    inputs = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
    hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1][counted]
    values = head_logprobs(causal, hidden, rows["input_ids"][:, 1:][counted], LOGITS_BYTES)
    table = torch.zeros(counted.shape, dtype=values.dtype, device=values.device)
    return table.masked_scatter(counted, values).sum(1)
