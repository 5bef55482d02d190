"""The exact solution for the length penalty alpha of Eq. 9 (Eq. 15 and section A.3 of the paper).

For one prompt, the penalised reward of response n is a line in alpha, ``r_n - alpha * len_n``. As alpha grows, the best
response moves along the upper envelope of these lines, towards shorter responses. The worst one moves along the lower
envelope, towards longer responses. The mean of ``len(best) - len(worst)`` is therefore a non-increasing step function
of alpha. Its steps are the breakpoints of the envelopes: sorting them gives the whole curve, which solves Eq. 15.

Flat layout: arrays of R numbers hold the responses of all M prompts, one prompt after the other. Prompt i has the
positions from ``offsets[i]`` up to ``offsets[i + 1]``, so ``offsets`` has M + 1 entries, from 0 to R.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_BLOCK_NUMBERS = 2**16
"""Responses per block: enough to hide numpy's overhead, few enough to stay in the cache."""

_GRID = [step / 1000 for step in range(1000)]
"""The alphas that the paper's released scripts try."""


@dataclass(frozen=True, slots=True, eq=False)
class LengthPenalty:
    """The solution of Eq. 15 for one language, with the whole curve.

    ``alpha`` and ``breakpoints`` are in reward units per length unit, ``mean_length_difference`` and ``differences`` in
    length units. The curve is exact if the lengths are whole numbers.
    """

    alpha: float
    """A point inside ``interval`` at which no two different lengths tie; 0.0 if that is such a point."""
    interval: tuple[float, float]
    """All minimisers of |mean(len(best) - len(worst))|, as an open interval. Its ends may be -inf and inf."""
    mean_length_difference: float
    """mean(len(best) - len(worst)) at ``alpha``."""
    breakpoints: Floats
    """(K,), ascending and distinct: the alphas at which the mean length difference steps down."""
    differences: Floats
    """(K + 1,), non-increasing: entry k is the value between breakpoint k - 1 and breakpoint k."""

    def difference_at(self, alpha: float) -> float:
        """Return mean(len(best) - len(worst)) at ``alpha``. On a breakpoint, return the value just above it."""
        if math.isnan(alpha):
            raise ValueError("alpha is nan, so there is no mean length difference. Pass a number.")
        return float(self.differences[np.searchsorted(self.breakpoints, alpha, side="right")])


def solve_length_penalty(
    rewards: Sequence[Sequence[float]] | NDArray[np.generic], lengths: Sequence[Sequence[float]] | NDArray[np.generic]
) -> LengthPenalty:
    """Return the alpha that minimises |mean(len(best) - len(worst))| over the prompts of one language (Eq. 15).

    ``rewards`` and ``lengths`` have one inner sequence per prompt, with equal sizes in both, or are (M, N) arrays.
    Rewards are unpenalised, in nats. Lengths are in characters or tokens. Raises ValueError when there is nothing to
    solve, when sizes differ, or when a value is not finite. ``solve_flat`` says which minimiser is returned.
    """
    if len(rewards) != len(lengths):
        raise ValueError(
            f"There are rewards for {len(rewards)} prompts but lengths for {len(lengths)}. Pass both for every prompt."
        )
    flat_rewards, sizes = _flatten(rewards)
    flat_lengths, length_sizes = _flatten(lengths)
    if (sizes != length_sizes).any():
        prompt = np.flatnonzero(sizes != length_sizes)[0]
        raise ValueError(
            f"Prompt {prompt} has {sizes[prompt]} rewards but {length_sizes[prompt]} lengths. "
            "Pass one reward and one length for every response."
        )
    return solve_flat(flat_rewards, flat_lengths, np.concatenate(([0], np.cumsum(sizes))))


def solve_flat(rewards: ArrayLike, lengths: ArrayLike, offsets: ArrayLike) -> LengthPenalty:
    """Return the solution of Eq. 15 for rewards (R,) and lengths (R,) in the flat layout of this module's header.

    alpha may be any real number; a negative alpha rewards length. The minimisers form an interval. The returned alpha
    is 0.0 if that is a minimiser without a tie. Otherwise it is the middle of the constant piece nearest to zero (the
    positive one of two equally near), or a point beyond the finite end of an unbounded piece. It is a breakpoint only
    if no float lies inside its piece. Time and memory are O(R) per envelope step, plus one sort of the breakpoints.

    Raises ValueError when there is nothing to solve, when sizes differ, or when a value is not finite.
    """
    rewards, lengths, offsets = _checked(rewards, lengths, offsets)
    starts, count = offsets[:-1], len(offsets) - 1
    walks = []
    try:
        # x / 0 and 0 / 0 occur only where they are masked. An overflow would make meaningless breakpoints.
        with np.errstate(divide="ignore", invalid="ignore", over="raise"):
            for block_rewards, block_lengths in _blocks(rewards, lengths, offsets):
                walks.append(_walk(block_rewards, block_lengths))
                # The worst response is the best one after negating rewards and lengths.
                walks.append(_walk(-block_rewards, -block_lengths))
            longest, shortest = np.maximum.reduceat(lengths, starts), np.minimum.reduceat(lengths, starts)
            total = (longest - shortest).sum()
    except FloatingPointError as error:
        raise ValueError(
            "The rewards or lengths of one prompt are so far apart, or its lengths so close together, that their "
            "differences overflow. Rescale them."
        ) from error
    breakpoints, step = np.unique(np.concatenate([alphas for alphas, _ in walks]), return_inverse=True)
    steps = np.bincount(step, weights=np.concatenate([changes for _, changes in walks]), minlength=len(breakpoints))
    # Divide last, because sums of whole numbers are exact.
    return _read_off(breakpoints, np.cumsum(np.concatenate(([total], steps))) / count)


