"""Win rates of AlpacaEval 2: plain, and controlled for the length of the answers.

Source: Dubois et al., "Length-Controlled AlpacaEval" (2024), as version 0.6.6 of the package alpaca-eval computes it.
The probability that a model beats the baseline on an item is

    sigma(a tanh(D / sd(D)) + b difficulty + c [the answer is not a gamed one])

where D = characters of the baseline's answer - characters of the model's. The length-controlled rate (LC) is the mean
of this at D = 0. The weights are fitted for each model separately, together with the verdicts on answers that were made
long or short on purpose ("gamed"), which regularise a and b. Without the gamed verdicts the result is different and is
called "LC-noreg". Without difficulties there is no LC.

For its bootstrap interval, LC is refitted under many resamples of the items at once (``length_controlled_rates``), by
Newton's method with a soft threshold: sd(D), the weights at a fixed C, and the mean at D = 0 are computed anew, and the
gamed rows stay as they are. alpaca-eval's own fit (``engines.liblinear``) stops some thousandths of a percent away.
"""

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

Floats = NDArray[np.float64]

Fit = Callable[[Floats, Floats, Floats], tuple[Floats, float]]
"""Takes a design (rows, features), outcomes (rows,) in [0, 1] and weights (rows,). Returns the weights (features,) that
minimise ||w||_1 + C sum weight * cross-entropy, and the C that cross-validation chose. ``engines.liblinear`` has
alpaca-eval's own fit."""

Loss = Callable[[Floats], tuple[Floats, Floats, Floats]]
"""Takes weights (b, f). Returns the loss (b,), its gradient (b, f) and its Hessian (b, f, f)."""

GAMED_WEIGHT = 0.1
"""The weight of a verdict on a gamed answer, where one on the model's answer has 1: 0.2, shared by two gamed models."""

_BATCH_NUMBERS = 2**18
"""How many outcomes are fitted together. It bounds the memory, and changes a result by rounding at most."""

_STEPS = 200
"""Maximum number of iterations of a fit."""

_TOLERANCE = 1e-7
"""A fit is done when no weight changes by more than this."""


@dataclass(frozen=True, slots=True, eq=False)
class Gamed:
    """Verdicts on gamed answers, one per row. AlpacaEval's table ``df_gamed`` has 2 models x 805 items.

    ``outcomes`` (rows,) are preference - 1, in [0, 1]. ``lengths`` (rows,) are D / sd(D) within the row's model.
    ``difficulty`` (rows,) belongs to the item.
    """

    outcomes: Floats
    lengths: Floats
    difficulty: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Comparisons:
    """The comparisons of one model with one baseline in one language, one per item. Made by ``comparisons``.

    ``outcomes`` (n,) are 1 for a certain win of the model, 0 for one of the baseline, and nan without a verdict.
    Lengths (n,) are in characters. ``difficulty`` (n,) has no unit.
    """

    items: tuple[Hashable, ...]
    outcomes: Floats
    model_lengths: Floats
    baseline_lengths: Floats
    difficulty: Floats | None
    gamed: Gamed | None


@dataclass(frozen=True, slots=True)
class WinRates:
    """The win rates, in percent, of ``n`` judged items.

    ``lc`` and ``C`` are None if the length-controlled rate was not requested; ``lc_name`` says which variant it is.
    ``weights`` has the fitted weights by name.
    """

    n: int
    win_rate: float
    lc: float | None
    lc_name: str
    weights: dict[str, float]
    C: float | None


def comparisons(
    items: Iterable[Hashable],
    preferences: Iterable[float | None],
    model_lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    difficulty: ArrayLike | None = None,
    gamed: Gamed | None = None,
) -> Comparisons:
    """Check the verdicts (n,) of one model.

    A preference is in [1, 2], where 2 is a certain win of the model; None means that there is no verdict. Lengths (n,)
    are in characters; ``difficulty`` (n,) is that of the items.

    Raises ValueError when sizes differ, an item is a duplicate, a preference is out of range, or a length is not a
    finite number of at least zero.
    """
    names = tuple(items)
    outcomes = np.array([math.nan if one is None else one for one in preferences], dtype=np.float64) - 1
    ours, theirs = (np.asarray(given, dtype=np.float64) for given in (model_lengths, baseline_lengths))
    difficulties = None if difficulty is None else np.asarray(difficulty, dtype=np.float64)
    shapes = [column.shape for column in (outcomes, ours, theirs, difficulties) if column is not None]
    if any(shape != (len(names),) for shape in shapes):
        raise ValueError(
            f"There are {len(names)} items, but preferences, both lengths and difficulties have the shapes {shapes}."
        )
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"The item {twice!r} is a duplicate. Keep one verdict per item.")
    if (wrong := (outcomes < 0) | (outcomes > 1)).any():
        position = np.flatnonzero(wrong)[0]
        raise ValueError(
            f"The preference at position {position} is {outcomes[position] + 1}. Pass a number from 1 (the baseline "
            "wins) to 2 (the model wins), or None where there is no verdict."
        )
    for column in (ours, theirs):
        if not (np.isfinite(column) & (column >= 0)).all():
            position = np.flatnonzero(~(np.isfinite(column) & (column >= 0)))[0]
            raise ValueError(f"The length of an answer to item {names[position]!r} is {column[position]}.")
    return Comparisons(names, outcomes, ours, theirs, difficulties, gamed)


