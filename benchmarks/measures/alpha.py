"""The line on alpha: the exact solver and the pairs, against the grid of the released scripts."""

from typing import Any

import numpy as np
import rivals
from lines import reached
from timing import alternate, medians, ratios, timed
from workload import SEED, Workload

from crosspref.maths.length_penalty import best_and_worst, grid_length_penalty, solve_flat

PROMPTS, RESPONSES = 3000, 10
REPEATS = 10
"""How often the exact solver runs per round: once takes milliseconds, which are not measured well."""


def measure(work: Workload) -> dict[str, dict[str, Any]]:
    """Solve for alpha and make pairs of made-up rewards, which grow with length as implicit rewards do."""
    random = np.random.default_rng(SEED)
    lengths = np.round(random.lognormal(6.5, 0.6, (PROMPTS, RESPONSES)))
    rewards = random.normal(0, 20, (PROMPTS, RESPONSES)) + 0.05 * lengths
    offsets = np.arange(0, PROMPTS * RESPONSES + 1, RESPONSES)

    def exact() -> tuple[float, float]:
        alpha = solve_flat(rewards.ravel(), lengths.ravel(), offsets).alpha
        best, worst = best_and_worst(rewards.ravel(), lengths.ravel(), alpha, offsets)
        return alpha, float((lengths.ravel()[best] - lengths.ravel()[worst]).mean())

    def repeated() -> tuple[float, tuple[float, float]]:
        seconds, results = timed(lambda: [exact() for _ in range(REPEATS)])
        return 1000 * seconds / REPEATS, results[-1]

    def by_grid() -> tuple[float, tuple[float, float]]:
        seconds, result = timed(lambda: rivals.grid(rewards, lengths))
        return 1000 * seconds, result

    repeated()
    milliseconds, results = alternate({"exact": repeated, "grid": by_grid}, work.options.rounds)
    (alpha, gap), (grid_alpha, grid_gap) = results["exact"], results["grid"]
    assert abs(gap) <= abs(grid_gap), f"the exact alpha {alpha} is worse than the grid's {grid_alpha}"
    figures = medians(milliseconds, "ms")
    # The same grid with all prompts side by side in each step, as `length_penalty.mode: grid` has it.
    side_by_side, _ = timed(lambda: grid_length_penalty(rewards.ravel(), lengths.ravel(), offsets))
    figures |= {"grid with all prompts side by side, ms": 1000 * side_by_side}
    figures |= {"alpha": alpha, "alpha by the grid": grid_alpha}
    figures |= {"mean length difference": gap, "mean length difference by the grid": grid_gap}
    return {"alpha": reached("alpha", ratios(milliseconds["grid"], milliseconds["exact"]), **figures)}
