"""What suites measure, as rows of tables, and how these are written."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from crosspref.run.store import Unit, write_text
from crosspref.suites.spreadsheets import harmless

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
class Scores:
    """How a judge grades a model's answers in MT-Bench, from 1 to 10, in one language, or as the mean of languages.

    ``category`` is one of the questions', or ``all``. Of turns 1 and 2 the score is the mean over ``n_1`` and ``n_2``
    judgements, overall over both; with 95% intervals over questions, nan where there are none. Of the turns of
    ``questions``, ``failed`` ones have a judgement without a score, ``lacking`` ones are not in the replayed file,
    ``no_answer`` have no answer of the model, and ``no_reference`` were not judged for want of a reference answer;
    ``plain`` ones are among those judged, but without the reference that their category needs.
    """

    model: str
    language: str
    category: str
    questions: int
    n_1: int
    n_2: int
    failed: int
    lacking: int
    no_answer: int
    no_reference: int
    plain: int
    turn_1: float
    turn_1_low: float
    turn_1_high: float
    turn_2: float
    turn_2_low: float
    turn_2_high: float
    overall: float
    overall_low: float
    overall_high: float
    judge: str
    date: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """One turn of one question, answered by a model and graded by a judge.

    ``prompt`` names the prompt that the judge got; ``score`` is from 1 to 10, or nan, and then ``failure`` is why.
    ``key`` is the verdict's in the file of verdicts.
    """

    model: str
    language: str
    question_id: str
    category: str
    turn: int
    answer: str
    prompt: str
    score: float
    failure: str
    judgement: str
    judge: str
    date: str
    key: str


@dataclass(frozen=True, slots=True)
class Change:
    """By how many points a rate of ``model`` differs from that of ``other``, on the ``n`` items known of both.

    ``p_value`` is two-sided, adjusted over languages by Holm; ``verdict`` is ``better`` or ``worse`` only where the
    interval and it say so. ``rate`` is what was measured: WR, LC, the scores of turn 1, of turn 2, or overall, or a
    task and its measure, such as ``arc acc_norm``.
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


@dataclass(frozen=True, slots=True)
class ItemScore:
    """What one item of a task counts by one measure, from 0 to 1."""

    item: str
    measure: str
    value: float


@dataclass(frozen=True, slots=True)
class TaskScore:
    """What a model reaches in a task by one measure, in percent with a 95% interval, in a language or as their mean.

    The ends are nan for a single item.
    """

    model: str
    language: str
    task: str
    measure: str
    score: float
    low: float
    high: float
    n: int


_KINDS: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int32(), float: pa.float64()}


def results_table(rows: Sequence[Any], kind: type) -> pa.Table:
    """Return rows of one kind, all of whose columns are texts and numbers, as an Arrow table."""
    schema = pa.schema([(column.name, _KINDS[column.type]) for column in fields(kind)])
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)


def as_json(row: Any) -> dict[str, Any]:
    """Return a row's columns; what is nan is None."""
    return {name: None if value != value else value for name, value in asdict(row).items()}


def write_table(path: Path, rows: Sequence[Any], kind: type) -> None:
    """Write rows of one kind as ``path`` with the endings .parquet and .csv, in which texts are no formulas."""
    Unit(path.with_name(f"{path.name}.parquet")).write_table(results_table(rows, kind))
    text = io.StringIO()
    # All texts in quotes: before Python 3.13 one with a lone carriage return would get none, and end its row there.
    names = [field.name for field in fields(kind)]
    writer = csv.DictWriter(text, names, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    for row in rows:
        cells = {name: harmless(value) if isinstance(value, str) else value for name, value in as_json(row).items()}
        writer.writerow(cells)  # None is an empty cell
    write_text(path.with_name(f"{path.name}.csv"), text.getvalue())