def win_rates(compared: Comparisons, fit: Fit | None = None) -> WinRates:
    """Return the win rate, and with a ``fit`` the length-controlled win rate too, which needs difficulties.

    WR = 100 mean(outcome). An item without a verdict does not count in it or in the fit, but it counts in sd(D) and in
    the mean that is LC. LC is nan if all rows to fit are certain wins, or all certain losses: then no finite weights
    are optimal. Raises ValueError when there is no verdict at all, or when LC has fewer than five rows to fit.
    """
    judged = compared.outcomes[~np.isnan(compared.outcomes)]
    if not judged.size:
        raise ValueError("No item has a verdict, so there is no win rate. Pass at least one.")
    lc, weights, penalty = (None, {}, None) if fit is None else _length_controlled(compared, fit)
    name = "LC-noreg" if compared.gamed is None else "LC"
    return WinRates(judged.size, 100 * float(judged.mean()), lc, name, weights, penalty)


def _length_controlled(compared: Comparisons, fit: Fit) -> tuple[float, dict[str, float], float | None]:
    """Return LC in percent, its weights by name, and C."""
    design, outcomes, weights = _training_rows(compared)
    if outcomes[0] in (0.0, 1.0) and (outcomes == outcomes[0]).all():
        return math.nan, {}, None
    found, penalty = fit(design, outcomes, weights)
    named = dict(zip(("length", "difficulty", "not_gamed"), found.tolist(), strict=True))
    rate = 100 * float(expit(named["difficulty"] * _difficulty(compared) + named["not_gamed"]).mean())
    return rate, named, penalty


def length_feature(differences: Floats, spread: Floats | float) -> Floats:
    """Return tanh(D / sd(D)) (..., n), or 0 without spread: equal differences explain nothing.

    ``differences`` (..., n) and ``spread`` (..., 1) are in the same unit.
    """
    known = np.asarray(spread) > 0
    return np.tanh(np.where(known, differences, 0.0) / np.where(known, spread, 1.0))


def _training_rows(compared: Comparisons) -> tuple[Floats, Floats, Floats]:
    """Return design, outcomes and weights of the rows to fit: first the gamed rows, then the judged items."""
    differences = compared.baseline_lengths - compared.model_lengths
    spread = float(differences.std(ddof=1)) if differences.size > 1 else 0.0
    columns = [length_feature(differences, spread), _difficulty(compared), np.ones(differences.size)]
    design = np.stack(columns, axis=1)
    judged = ~np.isnan(compared.outcomes)
    design, outcomes, weights = design[judged], compared.outcomes[judged], np.ones(int(judged.sum()))
    if (gamed := compared.gamed) is not None:
        rows = np.stack([np.tanh(gamed.lengths), gamed.difficulty, np.zeros(len(gamed.outcomes))], axis=1)
        design = np.concatenate([rows, design])
        outcomes = np.concatenate([gamed.outcomes, outcomes])
        weights = np.concatenate([np.full(len(rows), GAMED_WEIGHT), weights])
    if len(design) < 5:
        raise ValueError(
            f"The length-controlled win rate needs five verdicts for its five folds; there are {len(design)}."
        )
    return design, outcomes, weights


