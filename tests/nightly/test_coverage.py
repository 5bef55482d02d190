"""By simulation: intervals hold the truth, and tests reject it, as often as they promise."""

import math

import numpy as np
import pytest
from alpaca_world import draw_comparisons, draw_gamed, refitted

from crosspref.maths.alpaca import length_controlled_rates
from crosspref.maths.estimate import Estimate
from crosspref.maths.resampling import difference, mean_over, percentile_interval, resample, win_rate_interval
from crosspref.maths.statistics import newcombe_interval, sign_flip_test, wilson_interval

C = 20.0


def holds(interval: Estimate, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def test_joint_intervals_of_win_rates() -> None:
    """95% intervals of WR, LC, their paired differences and joint means hold the truth 93% to 97% of the time."""
    items, skills, gamed = 150, (-1.0, -0.7), draw_gamed(50)
    population = draw_comparisons(np.random.default_rng(1), 100_000, skills, gamed)
    true_rates = [100 * compared.outcomes.mean() for compared in population]
    weights = np.full((1, 100_000), items / 100_000)
    true_lc = [length_controlled_rates(compared, C, weights)[0] for compared in population]
    draw = np.random.default_rng(2)
    hits: dict[str, list[bool]] = {}
    apart = []
    for repetition in range(500):
        samples = draw_comparisons(draw, items, skills, gamed)
        cells = dict(enumerate(refitted(compared, C) for compared in samples))
        resampled = resample(cells, 400, repetition)
        for name, draws, truth in (
            ("WR", [resampled[0].win_rate, resampled[1].win_rate], true_rates),
            ("LC", [resampled[0].lc, resampled[1].lc], true_lc),
        ):
            hits.setdefault(name, []).append(holds(percentile_interval(draws[0]), truth[0]))
            hits.setdefault(f"{name} gap", []).append(
                holds(percentile_interval(difference(*draws)), truth[0] - truth[1])
            )
            hits.setdefault(f"{name} mean", []).append(holds(percentile_interval(mean_over(draws)), np.mean(truth)))
        separately = resample({1: cells[1]}, 400, repetition + 1000)[1].win_rate
        apart.append(holds(percentile_interval(mean_over([resampled[0].win_rate, separately])), np.mean(true_rates)))
    shares = {name: np.mean(each) for name, each in hits.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares
    # Languages resampled by themselves forget that an item is hard in all of them.
    assert np.mean(apart) < shares["WR mean"] - 0.01


@pytest.mark.parametrize("skill", [-1.0, -4.5])
def test_interval_of_a_single_win_rate(skill: float) -> None:
    truth = 100 * draw_comparisons(np.random.default_rng(3), 400_000, [skill])[0].outcomes.mean()
    draw = np.random.default_rng(4)
    outcomes = [draw_comparisons(draw, 300, [skill])[0].outcomes for _ in range(1500)]
    hits = [holds(win_rate_interval(each, resamples=400, seed=one), truth) for one, each in enumerate(outcomes)]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_sign_flips_reject_the_truth_as_often_as_they_say() -> None:
    draw = np.random.default_rng(1)
    p_values = np.array([sign_flip_test(draw.normal(0, 1, 30), resamples=199, seed=one) for one in range(1000)])
    for level in (0.05, 0.2, 0.5):
        assert (p_values <= level).mean() == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / 1000))


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0])
def test_wilson_with_both_orders(spread: float) -> None:
    """Items differ in how clear they are: a little, so that orders are nearly independent, up to agreeing surely."""
    draw = np.random.default_rng(0)
    truth = float((1 / (1 + np.exp(-draw.normal(0.5, spread, 1_000_000)))).mean())
    hits, naive = [], []
    clusters = np.repeat(np.arange(100), 2).tolist()
    for _ in range(2000):
        chances = 1 / (1 + np.exp(-draw.normal(0.5, spread, 100)))
        outcomes = (draw.random((100, 2)) < chances[:, None]).astype(float).ravel()
        hits.append(holds(wilson_interval(outcomes, clusters), truth))
        naive.append(holds(wilson_interval(outcomes), truth))
    assert 0.93 <= np.mean(hits) <= 0.97
    if spread > 1:
        assert np.mean(naive) < 0.92


@pytest.mark.parametrize(("left", "right"), [(0.61, 0.66), (0.5, 0.5), (0.9, 0.8)])
def test_the_difference_of_two_shares(left: float, right: float) -> None:
    draw, hits = np.random.default_rng(8), []
    for _ in range(1500):
        one, other = (wilson_interval((draw.random(100) < share).astype(float)) for share in (left, right))
        hits.append(holds(newcombe_interval(one, other), left - right))
    assert 0.93 <= np.mean(hits) <= 0.97
