"""The results that all evaluations report: values with intervals, and differences with a verdict."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value estimated from ``n`` items, and the ends of its interval in the same unit.

    ``low`` and ``high`` are nan if the items say nothing about the spread, for example a single item. ``value`` is nan
    if there are no items.
    """

    value: float
    low: float
    high: float
    n: int

    def text(self, form: str) -> str:
        """Return the value and its interval in a format such as ".0%". Unknown parts are left out."""
        if math.isnan(self.value):
            return ""
        return f"{self.value:{form}}" + ("" if math.isnan(self.low) else f" [{self.low:{form}}, {self.high:{form}}]")


CONFIDENCE = 0.95
"""The level of every interval that is reported."""

UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0)
"""The estimate from no items."""

NO_DIFFERENCE = "no difference shown"
LEVEL = 0.05
"""The largest p-value of a difference that is called better or worse."""


@dataclass(frozen=True, slots=True)
class Change(Estimate):
    """A difference with its interval, its two-sided p-value (nan if not tested) and a verdict for tables."""

    p_value: float
    verdict: str

    @classmethod
    def of(cls, gap: Estimate, p_value: float | None = None) -> "Change":
        """Return a difference with its verdict: "better" or "worse" if its interval is on one side of zero.

        If there is a ``p_value``, such as one adjusted by ``holm``, it must also be at most ``LEVEL``. Otherwise, and
        for an unknown interval or p-value (nan), the verdict is "no difference shown".
        """
        shown = p_value is None or p_value <= LEVEL
        verdict = "better" if shown and gap.low > 0 else "worse" if shown and gap.high < 0 else NO_DIFFERENCE
        return cls(gap.value, gap.low, gap.high, gap.n, math.nan if p_value is None else p_value, verdict)
