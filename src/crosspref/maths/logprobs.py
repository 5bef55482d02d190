"""Log-probabilities of given tokens from hidden states, in tiles, so that the logits never exist as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

LIVE = 3
"""So many float32 buffers of a tile live at once: its logits, a temporary of theirs or the soft-cap's slope, and what
the products give and take in their own format."""
ROWS = 2048
"""Positions that go through the output layer together at most; more read its weights no less often."""
LEAST_COLUMNS = 64
CACHED_BYTES = 8 << 20
"""What one tile may take on a CPU, whatever the budget: what does not leave its cache is computed faster."""


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
    """Return the log-probability of each token, without more of the logits at a time than a tile.

    A tile is some positions by some of the vocabulary. Going back, its logits are computed once more and turned into
    their gradient where they are; of going forward only the hidden states and a number per position are kept. Under
    autocast, products are in its number format, as those of an output layer would be.

    Args:
        hidden: (tokens, width), the hidden states that predict ``ids``.
        ids: (tokens,), int64.
        weight: (vocabulary, width) of the output layer.
        bias: (vocabulary,) of the output layer, or None.
        scale: logits are multiplied by it (Cohere, Granite).
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2), or None.
        budget: bytes that the float32 logits and their temporaries may take, those of the backward pass included.

    Returns:
        (tokens,), float32 (float64 of float64), nats.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    cells = (min(budget, CACHED_BYTES) if device == "cpu" else budget) // (LIVE * 4)
    rows = max(1, min(len(ids), ROWS, cells // min(LEAST_COLUMNS, len(weight))))
    head = _Head(scale, softcap, dtype, rows, max(1, cells // rows))
    values: torch.Tensor = _TiledLogprobs.apply(hidden, ids, weight, bias, head)  # type: ignore[no-untyped-call]
    return values


@dataclass(frozen=True, slots=True)
class _Head:
    """What an output layer does beside its projection, the number format of that, and the size of a tile."""

    scale: float
    softcap: float | None
    dtype: torch.dtype
    rows: int
    columns: int

    @property
    def wide(self) -> torch.dtype:
        """The number format of sums."""
        return torch.promote_types(self.dtype, torch.float32)

    def blocks(self, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield which positions stand in each row of tiles, and their hidden states."""
        for start in range(0, len(hidden), self.rows):
            rows = slice(start, start + self.rows)
            yield rows, hidden[rows].to(self.dtype)

    def parts(self, weight: torch.Tensor) -> list[slice]:
        """Return which part of the vocabulary stands in each column of tiles."""
        return [slice(start, start + self.columns) for start in range(0, len(weight), self.columns)]

    def logits(self, states: torch.Tensor, part: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the logits of a tile (rows, columns), of states (rows, width) and weights (columns, width)."""
        logits = states @ part.T if bias is None else torch.addmm(bias.to(self.dtype), states, part.T)
        logits = logits.to(self.wide)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def gradient(
        self,
        logits: torch.Tensor,
        sums: torch.Tensor,
        picked: tuple[torch.Tensor, torch.Tensor],
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        """Turn logits, where they are, into the gradient of what the projection gave.

        d log p[id] / d logits = [id] - softmax, of which sums (rows, 1) is the logsumexp.
        """
        slope = None if self.softcap is None else (logits / self.softcap).square_().neg_().add_(1.0)
        places, there = picked
        logits.sub_(sums).exp_().mul_(-gradient)
        logits.scatter_add_(1, places, gradient.masked_fill(~there, 0.0))
        if slope is not None:
            logits.mul_(slope)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits


def _places(ids: torch.Tensor, columns: slice, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows, 1) where in a tile the ids are, and whether they are there at all."""
    places = ids[:, None] - columns.start
    return places.clamp(0, logits.shape[1] - 1), (places >= 0) & (places < logits.shape[1])


class _TiledLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, head: _Head
    ) -> torch.Tensor:
        sums = hidden.new_full((len(ids), 1), float("-inf"), dtype=head.wide)  # logsumexp of what was seen so far
        picked = torch.zeros_like(sums)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, states in head.blocks(hidden):
                for columns in head.parts(weight):
                    part, offset = weight[columns].to(head.dtype), None if bias is None else bias[columns]
                    logits = head.logits(states, part, offset)
                    places, there = _places(ids[rows], columns, logits)
                    picked[rows] += logits.gather(1, places).masked_fill_(~there, 0.0)
                    sums[rows] = torch.logaddexp(sums[rows], logits.logsumexp(1, keepdim=True))
                    del logits  # or it is still there when the next one is made
        ctx.save_for_backward(hidden, ids, weight, bias, sums)
        ctx.head = head
        return (picked - sums).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, ids, weight, bias, sums = ctx.saved_tensors
        head: _Head = ctx.head
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(tensor, dtype=head.wide) if needed else None
            for tensor, needed in zip((hidden, weight, bias), (ctx.needs_input_grad[i] for i in (0, 2, 3)), strict=True)
        )
        gradient = gradient[:, None].to(head.wide)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, states in head.blocks(hidden):
                for columns in head.parts(weight):
                    part, offset = weight[columns].to(head.dtype), None if bias is None else bias[columns]
                    logits = head.logits(states, part, offset)
                    picked = _places(ids[rows], columns, logits)
                    factors = head.gradient(logits, sums[rows], picked, gradient[rows])
                    if of_bias is not None:
                        of_bias[columns] += factors.sum(0)
                    factors = factors.to(head.dtype)
                    del logits
                    if of_hidden is not None:
                        of_hidden[rows] += factors @ part
                    if of_weight is not None:
                        of_weight[columns] += factors.T @ states
                    del factors
        back = (
            None if found is None else found.to(tensor.dtype)
            for found, tensor in zip((of_hidden, of_weight, of_bias), (hidden, weight, bias), strict=True)
        )
        first, second, third = back
        return first, None, second, third, None