def best_and_worst(
    rewards: ArrayLike, lengths: ArrayLike, alpha: float, offsets: ArrayLike, *, upper_bound: float | None = None
) -> tuple[Indices, Indices]:
    """Return the positions (M,) of the best and the worst response of every prompt (Eq. 10) under Eq. 9.

    ``rewards`` (R,), unpenalised, and ``lengths`` (R,) are in the flat layout of this module's header, as are the
    returned positions. ``alpha`` is in reward units per length unit. The first of tied responses wins, so a prompt with
    equal penalised rewards has the same best and worst. With ``upper_bound``, the best is the best of those whose
    penalised reward is below it, or a prompt's first response where none is, as in the released scripts. Raises
    ValueError as ``solve_flat`` does, and when ``alpha`` is not finite.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"The length penalty alpha is {alpha}. Pass a finite number.")
    rewards, lengths, offsets = _checked(rewards, lengths, offsets)
    penalised = rewards - alpha * lengths
    bounded = penalised if upper_bound is None else np.where(penalised < upper_bound, penalised, -np.inf)
    return _first_maximum(bounded, offsets), _first_maximum(-penalised, offsets)


def grid_length_penalty(rewards: ArrayLike, lengths: ArrayLike, offsets: ArrayLike) -> float:
    """Return the smallest of 0, 0.001 ... 0.999 that minimises |mean(len(best) - len(worst))|.

    This is the search of the paper's released scripts. Best and worst are those of ``best_and_worst`` at the same
    alpha, including ties. Arguments and errors are those of ``solve_flat``, which returns a true minimiser; it may lie
    between the grid's points or outside the grid.
    """
    lengths = np.asarray(lengths, dtype=np.float64)
    sizes = []
    for alpha in _GRID:
        best, worst = best_and_worst(rewards, lengths, alpha, offsets)
        # Sums of whole numbers are exact, so exact ties are ties here too.
        sizes.append(abs((lengths[best] - lengths[worst]).sum()))
    return _GRID[int(np.argmin(sizes))]


def _first_maximum(values: Floats, offsets: Indices) -> Indices:
    """Return the position (M,) of the first maximum among the values (R,) of every prompt."""
    starts = offsets[:-1]
    largest = np.flatnonzero(values == np.repeat(np.maximum.reduceat(values, starts), np.diff(offsets)))
    return largest[np.searchsorted(largest, starts)]


def _walk(rewards: Floats, lengths: Floats) -> tuple[Floats, Floats]:
    """Follow the upper envelopes of all prompts (one per column) from alpha = -inf to inf.

    ``rewards`` and ``lengths`` are (N, m). Returns the breakpoints and, for each, the (negative) change of the best
    response's length. Both are flat and in no particular order.
    """
    shortest = lengths.min(axis=0)
    # At alpha = -inf the longest response is on the envelope, the best of them if there are several.
    length = lengths.max(axis=0)
    reward = np.where(lengths == length, rewards, -np.inf).max(axis=0)
    alpha = np.full(length.shape, -np.inf)
    alphas, changes = [alpha[:0]], [alpha[:0]]
    while (walking := np.flatnonzero(length > shortest)).size:
        if walking.size < length.size:
            rewards, lengths = rewards.take(walking, axis=1), lengths.take(walking, axis=1)
            shortest, length, reward, alpha = (row[walking] for row in (shortest, length, reward, alpha))
        drop = length - lengths
        crossing = np.where(drop > 0, (reward - rewards) / drop, np.inf)
        # If several lines cross here, take any: the others follow with the same alpha and are merged later.
        nearest = (crossing.argmin(axis=0), np.arange(walking.size))
        # Rounding can reorder three lines through one point, but the envelope cannot turn back.
        alpha = np.maximum(crossing.min(axis=0), alpha)
        alphas.append(alpha)
        changes.append(lengths[nearest] - length)
        length, reward = lengths[nearest], rewards[nearest]
    return np.concatenate(alphas), np.concatenate(changes)


def _blocks(rewards: Floats, lengths: Floats, offsets: Indices) -> Iterator[tuple[Floats, Floats]]:
    """Yield rewards and lengths (N, m) of m prompts of similar size, one prompt per column.

    Prompts share a block if their sizes round up to the same power of two. Short columns are padded with their
    prompt's last response: a second copy of a line does not change an envelope.
    """
    sizes = np.diff(offsets)
    ceilings = np.frexp(sizes - 1)[1]
    for ceiling in np.unique(ceilings):
        members = np.flatnonzero(ceilings == ceiling)
        rows = np.arange(sizes[members].max())[:, np.newaxis]
        width = max(1, _BLOCK_NUMBERS // len(rows))
        for begin in range(0, len(members), width):
            block = members[begin : begin + width]
            positions = np.minimum(offsets[block] + rows, offsets[block + 1] - 1)
            yield rewards[positions], lengths[positions]


def _read_off(breakpoints: Floats, differences: Floats) -> LengthPenalty:
    """Return the minimisers of the step curve's absolute value, and the one that ``solve_flat`` describes."""
    edges = np.concatenate(([-np.inf], breakpoints, [np.inf]))
    sizes = np.abs(differences)
    # One piece, or two neighbours +v and -v. The key is the distance to zero; it is negative for a piece around zero.
    smallest = np.flatnonzero(sizes == sizes.min())
    piece = min(reversed(smallest), key=lambda k: max(edges[k], -edges[k + 1]))
    return LengthPenalty(
        alpha=_point_inside(float(edges[piece]), float(edges[piece + 1])),
        interval=(float(edges[smallest[0]]), float(edges[smallest[-1] + 1])),
        mean_length_difference=float(differences[piece]),
        breakpoints=_read_only(breakpoints),
        differences=_read_only(differences),
    )


