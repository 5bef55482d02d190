"""Keys and values of rows that are being written: a prompt's once for all of its rows, each row's own behind it.

Attention is told by the ``packed`` argument (see ``packed_attention``) where a token's keys and values are to go and
which of them it sees, so the model itself keeps no cache, and nothing is padded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from crosspref.engines.packed.attention import OWN, Layout, layer_windows

BLOCK = 64
"""By how many tokens per row the memory for what rows write grows."""
EVEN = 16
"""To a multiple of how many tokens a step rounds up what it looks at of each row."""
HARMLESS = {"dropout", "position_ids", "use_cache", "cache_position", "is_causal", "output_attentions"}
"""Arguments that change nothing about the attention of single tokens outside training."""


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt and, while rows of it are being written, what they share.

    ``keys`` and ``values`` are, for each layer, (heads, width, tokens) and (heads, tokens, width); ``logits`` is
    (1, vocabulary), for the first token of its responses. ``left`` counts its rows that have not ended.
    """

    ids: list[int]
    left: int = 0
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    logits: torch.Tensor | None = None

    def forget(self) -> None:
        """Give the memory back."""
        self.keys, self.values, self.logits = [], [], None


class Reading:
    """A prompt's own pass, in which its keys and values are kept."""

    def __init__(self, prompt: Prompt, own: str) -> None:
        self.prompt, self.layout = prompt, Layout(own, [(0, len(prompt.ids), [])])

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: Any) -> Any:
        """Return (1, tokens, heads, width), as the model's own attention does it."""
        self.prompt.keys.append(key[0].transpose(1, 2).contiguous())  # products are fastest in this order
        self.prompt.values.append(value[0].contiguous())
        return self.layout.attend(module, query, key, value, **given)


def read(model: Any, prompt: Prompt, own: str) -> torch.Tensor:
    """Keep a prompt's keys and values, and return the logits (1, vocabulary) of the token behind it.

    The model is within ``packed_attention``, and its own attention function has the name ``own``.

    Raises:
        NotImplementedError: not all layers attend in a way that is known here.
    """
    reading = Reading(prompt, own)
    ids = torch.tensor([prompt.ids], device=model.device)
    places = torch.arange(ids.shape[1], device=model.device)[None]
    output = model(input_ids=ids, position_ids=places, use_cache=False, logits_to_keep=1, packed=reading)
    if own not in OWN or reading.layout.windows != layer_windows(model.config.get_text_config()):
        raise NotImplementedError("its attention takes no packed rows")
    logits: torch.Tensor = output.logits[0, -1:].clone()
    return logits


class Cache:
    """What rows side by side have written: for each layer (rows, heads, width, tokens) keys, and values the other way.

    The rows of a prompt lie side by side, so that one product is enough for what they see of it.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        """Hold at most ``rows`` rows of at most ``tokens`` tokens."""
        self.rows, self.tokens = rows, tokens
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def move(self, source: int, target: int, tokens: int) -> None:
        """Let one row take another's place; the first ``tokens`` tokens of it matter."""
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[target, ..., :tokens] = keys[source, ..., :tokens]
            values[target, :, :tokens] = values[source, :, :tokens]

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor, longest: int) -> None:
        """Store a key and a value (rows, heads, width) of each row at its own place; the last is ``longest`` - 1."""
        if layer == len(self.keys):
            self.keys.append(key.new_zeros(self.rows, *key.shape[1:], 0))
            self.values.append(value.new_zeros(self.rows, value.shape[1], 0, value.shape[2]))
        have = self.keys[layer].shape[3]
        if longest > have:
            more = min(max(longest, have + BLOCK), self.tokens) - have
            self.keys[layer] = torch.nn.functional.pad(self.keys[layer], (0, more))
            self.values[layer] = torch.nn.functional.pad(self.values[layer], (0, 0, 0, more))
        rows = torch.arange(len(key), device=key.device)
        self.keys[layer][rows, :, :, places] = key
        self.values[layer][rows, :, places] = value


