"""What suites measure, as rows of tables."""

from dataclasses import dataclass

import pyarrow as pa

from crosspref.records import SCHEMAS

MEAN = "mean"
"""Stands in the place of the language for the plain mean over languages."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often a judge prefers a model's answers to a baseline's, in one language, or as the mean of languages.

    Rates are percentages with 95% intervals, nan where there are none. ``lc_kind`` is ``LC``, ``LC-noreg`` for a fit
    without the gamed rows, or ``none``. ``n`` are the preferences, ``ties`` those that are ties; ``failed`` answers of
    the judge could not be read, ``lacking`` ones are not in the replayed file; ``no_answer`` and ``no_baseline`` items
    have no answer of the model, of the baseline. Lengths are means in characters over the items that count.
    """

    model: str
    language: str
    items: int
    n: int
    ties: int
    failed: int
    lacking: int
    no_answer: int
    no_baseline: int
    wr: float
    wr_low: float
    wr_high: float
    lc: float
    lc_low: float
    lc_high: float
    lc_kind: str
    length: float
    baseline_length: float
    baseline: str
    judge: str
    date: str


@dataclass(frozen=True, slots=True)
class Change:
    """By how many points a rate of ``model`` differs from that of ``other``, on the ``n`` items judged of both.

    ``p_value`` is two-sided, adjusted over languages by Holm; ``verdict`` is ``better`` or ``worse`` only where the
    interval and it say so. ``rate`` is WR or LC.
    """

    model: str
    other: str
    language: str
    rate: str
    difference: float
    low: float
    high: float
    p_value: float
    verdict: str
    n: int


_KINDS = {str: pa.string(), int: pa.int32(), float: pa.float64()}
for _row in (WinRate, Change):
    SCHEMAS[_row] = pa.schema([(name, _KINDS[kind]) for name, kind in _row.__annotations__.items()])
