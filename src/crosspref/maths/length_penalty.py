"""The length penalty alpha of Eq. 9, chosen exactly (paper, Eq. 15 and its A.3).

For one prompt the penalised reward of response n is a line in alpha, ``r_n - alpha * len_n``. As alpha grows the best
response walks along the upper envelope of these lines, towards shorter ones, and the worst walks along the lower
envelope, towards longer ones. The mean of ``len(best) - len(worst)`` is therefore a non-increasing step function of
alpha. Its steps are the envelopes' breakpoints: sorting them gives the whole curve, and Eq. 15 is read off it.

Flat layout: the responses of all M prompts lie one after another in arrays of R numbers, and prompt i owns the
positions ``offsets[i]`` up to ``offsets[i + 1]`` of them, so ``offsets`` has M + 1 entries, from 0 to R.
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
"""How many responses are walked together: enough to hide numpy's overhead, few enough to stay in the cache."""

_GRID = [step / 1000 for step in range(1000)]
"""The alphas that the paper's released scripts try."""


@dataclass(frozen=True, slots=True, eq=False)
class LengthPenalty:
    """The solution of Eq. 15 for one language, with the whole curve it was read from.

    ``alpha`` and ``breakpoints`` are in reward units per length unit, ``mean_length_difference`` and ``differences`` in
    length units. The curve is exact when the lengths are whole numbers.
    """

    alpha: float
    """A point inside ``interval`` at which no two different lengths tie; 0.0 wherever that is such a point."""
    interval: tuple[float, float]
    """All minimisers of |mean(len(best) - len(worst))|, as an open interval; its ends may be -inf and inf."""
    mean_length_difference: float
    """mean(len(best) - len(worst)) at ``alpha``."""
    breakpoints: Floats
    """(K,), ascending and distinct: where the mean length difference steps down."""
    differences: Floats
    """(K + 1,), non-increasing: entry k holds between breakpoint k - 1 and breakpoint k."""

    def difference_at(self, alpha: float) -> float:
        """Return mean(len(best) - len(worst)) at ``alpha``; on a breakpoint, the value just above it."""
        if math.isnan(alpha):
            raise ValueError("The mean length difference was asked for at alpha = nan. Pass a number.")
        return float(self.differences[np.searchsorted(self.breakpoints, alpha, side="right")])


def solve_length_penalty(
    rewards: Sequence[Sequence[float]] | NDArray[np.generic], lengths: Sequence[Sequence[float]] | NDArray[np.generic]
) -> LengthPenalty:
    """Return the alpha that minimises |mean(len(best) - len(worst))| over the prompts of one language (Eq. 15).

    ``rewards`` and ``lengths`` hold one inner sequence per prompt, of equal sizes in both, or are (M, N) arrays.
    Rewards are unpenalised, in nats; lengths in characters or tokens. Raises ValueError when there is nothing to
    solve, when sizes differ, or when a value is not finite. See ``solve_flat`` for which minimiser is returned.
    """
    if len(rewards) != len(lengths):
        raise ValueError(
            f"There are rewards of {len(rewards)} prompts but lengths of {len(lengths)}. Pass both for every prompt."
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

    alpha may be any real number; a negative one rewards length. The minimisers form an interval. The alpha returned is
    0.0 where that minimises without a tie, else the middle of the constant piece nearest to zero (the positive one of
    two equally near), else, in a piece without an end, a point beyond its finite end. It is a breakpoint only if no
    float lies inside its piece. Time and memory are O(R) per envelope step, then one sort of the breakpoints.

    Raises ValueError when there is nothing to solve, when sizes differ, or when a value is not finite.
    """
    rewards, lengths, offsets = _checked(rewards, lengths, offsets)
    starts, count = offsets[:-1], len(offsets) - 1
    walks = []
    try:
        # x / 0 and 0 / 0 arise only where they are masked; an overflow would make breakpoints that mean nothing.
        with np.errstate(divide="ignore", invalid="ignore", over="raise"):
            for block_rewards, block_lengths in _blocks(rewards, lengths, offsets):
                walks.append(_walk(block_rewards, block_lengths))
                # The worst response is the best one of the world turned upside down.
                walks.append(_walk(-block_rewards, -block_lengths))
            longest, shortest = np.maximum.reduceat(lengths, starts), np.minimum.reduceat(lengths, starts)
            total = (longest - shortest).sum()
    except FloatingPointError as error:
        raise ValueError(
            "The rewards or lengths of one prompt lie so far apart, or its lengths so close together, that their "
            "differences overflow. Rescale them."
        ) from error
    breakpoints, step = np.unique(np.concatenate([alphas for alphas, _ in walks]), return_inverse=True)
    steps = np.bincount(step, weights=np.concatenate([changes for _, changes in walks]), minlength=len(breakpoints))
    # Sums first, one division last: sums of whole numbers are exact.
    return _read_off(breakpoints, np.cumsum(np.concatenate(([total], steps))) / count)


def best_and_worst(rewards: ArrayLike, lengths: ArrayLike, alpha: float, offsets: ArrayLike) -> tuple[Indices, Indices]:
    """Return the positions (M,) of the best and of the worst response of every prompt (Eq. 10) under Eq. 9.

    ``rewards`` (R,), unpenalised, and ``lengths`` (R,) are in the flat layout of this module's header, and so are the
    positions returned. ``alpha`` is in reward units per length unit. The first of tied responses wins, so a prompt
    whose penalised rewards are all equal has the same best and worst. Raises ValueError as ``solve_flat`` does, and
    when ``alpha`` is not finite.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"The length penalty alpha is {alpha}. Pass a finite number.")
    rewards, lengths, offsets = _checked(rewards, lengths, offsets)
    penalised = rewards - alpha * lengths
    return _first_maximum(penalised, offsets), _first_maximum(-penalised, offsets)


