"""What suites measure, as rows of tables."""

from dataclasses import dataclass, field

from crosspref.maths.estimate import Change
from crosspref.reports.table import columns

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
class ModelChange:
    """By how many points a rate of ``model`` differs from that of ``other``, on the items known of both.

    Its p-value is two-sided, adjusted over languages by Holm. ``rate`` is what was measured: WR, LC, the scores of turn
    1, of turn 2, or overall, or a task and its measure, such as ``arc acc_norm``.
    """

    model: str
    other: str
    language: str
    rate: str
    change: Change = field(metadata=columns("difference", "low", "high", "p_value", "verdict", "n"))


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
