"""The length-controlled win rate refitted to many weightings of the items at once: what its bootstrap needs.

A resample gives every item a count. sd(D), the weights at a fixed C, and the mean at D = 0 are computed anew under the
counts; the gamed rows stay as they are. The fit is Newton's method with a soft threshold, side by side for all
resamples; alpaca-eval's own fit (``engines.liblinear``) stops a little earlier, some thousandths of a percent away.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import expit

from crosspref.maths.alpaca import GAMED_WEIGHT, Comparisons, Floats, length_feature

_BATCH_NUMBERS = 2**18
"""How many outcomes are fitted side by side; it bounds the memory, and moves a result by no more than rounding."""

_STEPS = 200
_TOLERANCE = 1e-7
"""Iterations at most, and the change of a weight at which a fit is done."""

Loss = Callable[[Floats], tuple[Floats, Floats, Floats]]
"""From weights (b, f): the loss (b,), its gradient (b, f) and its Hessian (b, f, f)."""


def length_controlled_rates(compared: Comparisons, penalty: float, counts: Floats) -> Floats:
    """Return the LC (b,), in percent, under each row of ``counts`` (b, n), how often an item was drawn.

    ``penalty`` is C. A rate is nan where no item with a verdict was drawn. Raises ValueError for another number of
    items, a negative count, or a C that is not positive.
    """
    if counts.ndim != 2 or counts.shape[1] != len(compared.items) or not penalty > 0 or (counts < 0).any():
        raise ValueError(
            f"The counts have shape {counts.shape} for {len(compared.items)} items, and C is {penalty}. Pass a count "
            "of at least zero for every item, and a positive C."
        )
    rows = len(compared.items) + (len(compared.gamed.items) if compared.gamed else 0)
    size = max(1, _BATCH_NUMBERS // max(1, rows))
    parts = [_rates(compared, penalty, counts[start : start + size]) for start in range(0, len(counts), size)]
    return np.concatenate(parts) if parts else np.empty(0)


def _rates(compared: Comparisons, penalty: float, counts: Floats) -> Floats:
    differences = compared.baseline_lengths - compared.model_lengths
    total = counts.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = counts @ differences[:, None] / total
        squares = counts @ (differences**2)[:, None] - total * mean**2
        spread = np.sqrt(np.maximum(squares, 0) / (total - 1))
    lengths = length_feature(differences, np.nan_to_num(spread, posinf=0.0))
    weights = minimise(_loss(compared, lengths, counts), penalty, len(counts), 3)
    chances = expit(weights[:, 1:2] * _difficulty(compared) + weights[:, 2:])
    judged = counts @ ~np.isnan(compared.outcomes)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(judged > 0, 100 * (counts * chances).sum(axis=1) / total[:, 0], np.nan)


def _difficulty(compared: Comparisons) -> Floats:
    return np.zeros(len(compared.items)) if compared.difficulty is None else compared.difficulty


def _loss(compared: Comparisons, lengths: Floats, counts: Floats) -> Loss:
    """Return the weighted cross-entropy of items and gamed rows; ``lengths`` and ``counts`` are (b, n)."""
    judged = ~np.isnan(compared.outcomes)
    outcomes = compared.outcomes[judged]
    lengths, counts, difficulty = lengths[:, judged], counts[:, judged], _difficulty(compared)[judged]
    gamed = compared.gamed
    held = np.stack([np.tanh(gamed.lengths), gamed.difficulty], axis=1) if gamed else np.empty((0, 2))
    held_outcomes = gamed.outcomes if gamed else np.empty(0)
    products = np.stack([held[:, i] * held[:, j] for i, j in ((0, 0), (0, 1), (1, 1))], axis=1)

    def loss(weights: Floats) -> tuple[Floats, Floats, Floats]:
        value = np.empty(len(weights))
        gradient = np.empty((len(weights), 3))
        hessian = np.zeros((len(weights), 3, 3))
        logits = weights[:, :1] * lengths + (weights[:, 1:2] * difficulty + weights[:, 2:])
        entropy, residual, curvature = _cross_entropy(logits, outcomes, counts)
        value[:] = entropy
        long, long_curvature = residual * lengths, curvature * lengths
        gradient[:, 0], gradient[:, 1], gradient[:, 2] = long.sum(1), residual @ difficulty, residual.sum(1)
        hessian[:, 0, 0], hessian[:, 0, 1] = (long_curvature * lengths).sum(1), long_curvature @ difficulty
        hessian[:, 0, 2], hessian[:, 1, 1] = long_curvature.sum(1), curvature @ difficulty**2
        hessian[:, 1, 2], hessian[:, 2, 2] = curvature @ difficulty, curvature.sum(1)
        entropy, residual, curvature = _cross_entropy(weights[:, :2] @ held.T, held_outcomes, GAMED_WEIGHT)
        value += entropy
        gradient[:, :2] += residual @ held
        added = curvature @ products
        hessian[:, 0, 0] += added[:, 0]
        hessian[:, 0, 1] += added[:, 1]
        hessian[:, 1, 1] += added[:, 2]
        for i, j in ((1, 0), (2, 0), (2, 1)):
            hessian[:, i, j] = hessian[:, j, i]
        return value, gradient, hessian

    return loss


def _cross_entropy(logits: Floats, outcomes: Floats, counts: Floats | float) -> tuple[Floats, Floats, Floats]:
    """Return the sum of the cross-entropies (b,), and its first and second derivative (b, n) by each logit."""
    shrunk = np.exp(-np.abs(logits))
    chances = np.where(logits >= 0, 1.0, shrunk) / (1 + shrunk)
    entropy = counts * (np.log1p(shrunk) + np.maximum(logits, 0) - outcomes * logits)
    return entropy.sum(axis=1), counts * (chances - outcomes), counts * (shrunk / (1 + shrunk) ** 2)


def minimise(loss: Loss, penalty: float, size: int, features: int) -> Floats:
    """Return the weights (size, features) that minimise ||w||_1 + penalty * loss(w), for each of ``size`` losses.

    Raises ArithmeticError when they are not found, which a convex loss does not let happen.
    """
    weights = np.zeros((size, features))
    value, gradient, hessian = loss(weights)
    value += np.abs(weights).sum(axis=1) / penalty
    step = np.ones((size, 1))
    for _ in range(_STEPS):
        change = _newton_target(weights, gradient, hessian, 1 / penalty) - weights
        if np.abs(change).max(initial=0.0) < _TOLERANCE:
            return weights + change
        tried = weights + step * change
        tried_value, tried_gradient, tried_hessian = loss(tried)
        tried_value += np.abs(tried).sum(axis=1) / penalty
        better = tried_value <= value + 1e-12 * np.abs(value)
        weights[better], value[better] = tried[better], tried_value[better]
        gradient[better], hessian[better] = tried_gradient[better], tried_hessian[better]
        step = np.where(better[:, None], 1.0, step / 2)
    raise ArithmeticError(
        f"Fits of the length-controlled win rate have not settled after {_STEPS} steps at C = {penalty}."
    )


def _newton_target(weights: Floats, gradient: Floats, hessian: Floats, threshold: float) -> Floats:
    """Return where (b, f) the loss's quadratic approximation plus threshold * ||w||_1 is smallest."""
    # Where no weight changes its sign, the threshold only adds to the slope, and the place is known at once.
    signs = np.sign(weights)
    slopes = (gradient + threshold * signs)[:, :, None]
    target: Floats = weights - np.linalg.solve(hessian + 1e-12 * np.eye(weights.shape[1]), slopes)[:, :, 0]
    others = ((np.sign(target) != signs) | (signs == 0)).any(axis=1)
    if others.any():
        target[others] = _by_coordinates(weights[others], gradient[others], hessian[others], threshold)
    return target


def _by_coordinates(weights: Floats, gradient: Floats, hessian: Floats, threshold: float) -> Floats:
    """Return the same (b, f) by going through the weights one by one, which lets them end at zero."""
    target = weights.copy()
    curvature = np.maximum(np.diagonal(hessian, axis1=1, axis2=2), 1e-12)
    for _ in range(_STEPS):
        largest = 0.0
        for one in range(weights.shape[1]):
            slope = gradient[:, one] + np.einsum("bj,bj->b", hessian[:, one], target - weights)
            free = target[:, one] - slope / curvature[:, one]
            moved = np.sign(free) * np.maximum(np.abs(free) - threshold / curvature[:, one], 0)
            largest = max(largest, float(np.abs(moved - target[:, one]).max(initial=0.0)))
            target[:, one] = moved
        if largest < _TOLERANCE / 10:
            break
    return target