def grid_length_penalty(rewards: ArrayLike, lengths: ArrayLike, offsets: ArrayLike) -> float:
    """Return the smallest of 0, 0.001 ... 0.999 that minimises |mean(len(best) - len(worst))|.

    So the paper's released scripts search it. Best and worst are those of ``best_and_worst`` at the same alpha, ties
    included. Arguments and errors are those of ``solve_flat``, which returns a true minimiser: that may lie between the
    grid's points or outside the grid.
    """
    lengths = np.asarray(lengths, dtype=np.float64)
    sizes = []
    for alpha in _GRID:
        best, worst = best_and_worst(rewards, lengths, alpha, offsets)
        # Sums of whole numbers are exact, so what ties in exact arithmetic ties here.
        sizes.append(abs((lengths[best] - lengths[worst]).sum()))
    return _GRID[int(np.argmin(sizes))]


def _first_maximum(values: Floats, offsets: Indices) -> Indices:
    """Return the position (M,) of the first largest of the values (R,) of every prompt."""
    starts = offsets[:-1]
    largest = np.flatnonzero(values == np.repeat(np.maximum.reduceat(values, starts), np.diff(offsets)))
    return largest[np.searchsorted(largest, starts)]


def _walk(rewards: Floats, lengths: Floats) -> tuple[Floats, Floats]:
    """Walk the upper envelopes of all prompts (one per column) at once, from alpha = -inf to inf.

    ``rewards`` and ``lengths`` are (N, m). Returns the breakpoints and, for each, the change of the best response's
    length, which is negative; both are flat, in no particular order.
    """
    shortest = lengths.min(axis=0)
    # The line on the envelope at alpha = -inf: the longest response, the best of them if there are several.
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
        # Where several lines cross here any will do: the others follow with the same alpha, and are merged later.
        nearest = (crossing.argmin(axis=0), np.arange(walking.size))
        # Rounding can put three lines through one point out of order; the envelope cannot turn back.
        alpha = np.maximum(crossing.min(axis=0), alpha)
        alphas.append(alpha)
        changes.append(lengths[nearest] - length)
        length, reward = lengths[nearest], rewards[nearest]
    return np.concatenate(alphas), np.concatenate(changes)


def _blocks(rewards: Floats, lengths: Floats, offsets: Indices) -> Iterator[tuple[Floats, Floats]]:
    """Yield rewards and lengths (N, m) of m prompts of similar size, one prompt per column.

    Prompts share a block when their sizes have the same power of two as ceiling. Short columns are filled up with
    their prompt's last response: a second copy of a line changes no envelope.
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
    """Return the minimisers of the step curve's absolute value, and the point of them described in ``solve_flat``."""
    edges = np.concatenate(([-np.inf], breakpoints, [np.inf]))
    sizes = np.abs(differences)
    # One piece, or neighbours +v and -v. The key is the distance to zero, negative for a piece around zero.
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
    """Return 0.0 where it lies between ``low`` and ``high``, else their middle or a point beyond the finite one."""
    if low < 0 < high:
        return 0.0
    if math.isinf(high):
        return low + (abs(low) / 2 or 1.0)
    if math.isinf(low):
        return high - (abs(high) / 2 or 1.0)
    middle = low + (high - low) / 2
    # Between neighbouring floats: the lower one, where ``difference_at`` still gives this piece's value.
    return middle if middle < high else low


def _read_only(values: Floats) -> Floats:
    values.flags.writeable = False
    return values


def _flatten(rows: Sequence[Sequence[float]] | NDArray[np.generic]) -> tuple[Floats, Indices]:
    """Return the numbers (R,) of all rows one after another, and the rows' sizes (M,)."""
    if isinstance(rows, np.ndarray) and rows.ndim == 2:
        return rows.astype(np.float64).ravel(), np.full(rows.shape[0], rows.shape[1])
    sizes = np.fromiter(map(len, rows), dtype=np.intp, count=len(rows))
    return np.fromiter(chain.from_iterable(rows), dtype=np.float64, count=sizes.sum()), sizes


def _checked(rewards: ArrayLike, lengths: ArrayLike, offsets: ArrayLike) -> tuple[Floats, Floats, Indices]:
    """Return the three as arrays, or raise ValueError with the first prompt and response at fault."""
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
            f"offsets must be flat whole numbers from 0 to the number of responses, {shapes['reward'][0]}, but has "
            f"shape {ends.shape}, type {ends.dtype} and ends {ends.flat[0]} and {ends.flat[-1]}. "
            "Entry i is where prompt i begins."
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
