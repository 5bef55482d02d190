"""The line on alpha: the exact solver and the pairs, against the grid of the released scripts."""

from typing import Any

import numpy as np
import rivals
import workload
from lines import reached
from prepared import Prepared
from timing import ratios, spread, take_turns, timed

from crosspref.maths.length_penalty import best_and_worst, grid_length_penalty, solve_flat

PROMPTS, RESPONSES = 3000, 10
REPEATS = 10
"""How often the exact solver runs in its turn: once takes milliseconds, which are not measured well."""


def measure_alpha(work: Prepared) -> dict[str, dict[str, Any]]:
    """Solve for alpha and make pairs of made-up rewards, which grow with length as implicit rewards do."""
    random = np.random.default_rng(workload.SEED)
    lengths = np.round(random.lognormal(6.5, 0.6, (PROMPTS, RESPONSES)))
    rewards = random.normal(0, 20, (PROMPTS, RESPONSES)) + 0.05 * lengths
    offsets = np.arange(0, PROMPTS * RESPONSES + 1, RESPONSES)

    def exact() -> tuple[float, float]:
        solved = solve_flat(rewards.ravel(), lengths.ravel(), offsets)
        best, worst = best_and_worst(rewards.ravel(), lengths.ravel(), solved.alpha, offsets)
        return solved.alpha, float((lengths.ravel()[best] - lengths.ravel()[worst]).mean())

    def often() -> tuple[float, tuple[float, float]]:
        seconds, found = timed(lambda: [exact() for _ in range(REPEATS)])
        return seconds / REPEATS, found[-1]

    often()
    turns = {"exact": often, "grid": lambda: timed(lambda: rivals.grid(rewards, lengths))}
    seconds, results = take_turns(turns, work.options.rounds)
    own, theirs = results["exact"], results["grid"]
    assert abs(own[1]) <= abs(theirs[1]), f"the exact alpha {own} is worse than the grid's {theirs}"
    said = {f"{name}, ms": 1000 * spread(values)["median"] for name, values in seconds.items()}
    # The same grid with all prompts side by side in each step, as `length_penalty.mode: grid` has it.
    side_by_side, _ = timed(lambda: grid_length_penalty(rewards.ravel(), lengths.ravel(), offsets))
    said |= {"grid with all prompts side by side, ms": 1000 * side_by_side}
    said |= {"alpha": own[0], "alpha by the grid": theirs[0]}
    said |= {"mean length difference": own[1], "mean length difference by the grid": theirs[1]}
    return {"alpha": reached("alpha", ratios(seconds["grid"], seconds["exact"]), **said)}
