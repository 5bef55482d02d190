"""Rows that hold a prompt once, with all of its responses behind it: nothing is padded and nothing is computed twice.

All layers but attention treat tokens one by one, so such a row is an ordinary row to them. Attention is told, by the
``packed`` argument that transformers hands down to it, which tokens see which: a response sees its prompt and itself.
Each of these pieces is computed by the model's own attention function, so what that does (caps, sinks, grouped heads)
is done here, too.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface

NAME = "crosspref_packed"
OWN = ("sdpa", "eager")
"""Attention functions that take the masks that are made here."""

Group = tuple[list[int], Sequence[list[int]]]
"""The token ids of a prompt, and of each of its responses."""


@dataclass(slots=True)
class Layout:
    """Where the pieces of a row are, and which function attends within them.

    ``groups`` has for each prompt its first token, its length and the (first token, length) of its responses.
    """

    own: str
    groups: list[tuple[int, int, list[tuple[int, int]]]]
    windows: list[int | None] = field(default_factory=list)
    """The sliding window of each layer that was computed, to see that all of them went this way."""
    masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: Any) -> Any:
        """Return (1, tokens, heads, width) of query, key and value (1, heads, tokens, width)."""
        if self.own != "sdpa" or query.device.type != "cpu" or value.dtype is not torch.bfloat16:
            return self._attend(module, query, key, value, **given)
        # On a CPU torch goes back through this in float32 in two thirds of the time of bfloat16, and rounds less.
        with torch.autocast("cpu", enabled=False):
            found = self._attend(module, query.float(), key.float(), value.float(), **given)
        return found.to(value.dtype)

    def _attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: Any) -> Any:
        own = eager_of(module) if self.own == "eager" else AttentionInterface()[self.own]
        window = given.get("sliding_window")
        self.windows.append(window)
        # Split and not sliced piece by piece: going back, a slice makes a gradient as large as the whole row.
        sizes = [size for _, length, responses in self.groups for size in (length, *(size for _, size in responses))]
        pieces = zip(*(torch.split(whole, sizes, 2) for whole in (query, key, value)), strict=True)
        found = []
        for start, length, responses in self.groups:
            longest = max((size for _, size in responses), default=0)
            mask = self._mask(start, length, longest, window, query)
            asked, keys, values = next(pieces)
            found.append(own(module, asked, keys, values, mask[:, :, :length, :length], **given)[0])
            for _, size in responses:
                asked, *own_part = next(pieces)
                both = (torch.cat(parts, 2) for parts in zip((keys, values), own_part, strict=True))
                seen = mask[:, :, length : length + size, : length + size]
                found.append(own(module, asked, *both, seen, **given)[0])
        return torch.cat(found, 1)

    def _mask(self, start: int, length: int, longest: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Return (1, 1, tokens, tokens) for a prompt and its longest response, of which all masks here are parts."""
        key = (start, window)
        if key not in self.masks:
            places = torch.arange(length + longest, device=like.device)
            apart = places[:, None] - places
            hidden = apart < 0 if window is None else (apart < 0) | (apart >= window)
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self.masks[key] = mask.masked_fill_(hidden, torch.finfo(like.dtype).min)[None, None]
        return self.masks[key]


def _attention(module: Any, query: Any, key: Any, value: Any, _mask: Any, packed: Any = None, **given: Any) -> Any:
    if packed is None:
        raise NotImplementedError("it does not hand down what is told to its attention")
    return packed.attend(module, query, key, value, **given), None


# There is no mask function of this name, so that transformers makes no mask over the whole row.
AttentionInterface.register(NAME, _attention)


def eager_of(module: Any) -> Any:
    """Return the attention that a layer's own file writes out in plain torch."""
    return sys.modules[type(module).__module__].eager_attention_forward


@dataclass(frozen=True, slots=True)
class Packed:
    """Prompts and their responses in one row.

    ``ids`` and ``positions`` are (1, tokens). For each response token, in the order of the responses, ``predicting``
    has the position whose hidden state predicts it and ``targets`` its id; ``lengths`` is tokens per response.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    groups: list[tuple[int, int, list[tuple[int, int]]]]
    predicting: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]


def pack(groups: Sequence[Group], device: torch.device) -> Packed:
    """Lay prompts and their responses out in one row.

    The last token of a response predicts nothing that is asked for, so it is not in the row.
    """
    ids: list[int] = []
    positions: list[int] = []
    predicting: list[int] = []
    places = []
    for prompt, responses in groups:
        start, length = len(ids), len(prompt)
        ids += prompt
        positions += range(length)
        own = []
        for response in responses:
            first, size = len(ids), len(response) - 1
            own.append((first, size))
            ids += response[:-1]
            positions += range(length, length + size)
            predicting += [start + length - 1, *range(first, first + size)]
        places.append((start, length, [(first, size) for first, size in own if size]))
    targets = [token for _, responses in groups for response in responses for token in response]
    tensors = (
        torch.tensor(values, dtype=torch.long, device=device) for values in ([ids], [positions], predicting, targets)
    )
    row, where, predicted, wanted = tensors
    return Packed(row, where, places, predicted, wanted, [len(row) for _, rows in groups for row in rows])


@contextlib.contextmanager
def attending(config: Any, name: str) -> Iterator[None]:
    """Let a model attend by the function of this name."""
    was = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = was


@contextlib.contextmanager
def packed_attention(model: Any) -> Iterator[str]:
    """Let a model take packed rows, and no others; gives the name of its own attention function."""
    config = model.config.get_text_config()
    own = config._attn_implementation
    with attending(config, NAME):
        yield own


def predicting_states(model: Any, packed: Packed, own: str) -> torch.Tensor:
    """Return the hidden states (response tokens, width) that predict the response tokens of a row.

    Args:
        model: a causal language model within ``packed_attention``; with gradient checkpointing it must still be so in
            the backward pass.
        packed: the row.
        own: the name of the model's own attention function.

    Raises:
        NotImplementedError: not all layers attend in a way that is known here.
    """
    layout = Layout(own, packed.groups)
    output = model.base_model(input_ids=packed.ids, position_ids=packed.positions, use_cache=False, packed=layout)
    if own not in OWN or layout.windows != layer_windows(model.config.get_text_config()):
        raise NotImplementedError("its attention takes no packed rows")
    hidden: torch.Tensor = output.last_hidden_state
    return hidden[0, packed.predicting]


def layer_windows(config: Any) -> list[int | None]:
    """Return the sliding window that each layer must have named; -1 for a layer of another kind."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [{"sliding_attention": window, "full_attention": None}.get(kind, -1) for kind in kinds]
