"""What every evaluation reports: a value with its interval, and a difference of two with what may be said of it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value that was estimated from ``n`` items, and the ends of its interval in the same unit.

    ``low`` and ``high`` are nan when the items say nothing about the spread, such as a single one; ``value`` is nan
    when there is none at all.
    """

    value: float
    low: float
    high: float
    n: int

    def text(self, form: str) -> str:
        """Return the value and its interval by a format specification, such as ".0%": as much of both as there is."""
        if math.isnan(self.value):
            return ""
        return f"{self.value:{form}}" + ("" if math.isnan(self.low) else f" [{self.low:{form}}, {self.high:{form}}]")


UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0)
"""Stands where there is nothing to estimate from."""

NO_DIFFERENCE = "no difference shown"
LEVEL = 0.05
"""The largest p-value of a difference that is called better or worse."""


@dataclass(frozen=True, slots=True)
class Change(Estimate):
    """A difference with its interval, its two-sided p-value (nan where it was not tested), and the word for a table."""

    p_value: float
    verdict: str

    @classmethod
    def of(cls, gap: Estimate, p_value: float | None = None) -> "Change":
        """Return a difference with its verdict: "better" or "worse" where its interval lies on one side of zero.

        With a ``p_value``, such as one adjusted by ``holm``, it must be at most ``LEVEL`` too. In all other cases, such
        as an unknown interval or p-value (nan), the verdict is "no difference shown".
        """
        shown = p_value is None or p_value <= LEVEL
        verdict = "better" if shown and gap.low > 0 else "worse" if shown and gap.high < 0 else NO_DIFFERENCE
        return cls(gap.value, gap.low, gap.high, gap.n, math.nan if p_value is None else p_value, verdict)