def length_controlled_rates(compared: Comparisons, penalty: float, counts: Floats) -> Floats:
    """Return LC (b,) in percent for each row of ``counts`` (b, n), which says how often an item was drawn.

    ``penalty`` is C. A rate is nan if no item with a verdict was drawn. Raises ValueError for a wrong number of items,
    a negative count, or a C that is not positive.
    """
    if counts.ndim != 2 or counts.shape[1] != len(compared.items) or not penalty > 0 or (counts < 0).any():
        raise ValueError(
            f"The counts have shape {counts.shape} for {len(compared.items)} items, and C is {penalty}. Pass a count "
            "of at least zero for every item, and a positive C."
        )
    rows = len(compared.items) + (len(compared.gamed.outcomes) if compared.gamed else 0)
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
    """Return the weighted cross-entropy of items and gamed rows. ``lengths`` and ``counts`` are (b, n)."""
    judged = ~np.isnan(compared.outcomes)
    outcomes = compared.outcomes[judged]
    lengths, counts, difficulty = lengths[:, judged], counts[:, judged], _difficulty(compared)[judged]
    gamed = compared.gamed
    gamed_rows = np.stack([np.tanh(gamed.lengths), gamed.difficulty], axis=1) if gamed else np.empty((0, 2))
    gamed_outcomes = gamed.outcomes if gamed else np.empty(0)
    products = np.stack([gamed_rows[:, i] * gamed_rows[:, j] for i, j in ((0, 0), (0, 1), (1, 1))], axis=1)

    def loss(weights: Floats) -> tuple[Floats, Floats, Floats]:
        hessian = np.zeros((len(weights), 3, 3))
        logits = weights[:, :1] * lengths + (weights[:, 1:2] * difficulty + weights[:, 2:])
        value, residual, curvature = _cross_entropy(logits, outcomes, counts)
        long, long_curvature = residual * lengths, curvature * lengths
        gradient = np.stack([long.sum(1), residual @ difficulty, residual.sum(1)], axis=1)
        hessian[:, 0, 0], hessian[:, 0, 1] = (long_curvature * lengths).sum(1), long_curvature @ difficulty
        hessian[:, 0, 2], hessian[:, 1, 1] = long_curvature.sum(1), curvature @ difficulty**2
        hessian[:, 1, 2], hessian[:, 2, 2] = curvature @ difficulty, curvature.sum(1)
        entropy, residual, curvature = _cross_entropy(weights[:, :2] @ gamed_rows.T, gamed_outcomes, GAMED_WEIGHT)
        value += entropy
        gradient[:, :2] += residual @ gamed_rows
        added = curvature @ products
        hessian[:, 0, 0] += added[:, 0]
        hessian[:, 0, 1] += added[:, 1]
        hessian[:, 1, 1] += added[:, 2]
        for i, j in ((1, 0), (2, 0), (2, 1)):
            hessian[:, i, j] = hessian[:, j, i]
        return value, gradient, hessian

    return loss


def _cross_entropy(logits: Floats, outcomes: Floats, counts: Floats | float) -> tuple[Floats, Floats, Floats]:
    """Return the sum of the cross-entropies (b,), and its first and second derivatives (b, n) by each logit."""
    shrunk = np.exp(-np.abs(logits))
    chances = np.where(logits >= 0, 1.0, shrunk) / (1 + shrunk)
    entropy = counts * (np.log1p(shrunk) + np.maximum(logits, 0) - outcomes * logits)
    return entropy.sum(axis=1), counts * (chances - outcomes), counts * (shrunk / (1 + shrunk) ** 2)


def minimise(loss: Loss, penalty: float, size: int, features: int) -> Floats:
    """Return the weights (size, features) that minimise ||w||_1 + penalty * loss(w), for each of ``size`` losses.

    Raises ArithmeticError when the fit does not converge, which cannot happen with a convex loss.
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
        f"The fit of the length-controlled win rate did not converge in {_STEPS} steps at C = {penalty}."
    )


def _newton_target(weights: Floats, gradient: Floats, hessian: Floats, threshold: float) -> Floats:
    """Return the minimum (b, f) of the loss's quadratic approximation plus threshold * ||w||_1."""
    # If no weight changes its sign, the threshold only adds to the slope, and the minimum has a closed form.
    signs = np.sign(weights)
    slopes = (gradient + threshold * signs)[:, :, None]
    target: Floats = weights - np.linalg.solve(hessian + 1e-12 * np.eye(weights.shape[1]), slopes)[:, :, 0]
    crossing = ((np.sign(target) != signs) | (signs == 0)).any(axis=1)
    if crossing.any():
        target[crossing] = _by_coordinates(weights[crossing], gradient[crossing], hessian[crossing], threshold)
    return target


def _by_coordinates(weights: Floats, gradient: Floats, hessian: Floats, threshold: float) -> Floats:
    """Return the same minimum (b, f) by coordinate descent, which allows weights of exactly zero."""
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