def _point_inside(low: float, high: float) -> float:
    """Return 0.0 if it is between ``low`` and ``high``, otherwise their middle or a point beyond the finite end."""
    if low < 0 < high:
        return 0.0
    if math.isinf(high):
        return low + (abs(low) / 2 or 1.0)
    if math.isinf(low):
        return high - (abs(high) / 2 or 1.0)
    middle = low + (high - low) / 2
    # Between adjacent floats: return the lower one, for which ``difference_at`` still gives this piece's value.
    return middle if middle < high else low


def _read_only(values: Floats) -> Floats:
    values.flags.writeable = False
    return values


def _flatten(rows: Sequence[Sequence[float]] | NDArray[np.generic]) -> tuple[Floats, Indices]:
    """Return the concatenated numbers (R,) of all rows, and the rows' sizes (M,)."""
    if isinstance(rows, np.ndarray) and rows.ndim == 2:
        return rows.astype(np.float64).ravel(), np.full(rows.shape[0], rows.shape[1])
    sizes = np.fromiter(map(len, rows), dtype=np.intp, count=len(rows))
    return np.fromiter(chain.from_iterable(rows), dtype=np.float64, count=sizes.sum()), sizes


def _checked(rewards: ArrayLike, lengths: ArrayLike, offsets: ArrayLike) -> tuple[Floats, Floats, Indices]:
    """Return the arguments as arrays. Raises ValueError that names the first faulty prompt and response."""
    flat = {"reward": np.asarray(rewards, dtype=np.float64), "length": np.asarray(lengths, dtype=np.float64)}
    ends = np.asarray(offsets)
    shapes = {name: values.shape for name, values in flat.items()}
    if shapes["reward"] != shapes["length"] or len(shapes["reward"]) != 1:
        raise ValueError(
            f"rewards has shape {shapes['reward']} and lengths {shapes['length']}. Pass two flat arrays of one size."
        )
    if ends.size < 2:
        raise ValueError("There are no prompts, so there is no length difference. Pass at least one prompt.")
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or ends[0] != 0 or ends[-1] != shapes["reward"][0]:
        raise ValueError(
            f"offsets must be a flat array of integers from 0 to the number of responses, {shapes['reward'][0]}, but "
            f"has shape {ends.shape}, type {ends.dtype}, first entry {ends.flat[0]} and last entry {ends.flat[-1]}. "
            "Entry i is the start of prompt i."
        )
    ends = ends.astype(np.intp)
    if (np.diff(ends) < 1).any():
        prompt = np.flatnonzero(np.diff(ends) < 1)[0]
        raise ValueError(f"Prompt {prompt} has no responses. Leave it out, or pass at least one.")
    for name, values in flat.items():
        if not np.isfinite(values).all():
            position = np.flatnonzero(~np.isfinite(values))[0]
            prompt = np.searchsorted(ends, position, side="right") - 1
            raise ValueError(
                f"The {name} of response {position - ends[prompt]} of prompt {prompt} is {values[position]}. "
                "Leave the response out, or find out why it was scored so."
            )
    return flat["reward"], flat["length"], ends
