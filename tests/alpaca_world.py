"""Made-up verdicts from a population whose win rates can be known: draw many items."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from crosspref.maths.alpaca import Comparisons, Gamed, WinRates, length_controlled_rates, win_rates


def draw_gamed(items: int, seed: int = 7) -> Gamed:
    """Verdicts on long and on short answers to the same items."""
    draw = np.random.default_rng(seed)
    difficulty = np.tile(draw.normal(0, 1.2, items), 2)
    lengths = np.concatenate([draw.normal(-0.6, 1, items), draw.normal(0.9, 1, items)])
    outcomes = expit(0.9 * difficulty - 1.5 * np.tanh(lengths) + draw.normal(0, 1.5, 2 * items))
    return Gamed(outcomes, lengths, difficulty)


def draw_comparisons(
    draw: np.random.Generator, items: int, skills: Sequence[float], gamed: Gamed | None = None
) -> list[Comparisons]:
    """One model (or language) per skill on the same items, which all find hard or easy together."""
    difficulty, shared = draw.normal(0, 1.2, items), draw.normal(0, 1, items)
    comparisons = []
    for skill in skills:
        model, baseline = (np.floor(np.exp(draw.normal(mean, 0.6, items))) for mean in (7.5, 7.3))
        logits = skill + 0.8 * difficulty - 1.2 * np.tanh((baseline - model) / 1000) + shared
        outcomes = expit(2 * (logits + draw.normal(0, 1.5, items)))
        outcomes[draw.random(items) < 0.05] = 0.5
        comparisons.append(Comparisons(tuple(range(items)), outcomes, model, baseline, difficulty, gamed))
    return comparisons


def refitted(compared: Comparisons, C: float) -> tuple[Comparisons, WinRates]:  # noqa: N803 - scikit-learn's name
    """A model's verdicts and its win rates, the length-controlled one for a given strength of regularisation."""
    rate = length_controlled_rates(compared, C, np.ones((1, len(compared.items))))[0]
    return compared, dataclasses.replace(win_rates(compared), lc=float(rate), C=C)
