"""What training asks of a causal language model: the log-probability of each row's response, in nats.

Rows come padded, as batches are. A model that takes packed rows computes them as one, without padding, in which a
prompt stands once for all of its responses.
"""

import functools
import logging
import math
from typing import Any

import torch

from crosspref.engines.packed.attention import NAME, attending, pack, packed_attention, predicting_states
from crosspref.engines.packed.output_layer import LOGITS_BYTES, SELF_CHECK_TOLERANCE, head_logprobs, made_up_ids
from crosspref.engines.transformers.models import even_length
from crosspref.errors import ModelError
from crosspref.maths.logprobs import token_logprobs

log = logging.getLogger(__name__)

VERDICT = "crosspref_takes_packed_rows"
"""An attribute of a model that was looked at: whether it does."""

Rows = dict[str, torch.Tensor]
"""input_ids, attention_mask and completion_mask, each (rows, tokens): prompts, their responses, and padding."""


def without_wrapper(model: Any) -> Any:
    """Return the causal language model inside a wrapper for adapters, which are in its layers either way."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def require_known_head(model: Any) -> None:
    """Compare with the model's own logits on a few made-up tokens, and note whether it takes packed rows.

    This is for whole models: the weights of one that is being trained may be cut up over processes.

    Raises:
        ModelError: ``head_logprobs`` gives something else.
    """
    causal = without_wrapper(model)
    ids = torch.tensor(made_up_ids(causal), device=causal.device)
    own = float(_own_logprob(causal, ids[:1].tolist(), ids[1:].tolist()))
    hidden = causal.base_model(input_ids=ids[None], use_cache=False).last_hidden_state
    found = float(head_logprobs(causal, hidden[0, :-1], ids[1:], LOGITS_BYTES).sum())
    if not abs(found - own) <= SELF_CHECK_TOLERANCE.get(causal.dtype, 0.3) * len(ids):
        raise ModelError(
            f"{type(causal).__name__} cannot be trained: its output layer does more than a projection, by which its "
            f"log-probability of {len(ids) - 1} tokens is {own:.4g} nats and not {found:.4g}."
        )
    reason = _why_padded(causal)
    if reason is not None:
        log.warning("%s is trained on padded rows, since %s.", type(causal).__name__, reason)
    setattr(causal, VERDICT, reason is None)


def add_response_head(model: Any) -> None:
    """Let a causal language model return the log-probability of each row's response, (rows,), nats.

    It does so when it is called with a ``completion_mask``, and only projects the masked positions to the vocabulary.
    The forward method is replaced, and not passed by, so that wrappers for distribution and adapters keep working.
    """
    causal = without_wrapper(model)
    original, config = causal.forward, causal.config.get_text_config()
    own = config._attn_implementation
    packs = getattr(causal, VERDICT, False)
    if packs:
        config._attn_implementation = NAME  # for good: gradient checkpointing computes layers again while going back

    @functools.wraps(original)
    def forward(*args: Any, completion_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if completion_mask is None:
            with attending(config, own):
                return original(*args, **kwargs)
        rows = {"input_ids": kwargs["input_ids"], "attention_mask": kwargs["attention_mask"]}
        rows["completion_mask"] = completion_mask
        return _packed(causal, rows, own) if packs else _padded(causal, rows)

    causal.forward = forward


def distinct_tokens(rows: Rows) -> int:
    """Return how many tokens the rows have, each prompt counted once."""
    cut = _cut(rows)
    return sum(map(len, {tuple(prompt) for prompt, _ in cut})) + sum(len(response) for _, response in cut)


def _cut(rows: Rows) -> list[tuple[list[int], list[int]]]:
    """Return prompt and response of each row; a token that nothing stands before is a prompt."""
    columns = [rows[name].tolist() for name in ("input_ids", "attention_mask", "completion_mask")]
    found = []
    for ids, real, answers in zip(*columns, strict=True):
        kept = [(token, answer) for token, there, answer in zip(ids, real, answers, strict=True) if there]
        first = next((place for place, (_, answer) in enumerate(kept) if answer), len(kept))
        tokens = [token for token, _ in kept]
        found.append((tokens[: max(1, first)], tokens[max(1, first) :]))
    return found


def _packed(causal: Any, rows: Rows, own: str) -> torch.Tensor:
    cut = _cut(rows)
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (prompt, response) in enumerate(cut):
        groups.setdefault(tuple(prompt), []).extend([number] if response else [])
    packed = pack([(list(ids), [cut[row][1] for row in numbers]) for ids, numbers in groups.items()], causal.device)
    values = head_logprobs(causal, predicting_states(causal, packed, own), packed.targets, LOGITS_BYTES)
    order = [number for numbers in groups.values() for number in numbers]
    parts = dict(zip(order, torch.split(values, packed.lengths), strict=True))
    return torch.stack([parts.get(number, values[:0]).sum() for number in range(len(cut))])


def _padded(causal: Any, rows: Rows) -> torch.Tensor:
    counted = rows["completion_mask"][:, 1:].bool()
    inputs = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
    hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1][counted]
    values = head_logprobs(causal, hidden, rows["input_ids"][:, 1:][counted], LOGITS_BYTES)
    table = torch.zeros(counted.shape, dtype=values.dtype, device=values.device)
    return table.masked_scatter(counted, values).sum(1)


def _own_logprob(causal: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + response], device=causal.device)
    logits = causal(input_ids=ids, use_cache=False).logits
    return token_logprobs(logits[0, len(prompt) - 1 : -1], ids[0, len(prompt) :]).sum()


def _why_padded(causal: Any) -> str | None:
    """Return why a model takes no packed rows; None if it does, by a few made-up ones."""
    if even_length(causal.config.get_text_config()) < math.inf:
        return "its positions depend on how long a row is"
    ids = made_up_ids(causal)
    prompts = [ids[:6], ids[3:8], ids[:6]]
    responses = [ids[6:14], ids[1:5], ids[9:12]]
    cut = list(zip(prompts, responses, strict=True))
    longest = max(len(prompt) + len(response) for prompt, response in cut)
    columns = {
        "input_ids": [prompt + response for prompt, response in cut],
        "attention_mask": [[1] * (len(prompt) + len(response)) for prompt, response in cut],
        "completion_mask": [[0] * len(prompt) + [1] * len(response) for prompt, response in cut],
    }
    rows = {name: torch.tensor([row + [0] * (longest - len(row)) for row in table]) for name, table in columns.items()}
    tolerance = SELF_CHECK_TOLERANCE.get(causal.dtype, 0.3)
    try:
        expected = [float(_own_logprob(causal, *row)) for row in cut]
        with packed_attention(causal) as own:
            found = _packed(causal, rows, own).tolist()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"a prompt cannot be shared by several responses ({error})"
    far = (
        abs(ours - theirs) > tolerance * len(row) for ours, theirs, row in zip(found, expected, responses, strict=True)
    )
    return "a prompt cannot be shared by several responses" if any(far) else None
