"""The layout of packed rows, and attention within them.

A packed row holds a prompt once, with all of its responses behind it; several prompts may follow each other. All layers
but attention treat tokens one by one, so such a row is an ordinary row to them. Attention is told which tokens see
which, by the ``packed`` argument that transformers hands down to it: a response sees its prompt and itself. Each piece
is computed by the model's own attention function, so whatever that does (caps, sinks, grouped heads) is done here too.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface

NAME = "crosspref_packed"
KNOWN_FUNCTIONS = ("sdpa", "eager")
"""Attention functions that take the masks that are made here."""


class Group(NamedTuple):
    """Where a prompt is in a packed row: its first token and length, and the (first token, length) of its responses."""

    start: int
    length: int
    responses: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Prompts and their responses in one row.

    ``ids`` and ``positions`` are (1, tokens). For each response token, in the order of the responses, ``predicting``
    has the position whose hidden state predicts it and ``targets`` its id; ``lengths`` is tokens per response.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    groups: list[Group]
    predicting: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]


def pack(prompts: Sequence[tuple[list[int], Sequence[list[int]]]], device: torch.device) -> PackedRow:
    """Lay out the token ids of prompts, each with its responses, in one row.

    The last token of a response predicts nothing that is asked for, so it is not in the row.
    """
    ids: list[int] = []
    positions: list[int] = []
    predicting: list[int] = []
    groups = []
    for prompt, responses in prompts:
        group = Group(len(ids), len(prompt), [])
        ids += prompt
        positions += range(len(prompt))
        for response in responses:
            first, size = len(ids), len(response) - 1
            if size:
                group.responses.append((first, size))
            ids += response[:-1]
            positions += range(len(prompt), len(prompt) + size)
            predicting += [group.start + group.length - 1, *range(first, first + size)]
        groups.append(group)
    rows = [response for _, responses in prompts for response in responses]
    targets = [token for response in rows for token in response]

    def tensor(values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    lengths = [len(response) for response in rows]
    return PackedRow(tensor([ids]), tensor([positions]), groups, tensor(predicting), tensor(targets), lengths)


def cut_rows(prompt: int, responses: Sequence[list[int]], tokens: int) -> Iterator[list[list[int]]]:
    """Cut responses into parts that have at most so many tokens beside a prompt of ``prompt`` tokens, or are one."""
    part: list[list[int]] = []
    left = tokens - prompt
    for response in responses:
        if part and len(response) > left:
            yield part
            part, left = [], tokens - prompt
        part.append(response)
        left -= len(response)
    yield part


@dataclass(slots=True)
class RowAttention:
    """Attention within a packed row, piece by piece, by the model's own function."""

    function: str
    groups: list[Group]
    windows: list[int | None] = field(default_factory=list)
    """The sliding window of each layer that was computed, to see that all of them went this way."""
    masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> Any:
        """Return (1, tokens, heads, width) of query, key and value (1, heads, tokens, width)."""
        if self.function != "sdpa" or query.device.type != "cpu" or value.dtype is not torch.bfloat16:
            return self._attend(module, query, key, value, **options)
        # On a CPU torch goes back through this in float32 in two thirds of the time of bfloat16, and rounds less.
        with torch.autocast("cpu", enabled=False):
            output = self._attend(module, query.float(), key.float(), value.float(), **options)
        return output.to(value.dtype)

    def _attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> Any:
        if self.function == "eager":  # which a layer's own file writes out in plain torch
            attend = sys.modules[type(module).__module__].eager_attention_forward
        else:
            attend = AttentionInterface()[self.function]
        window = options.get("sliding_window")
        self.windows.append(window)
        # Split and not sliced piece by piece: going back, a slice makes a gradient as large as the whole row.
        sizes = [size for _, length, responses in self.groups for size in (length, *(size for _, size in responses))]
        pieces = zip(*(torch.split(whole, sizes, 2) for whole in (query, key, value)), strict=True)
        outputs = []
        for start, length, responses in self.groups:
            longest = max((size for _, size in responses), default=0)
            mask = self._mask(start, length, longest, window, query)
            queries, keys, values = next(pieces)
            outputs.append(attend(module, queries, keys, values, mask[:, :, :length, :length], **options)[0])
            for _, size in responses:
                queries, own_keys, own_values = next(pieces)
                seen_keys, seen_values = torch.cat((keys, own_keys), 2), torch.cat((values, own_values), 2)
                seen = mask[:, :, length : length + size, : length + size]
                outputs.append(attend(module, queries, seen_keys, seen_values, seen, **options)[0])
        return torch.cat(outputs, 1)

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

    def require_all_layers(self, model: Any) -> None:
        """Raise NotImplementedError unless all layers of a model attended here, in a way that is known."""
        if self.function not in KNOWN_FUNCTIONS or self.windows != layer_windows(model.config.get_text_config()):
            raise NotImplementedError("its attention takes no packed rows")


def _attention(module: Any, query: Any, key: Any, value: Any, _mask: Any, packed: Any = None, **options: Any) -> Any:
    if packed is None:
        raise NotImplementedError("it does not hand down what is told to its attention")
    return packed.attend(module, query, key, value, **options), None


# There is no mask function of this name, so that transformers makes no mask over the whole row.
AttentionInterface.register(NAME, _attention)


def layer_windows(config: Any) -> list[int | None]:
    """Return the sliding window that each layer must have named; -1 for a layer of another kind."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [{"sliding_attention": window, "full_attention": None}.get(kind, -1) for kind in kinds]


@contextlib.contextmanager
def attending(config: Any, name: str) -> Iterator[str]:
    """Let a model attend by the function of this name; gives the name of the one before."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield before
    finally:
        config._attn_implementation = before


def packed_attention(model: Any) -> contextlib.AbstractContextManager[str]:
    """Let a model take packed rows, and no others; gives the name of its own attention function."""
    return attending(model.config.get_text_config(), NAME)


def predicting_states(model: Any, row: PackedRow, function: str) -> torch.Tensor:
    """Return the hidden states (response tokens, width) that predict the response tokens of a row.

    The model is a causal language model within ``packed_attention``, with gradient checkpointing still so in the
    backward pass; ``function`` is the name of its own attention function.

    Raises:
        NotImplementedError: not all layers attend in a way that is known here.
    """
    attention = RowAttention(function, row.groups)
    output = model.base_model(input_ids=row.ids, position_ids=row.positions, use_cache=False, packed=attention)
    attention.require_all_layers(model)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden[0, row.predicting]
