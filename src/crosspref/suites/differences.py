"""What differs between models, as rows of a table: by language and as the mean over languages."""

from collections.abc import Mapping, Sequence

import numpy as np

from crosspref.maths.estimate import Change
from crosspref.maths.resampling import Draws, mean_over, percentile_interval
from crosspref.maths.statistics import holm
from crosspref.suites.results import MEAN, ModelChange


def pairs_of(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return which models are compared: each with the one before, and with pi_0 where that is another one."""
    pairs = list(zip(models[1:], models, strict=False))
    later = models[models.index("pi_0") + 2 :] if "pi_0" in models else []
    return [*pairs, *((model, "pi_0") for model in later)]


def changes_of(
    model: str, other: str, rate: str, gaps: Mapping[str, Draws], p_values: Sequence[float], *, with_mean: bool = True
) -> list[ModelChange]:
    """Return the differences of two models in one rate.

    Args:
        model: the one model.
        other: the other one, which is subtracted.
        rate: what is compared.
        gaps: the difference in each language, drawn jointly.
        p_values: one per language, two-sided; they are adjusted by Holm.
        with_mean: whether the mean over languages follows, where there are several.
    """
    adjusted = [float(p) for p in holm(p_values)] if p_values else []
    tested = [(language, gap, p) for (language, gap), p in zip(gaps.items(), adjusted, strict=True)]
    if with_mean and len(gaps) > 1:
        mean = mean_over(gaps.values())
        # Languages may have the same items, of which there are then no more than in the largest.
        tested.append((MEAN, mean, max(two_sided(mean), _least(max(gap.n for gap in gaps.values())))))
    return [
        ModelChange(model, other, language, rate, Change.of(percentile_interval(gap), p_value))
        for language, gap, p_value in tested
    ]


def two_sided(draws: Draws) -> float:
    """Return the bootstrap's two-sided p-value of no difference; 1 where too many resamples have no value.

    Of few items, all of which may differ in the same way, it is not smaller than sign flips could make it.
    """
    known = draws.values[np.isfinite(draws.values)]
    if not known.size or known.size < 0.99 * draws.values.size:
        return 1.0
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, max(2 * (tail + 1) / (known.size + 1), _least(draws.n))))


def _least(items: int) -> float:
    """Return the smallest two-sided p-value that flipping the signs of so many items can give."""
    return 2.0 ** (1 - min(items, 1000))
