"""The exact length penalty against exhaustive search in exact arithmetic, and against numbers worked out by hand."""

import math
from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, pairwise
from operator import itemgetter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspref.maths.length_penalty import _point_inside, best_and_worst, solve_flat
from crosspref.maths.length_penalty import solve_length_penalty as solve

Rows = list[list[float]]
Problem = tuple[Rows, Rows]


def naive_difference(rewards: Rows, lengths: Rows, alpha: float | Fraction) -> Fraction:
    """Mean length difference at one alpha, in exact arithmetic: Eq. 9, 10 and 15 written down."""
    total = Fraction(0)
    for row in zip(rewards, lengths, strict=True):
        scored = [(Fraction(r) - Fraction(alpha) * Fraction(n), Fraction(n)) for r, n in zip(*row, strict=True)]
        total += max(scored, key=itemgetter(0))[1] - min(scored, key=itemgetter(0))[1]
    return total / len(rewards)


def crossings(rewards: Rows, lengths: Rows) -> list[Fraction]:
    """Every alpha at which two responses of one prompt tie: a superset of the breakpoints."""
    rows = [list(zip(*row, strict=True)) for row in zip(rewards, lengths, strict=True)]
    pairs = [pair for row in rows for pair in combinations(row, 2)]
    return sorted({(Fraction(r) - Fraction(s)) / (Fraction(n) - Fraction(m)) for (r, n), (s, m) in pairs if n != m})


def brute_force(rewards: Rows, lengths: Rows) -> tuple[list[Fraction], list[Fraction]]:
    """Breakpoints and differences from evaluating between, before and beyond all crossings."""
    knots = crossings(rewards, lengths)
    probes = [knots[0] - 1, *((a + b) / 2 for a, b in pairwise(knots)), knots[-1] + 1] if knots else [Fraction(0)]
    values = [naive_difference(rewards, lengths, probe) for probe in probes]
    steps = [k for k in range(len(knots)) if values[k] != values[k + 1]]
    return [knots[k] for k in steps], [values[0], *(values[k + 1] for k in steps)]


def expected_choice(breakpoints: list[Fraction], values: list[Fraction]) -> tuple[tuple[float, float], float, Fraction]:
    """Interval, alpha and difference that the documentation of ``solve_flat`` promises."""
    edges = [-math.inf, *breakpoints, math.inf]
    tied = [k for k, value in enumerate(values) if abs(value) == min(map(abs, values))]
    # A piece around zero first, then by distance to zero, then the positive one.
    rank = [(0 if edges[k] < 0 < edges[k + 1] else 1, min(abs(edges[k]), abs(edges[k + 1])), -k) for k in tied]
    nearest = -min(rank)[2]
    low, high = edges[nearest], edges[nearest + 1]
    # With exact differences only a tie of both half-lines at zero lacks an end: +1 is then the point.
    alpha = 0.0 if low < 0 < high else 1.0 if high == math.inf else float((low + high) / 2)
    return (float(edges[tied[0]]), float(edges[tied[-1] + 1])), alpha, values[nearest]


@st.composite
def problems(draw: st.DrawFn, rewards: st.SearchStrategy[float], lengths: st.SearchStrategy[float]) -> Problem:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    first, second = ([draw(st.lists(s, min_size=n, max_size=n)) for n in sizes] for s in (rewards, lengths))
    return first, second


# Small whole numbers: ties, equal lengths, equal rewards and coinciding breakpoints are the rule.
coincident = problems(st.integers(-4, 4).map(float), st.integers(0, 5).map(float))
# Real rewards: breakpoints are rounded.
generic = problems(st.floats(-50, 50, width=32), st.integers(0, 3000).map(float))


def random_problem(seed: int, prompts: int, whole: bool = False) -> Problem:
    """Ragged prompts with 1 to 12 responses whose rewards grow with their length."""
    generator = np.random.default_rng(seed)
    rewards, lengths = [], []
    for size in generator.integers(1, 13, prompts):
        length = generator.integers(1, 40 if whole else 3000, size)
        noise = generator.integers(-9, 10, size) if whole else generator.normal(0, 3, size)
        rewards.append((noise + (length if whole else 0.004 * length)).astype(float).tolist())
        lengths.append(length.astype(float).tolist())
    return rewards, lengths


