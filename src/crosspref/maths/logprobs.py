"""Log-probabilities of given tokens from hidden states, computed in tiles so that the full logits never exist."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

LIVE = 3
"""Number of float32 buffers of a tile that exist at once: its logits, a temporary or the slope of the soft cap, and the
operands of the products in their own number format."""
ROWS = 2048
"""Maximum number of positions per tile. More would not read the output layer's weights less often."""
LEAST_COLUMNS = 64
CACHED_BYTES = 8 << 20
"""Maximum size of a tile on a CPU, whatever the budget: tiles that stay in the cache are faster."""


def token_logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return log softmax(logits)[ids].

    Args:
        logits: (tokens, vocabulary), any float dtype.
        ids: (tokens,), int64.

    Returns:
        (tokens,), float32, nats: -inf for a token that is ruled out, NaN where a logit is NaN or infinite.
    """
    logits = logits.float()
    return _less(logits.gather(-1, ids[:, None]).squeeze(-1), logits.logsumexp(-1))


def _less(logits: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Return logits minus logsumexps, of one shape; NaN where a sum is infinite, and not -inf, as of a ruled-out token.

    Where any logit overflows, the others are not known to be impossible.
    """
    return torch.where(sums == torch.inf, torch.nan, logits - sums)


def tiled_logprobs(  # noqa: PLR0913 - its options are keyword-only
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    budget: int = 128 << 20,
) -> torch.Tensor:
    """Return the log-probability of each token, computing the logits one tile at a time.

    A tile is a block of positions by a block of the vocabulary. The backward pass computes its logits again and turns
    them into their gradient in place; the forward pass keeps only the hidden states and one number per position. Under
    autocast, products use its number format, as they would in an output layer.

    Args:
        hidden: (tokens, width), the hidden states that predict ``ids``.
        ids: (tokens,), int64.
        weight: (vocabulary, width) of the output layer.
        bias: (vocabulary,) of the output layer, or None.
        scale: logits are multiplied by it (Cohere, Granite).
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2), or None.
        budget: maximum bytes for the float32 logits and their temporaries, including the backward pass.

    Returns:
        (tokens,), float32 (float64 for float64 inputs), nats.
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
    """The operations of an output layer besides its projection, the projection's number format, and the tile size."""

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
        """Yield the positions of each row of tiles, and their hidden states."""
        for start in range(0, len(hidden), self.rows):
            rows = slice(start, start + self.rows)
            yield rows, hidden[rows].to(self.dtype)

    def parts(self, weight: torch.Tensor) -> list[slice]:
        """Return the part of the vocabulary of each column of tiles."""
        return [slice(start, start + self.columns) for start in range(0, len(weight), self.columns)]

    def logits(self, states: torch.Tensor, part: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the logits (rows, columns) of a tile from states (rows, width) and weights (columns, width)."""
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
        """Turn logits in place into the gradient of the projection's output.

        d log p[id] / d logits = [id] - softmax. ``sums`` (rows, 1) has the logsumexp of each row.
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
    """Return (rows, 1) the column of each id in a tile, and whether the id is in the tile at all."""
    places = ids[:, None] - columns.start
    return places.clamp(0, logits.shape[1] - 1), (places >= 0) & (places < logits.shape[1])


class _TiledLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, head: _Head
    ) -> torch.Tensor:
        sums = hidden.new_full((len(ids), 1), float("-inf"), dtype=head.wide)  # logsumexp of the columns so far
        picked = torch.zeros_like(sums)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, states in head.blocks(hidden):
                for columns in head.parts(weight):
                    part, offset = weight[columns].to(head.dtype), None if bias is None else bias[columns]
                    logits = head.logits(states, part, offset)
                    places, there = _places(ids[rows], columns, logits)
                    picked[rows] += logits.gather(1, places).masked_fill_(~there, 0.0)
                    sums[rows] = torch.logaddexp(sums[rows], logits.logsumexp(1, keepdim=True))
                    del logits  # otherwise it still exists while the next tile is computed
        ctx.save_for_backward(hidden, ids, weight, bias, sums)
        ctx.head = head
        return _less(picked, sums).squeeze(1)

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
            None if total is None else total.to(tensor.dtype)
            for total, tensor in zip((of_hidden, of_weight, of_bias), (hidden, weight, bias), strict=True)
        )
        first, second, third = back
        return first, None, second, third, None