class Step:
    """The attention of one more token of each row."""

    def __init__(self, cache: Cache, rows: Sequence[tuple[Prompt, int]], device: torch.device) -> None:
        """Take the rows in their order in the cache: each one's prompt, and how many tokens of its own are stored."""
        self.cache, self.device, self.layer = cache, device, 0
        # A product of a new shape, and one whose shape is uneven, takes a processor about twice as long.
        longest = 1 + max(written for _, written in rows)
        self.longest = min(math.ceil(longest / EVEN) * EVEN, cache.tokens)
        self.places = torch.tensor([written for _, written in rows], device=device)
        self.lengths = torch.tensor([len(prompt.ids) for prompt, _ in rows], device=device)
        self.widest = max(len(prompt.ids) for prompt, _ in rows)
        self.groups: list[tuple[Prompt, slice]] = []
        for index, (prompt, _) in enumerate(rows):
            if self.groups and self.groups[-1][0] is prompt:
                self.groups[-1] = (prompt, slice(self.groups[-1][1].start, index + 1))
            else:
                self.groups.append((prompt, slice(index, index + 1)))
        self.masks: dict[int | None, torch.Tensor] = {}

    @property
    def positions(self) -> torch.Tensor:
        """Return the position (1, rows) of each row's token."""
        return (self.lengths + self.places)[None]

    def attend(self, _module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: Any) -> Any:
        """Return (1, rows, heads, width) of query, key and value (1, heads, rows, width)."""
        scaling, softcap, window = (given.pop(name, None) for name in ("scaling", "softcap", "sliding_window"))
        unknown = sorted(name for name, value in given.items() if value is not None and name not in HARMLESS)
        if unknown:
            raise NotImplementedError(f"its attention takes {', '.join(unknown)}")
        layer, self.layer = self.layer, self.layer + 1
        heads, count, width = key.shape[1:]
        self.cache.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1), self.places, self.longest)
        # Of the query's heads, those that share a head of the keys count as queries of it beside each other.
        asked = query[0].view(heads, -1, count, width)
        scores = self._scores(layer, asked).mul_(width**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        weights = scores.add_(self._mask(window)).softmax(-1).to(value.dtype)
        own = weights[..., self.widest :] @ self.cache.values[layer][:count, :, : self.longest]
        for prompt, rows in self.groups:
            seen = weights[rows, ..., : len(prompt.ids)].permute(1, 0, 2, 3)
            found = seen.reshape(heads, -1, seen.shape[-1]) @ prompt.values[layer]
            own[rows] += found.view(*seen.shape[:3], -1).transpose(0, 1)
        return own.reshape(1, count, query.shape[1], -1)

    def _scores(self, layer: int, asked: torch.Tensor) -> torch.Tensor:
        """Return (rows, heads, queries, tokens), float32, of (heads, queries, rows, width): prompt, then own tokens."""
        heads, each, count, width = asked.shape
        scores = asked.new_zeros((count, heads, each, self.widest + self.longest), dtype=torch.float32)
        by_row = asked.permute(2, 0, 1, 3)
        scores[..., self.widest :] = by_row @ self.cache.keys[layer][:count, ..., : self.longest]
        for prompt, rows in self.groups:
            found = asked[:, :, rows].reshape(heads, -1, width) @ prompt.keys[layer]
            scores[rows, ..., : len(prompt.ids)] = found.view(heads, each, -1, len(prompt.ids)).permute(2, 0, 1, 3)
        return scores

    def _mask(self, window: int | None) -> torch.Tensor:
        """Return (rows, 1, 1, tokens): -inf for what a row does not see of the widest prompt and longest response."""
        if window not in self.masks:
            prompt = torch.arange(self.widest, device=self.device)
            own = torch.arange(self.longest, device=self.device)
            lengths, places = self.lengths[:, None], self.places[:, None]
            hidden = torch.cat([prompt >= lengths, own > places], 1)
            if window is not None:
                hidden |= torch.cat([lengths + places - prompt >= window, places - own >= window], 1)
            mask = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)
            self.masks[window] = mask[:, None, None]
        return self.masks[window]