def flat(rewards: Rows, lengths: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.concatenate(rewards), np.concatenate(lengths), np.cumsum([0, *map(len, rewards)])


def selected_difference(rewards: Rows, lengths: Rows, alpha: float) -> float:
    """Mean length difference of the pairs that are really selected at alpha."""
    all_rewards, all_lengths, offsets = flat(rewards, lengths)
    best, worst = best_and_worst(all_rewards, all_lengths, alpha, offsets)
    return float((all_lengths[best] - all_lengths[worst]).sum() / len(rewards))


def test_worked_example() -> None:
    # Prompt 0: (r, len) = (3, 10), (2, 4), (0, 1).
    #   Best, from the longest: 10 -> 4 at (3-2)/6 = 1/6 (10 -> 1 only at 3/9 = 1/3), then 4 -> 1 at (2-0)/3 = 2/3.
    #   Worst, from the shortest: 1 -> 10 at (3-0)/9 = 1/3 (1 -> 4 only at 2/3).
    #   len(best) - len(worst): 10-1 = 9 | 1/6 | 4-1 = 3 | 1/3 | 4-10 = -6 | 2/3 | 1-10 = -9.
    # Prompt 1: (r, len) = (1, 2), (0, 6). Both swap at (1-0)/(2-6) = -1/4:  6-2 = 4 | -1/4 | 2-6 = -4.
    # Sum: 13 | -1/4 | 5 | 1/6 | -1 | 1/3 | -10 | 2/3 | -13. Smallest is |-1|, so alpha = (1/6 + 1/3) / 2 = 1/4.
    solution = solve([[3, 2, 0], [1, 0]], [[10, 4, 1], [2, 6]])
    np.testing.assert_allclose(solution.breakpoints, [-1 / 4, 1 / 6, 1 / 3, 2 / 3], rtol=1e-15)
    np.testing.assert_array_equal(solution.differences, [6.5, 2.5, -0.5, -5.0, -6.5])
    assert solution.interval == (1 / 6, 1 / 3)
    assert solution.alpha == pytest.approx(1 / 4, rel=1e-15)
    assert solution.mean_length_difference == -0.5
    # At alpha = 1/4 the rewards are (0.5, 1, -0.25) and (0.5, -1.5): best 1 and 0, worst 2 and 1.
    best, worst = best_and_worst([3, 2, 0, 1, 0], [10, 4, 1, 2, 6], 0.25, [0, 3, 5])
    assert (best.tolist(), worst.tolist()) == ([1, 3], [2, 4])
    assert not solution.breakpoints.flags.writeable
    assert not solution.differences.flags.writeable


@settings(max_examples=400, deadline=None)
@given(coincident)
def test_whole_numbers_match_brute_force_exactly(problem: Problem) -> None:
    solution = solve(*problem)
    breakpoints, values = brute_force(*problem)
    assert solution.breakpoints.tolist() == list(map(float, breakpoints))
    assert solution.differences.tolist() == list(map(float, values))
    interval, alpha, value = expected_choice(breakpoints, values)
    assert (solution.interval, solution.mean_length_difference) == (interval, float(value))
    assert solution.alpha == pytest.approx(alpha, rel=1e-14, abs=0)
    assert solution.difference_at(solution.alpha) == float(value)
    assert solution.alpha not in solution.breakpoints
    assert naive_difference(*problem, solution.alpha) == value


@settings(max_examples=150, deadline=None)
@given(generic, st.lists(st.floats(-100, 100), min_size=5, max_size=5))
def test_real_rewards_match_brute_force(problem: Problem, alphas: list[float]) -> None:
    solution = solve(*problem)
    knots = [-1e9, *map(float, crossings(*problem)), 1e9]
    # Ties that differ by less than a float resolves may merge, so the curves are compared away from them.
    for alpha in [*alphas, *((low + high) / 2 for low, high in pairwise(knots))]:
        near = bisect_right(knots, alpha)
        if all(abs(alpha - knot) > 1e-12 * max(1.0, abs(alpha)) for knot in knots[near - 1 : near + 1]):
            value = naive_difference(*problem, alpha)
            assert solution.difference_at(alpha) == float(value)
            assert abs(solution.mean_length_difference) <= abs(float(value))


@pytest.mark.parametrize("whole", [True, False])
def test_thousands_of_prompts(whole: bool) -> None:
    rewards, lengths = random_problem(seed=1, prompts=4000, whole=whole)
    solution = solve(rewards, lengths)
    assert (np.diff(solution.breakpoints) > 0).all()
    assert (np.diff(solution.differences) < 0).all()
    assert solution.alpha not in solution.breakpoints
    assert selected_difference(rewards, lengths, solution.alpha) == solution.mean_length_difference
    edges = np.concatenate(([-99.0], solution.breakpoints, [99.0]))
    near = int(np.searchsorted(solution.breakpoints, solution.alpha))
    for piece in [0, near - 1, near, near + 1, *range(5, len(edges) - 1, len(edges) // 50), len(edges) - 2]:
        value = selected_difference(rewards, lengths, (edges[piece] + edges[piece + 1]) / 2)
        assert value == solution.differences[piece]
        assert abs(value) >= abs(solution.mean_length_difference)


def test_arrays_lists_and_flat_give_the_same() -> None:
    generator = np.random.default_rng(3)
    rewards, lengths = generator.normal(size=(50, 10)), generator.integers(1, 900, (50, 10))
    solution = solve(rewards, lengths)
    flat_solution = solve_flat(rewards.ravel(), lengths.ravel(), np.arange(0, 501, 10))
    for same in (solve(rewards.tolist(), lengths.tolist()), solve(list(rewards), list(lengths)), flat_solution):
        np.testing.assert_array_equal(same.breakpoints, solution.breakpoints)
        np.testing.assert_array_equal(same.differences, solution.differences)


@pytest.mark.parametrize("sizes", [[1, 2, 3, 4, 5, 8, 9, 33], [70_000, 2], [2] * 32_769])
def test_blocks_of_any_size(sizes: list[int]) -> None:
    """Sizes on both sides of a power of two, and more numbers than fit one block."""
    generator, offsets = np.random.default_rng(4), np.cumsum([0, *sizes])
    rewards, lengths = generator.integers(-3, 4, offsets[-1]), generator.integers(1, 4, offsets[-1])
    rewards[-2:], lengths[-2:] = [3, 0], [1, 3]  # the last prompt, alone in its block, does swap
    solution = solve_flat(rewards, lengths, offsets)
    edges = [-99, *solution.breakpoints, 99]
    for difference, (low, high) in zip(solution.differences, pairwise(edges), strict=True):
        best, worst = best_and_worst(rewards, lengths, (low + high) / 2, offsets)
        assert difference == (lengths[best] - lengths[worst]).sum() / len(sizes)


@pytest.mark.parametrize(
    ("rewards", "lengths", "alpha", "difference"),
    [
        ([[1.5]], [[7]], 0.0, 0.0),  # one response
        ([[1.0, 2.0, -3.0]], [[5, 5, 5]], 0.0, 0.0),  # equal lengths
        ([[3.0, 1.0]], [[6, 4]], 0.0, 2.0),  # the swap is at (3-1)/2 = 1, and 0 lies below it
        ([[1.0, 3.0]], [[6, 4]], 0.0, -2.0),  # at -1, and 0 lies above it
        ([[1.0, 1.0]], [[6, 4]], 1.0, -2.0),  # at 0 itself: both sides are equally near; a penalty, not a bonus
    ],
)
def test_every_alpha_is_a_minimiser(rewards: Rows, lengths: Rows, alpha: float, difference: float) -> None:
    solution = solve(rewards, lengths)
    assert (solution.alpha, solution.mean_length_difference) == (alpha, difference)
    assert solution.interval == (-math.inf, math.inf)
    assert len(solution.breakpoints) == (difference != 0)


def test_of_two_tied_pieces_the_nearest_to_zero() -> None:
    # Pairs of lengths 2 and 1 swap at r_0 - r_1 = 4, 6 and 10: differences 3 | 4 | 1 | 6 | -1 | 10 | -3 (times 1/3).
    for sign, interval in ((1, (4, 10)), (-1, (-10, -4))):
        solution = solve([[sign * 4, 0], [sign * 6, 0], [sign * 10, 0]], [[2, 1]] * 3)
        assert (solution.interval, solution.alpha) == (interval, sign * 5)
        assert solution.mean_length_difference == sign / 3


@pytest.mark.parametrize("low", [1.0, math.nextafter(1.0, 2.0)])  # their middles round down and up
def test_a_piece_too_narrow_for_a_float_keeps_its_value(low: float) -> None:
    # Two pairs swap at neighbouring floats. Between them the sum is 0, and no float lies there.
    high = math.nextafter(low, 2.0)
    solution = solve([[low, 0.0], [high, 0.0]], [[2, 1], [2, 1]])
    assert (solution.interval, solution.alpha, solution.mean_length_difference) == ((low, high), low, 0.0)
    assert solution.difference_at(solution.alpha) == 0.0
    wider = solve([[low, 0.0], [math.nextafter(high, 2.0), 0.0]], [[2, 1], [2, 1]])
    assert wider.alpha == high  # two floats apart, there is one


def test_the_point_inside_a_piece_without_an_end() -> None:
    points = {(4.0, math.inf): 6.0, (0.0, math.inf): 1.0, (-math.inf, -4.0): -6.0, (-math.inf, 0.0): -1.0}
    assert {ends: _point_inside(*ends) for ends in points} == points


def test_an_envelope_never_turns_back() -> None:
    # On one line in decimals. In floats 25 -> 10 and 25 -> 5 are both at 1.3, and 10 -> 5 is one rounding below it.
    # Taking them in that order would make a difference of 20 - 5 - 5 = 10, which no two responses have.
    solution = solve([[38.4, 18.9, 12.4]], [[25, 10, 5]])
    assert solution.differences.tolist() == [25 - 5, 25 - 10, 5 - 25]
    np.testing.assert_allclose(solution.breakpoints, [1.3, 1.3], rtol=1e-14)


@settings(max_examples=100, deadline=None)
@given(coincident, st.integers(-3, 3).map(float))
def test_best_and_worst_are_the_first_of_ties(problem: Problem, alpha: float) -> None:
    rewards, lengths, offsets = flat(*problem)
    best, worst = best_and_worst(rewards, lengths, alpha, offsets)
    for i, (start, end) in enumerate(pairwise(offsets)):
        scored = (rewards[start:end] - alpha * lengths[start:end]).tolist()
        assert (best[i] - start, worst[i] - start) == (scored.index(max(scored)), scored.index(min(scored)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solve([], []), "no prompts"),
        (lambda: best_and_worst([], [], 0.0, [0]), "no prompts"),
        (lambda: solve([[1.0]], []), "rewards for 1 prompts but lengths for 0"),
        (lambda: solve([[1, 2], [3, 4]], [[1, 2], [3]]), "Prompt 1 has 2 rewards but 1 lengths"),
        (lambda: solve([[1, 2], [], [3]], [[1, 2], [], [3]]), "Prompt 1 has no responses"),
        (lambda: solve([[1], [2, math.nan]], [[1], [2, 3]]), "reward of response 1 of prompt 1 is nan"),
        (lambda: solve([[1], [2, 5]], [[1], [math.inf, 3]]), "length of response 0 of prompt 1 is inf"),
        (lambda: solve([[1e308, -1e308]], [[1, 2]]), "overflow"),
        (lambda: solve([[1, 2]], [[0, 5e-324]]), "overflow"),
        (lambda: solve_flat([1, 2], [1], [0, 2]), r"shape \(2,\) and lengths \(1,\)"),
        (lambda: solve_flat([[1, 2]], [[1, 2]], [0, 1]), "flat arrays"),
        (lambda: solve_flat([1, 2], [1, 2], [0, 1]), "offsets"),
        (lambda: solve_flat([1, 2], [1, 2], [1, 2]), "offsets"),
        (lambda: solve_flat([1, 2], [1, 2], [0.0, 2.0]), "offsets"),
        (lambda: solve_flat([1, 2], [1, 2], [0, 2, 1, 2]), "Prompt 1 has no responses"),
        (lambda: best_and_worst([1, 2], [1, 2], math.inf, [0, 2]), "alpha is inf"),
        (lambda: solve([[1, 2]], [[1, 2]]).difference_at(math.nan), "alpha is nan"),
    ],
)
def test_errors_say_where(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
