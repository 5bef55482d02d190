"""The results of MT-Bench: graded turns, means of grades with intervals, what differs between models, and reports."""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crosspref.data.items import Problems
from crosspref.maths.estimate import UNKNOWN, Estimate
from crosspref.maths.resampling import Draws, difference, mean_over, percentile_interval, resample_means
from crosspref.maths.statistics import sign_flip_test
from crosspref.reports.table import Report, label, without_repeats
from crosspref.run.verdicts import Verdict
from crosspref.suites.judge.questions import LACKING, Question
from crosspref.suites.mtbench.files import TEMPERATURES, WITH_REFERENCE, TwoTurns
from crosspref.suites.mtbench.prompt import ask_about, describe_prompts
from crosspref.suites.results import (
    CHANGES,
    INTERVALS,
    MEAN,
    ModelChange,
    about_notes,
    by_language,
    changes_of,
    changes_reports,
    describe,
    pairs_of,
    write_results,
)
from crosspref.suites.work import Evaluation

NAME = "mtbench"
ALL = "all"
"""The "category" of all questions together."""

RATES = {"turn 1": (1,), "turn 2": (2,), "overall": (1, 2)}
"""Each score and the turns that it covers."""

NO_ANSWER, NO_REFERENCE = "no answer", "no reference"

MEANT = (
    "Scores are means of a judge's grades, from 1 to 10: of the answers to the first turn, to the second, and of both "
    "together (overall). n: grades behind overall; left out: turns without a grade that can be read, without an "
    "answer, or without the reference answer that they need. The mean is the plain mean of languages."
)
RESAMPLED = "A question is drawn with both of its turns, so that n grades count as no more than there are questions."
FEW = "Overall scores by category, of ten questions each where all were judged; the tables have their intervals."

Graded = tuple[str, str, str]
"""A model, a language (or the mean), and a category or all."""

Grades = dict[Hashable, list[float]]
"""The grades of each question, by id: a question's turns are resampled together."""


@dataclass
class Turn:
    """A model's answers to a question up to one turn (``number``, 1 or 2), and the judge's verdict on the last.

    There are fewer answers than ``number`` if the model gave none. ``failure`` says why there is no grade; it is empty
    if there is one. ``plain`` tells that the category needs a reference answer and the judge saw none.
    """

    model: str
    language: str
    question: TwoTurns
    number: int
    answers: tuple[str, ...]
    prompt: str = ""
    asked: Question | None = None
    verdict: Verdict | None = None
    failure: str = NO_ANSWER
    plain: bool = False

    def prepare(self, *, without_reference: bool) -> None:
        """Make the question to the judge, if there is something to judge."""
        if len(self.answers) < self.number:
            return
        missing = self.question.needs_references() and not self.question.has_references(self.number)
        if missing and not without_reference:
            self.failure = NO_REFERENCE
            return
        self.plain = missing
        self.prompt, self.asked = ask_about(self.question, self.number, self.answers)

    def take(self, verdict: Verdict | None) -> None:
        """Take the judge's verdict; None is one that is not in the replayed file."""
        self.verdict = verdict
        self.failure = LACKING if verdict is None else verdict.failure or ""

    @property
    def grade(self) -> float | None:
        """The grade from 1 to 10, if there is one."""
        return None if self.verdict is None else self.verdict.verdict

    def judgement(self) -> "Judgement":
        """Return the row of the table of judgements."""
        verdict = self.verdict
        return Judgement(
            model=self.model,
            language=self.language,
            question_id=self.question.question_id,
            category=self.question.category,
            turn=self.number,
            answer=self.answers[-1] if len(self.answers) == self.number else "",
            prompt=self.prompt,
            score=math.nan if self.grade is None else self.grade,
            failure=self.failure,
            judgement=(verdict.text or "") if verdict else "",
            judge=verdict.judge if verdict else "",
            date=verdict.date if verdict else "",
            key=verdict.key if verdict else "",
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """One turn of one question, answered by a model and graded by a judge.

    ``prompt`` names the prompt that the judge got. ``score`` is from 1 to 10, or nan, and then ``failure`` says why.
    ``key`` identifies the verdict in the file of verdicts.
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
class Scores:
    """How a judge grades a model's answers, from 1 to 10, in one language or on average over languages.

    ``category`` is a category of questions, or ``all``. The scores of turns 1 and 2 are means over ``n_1`` and ``n_2``
    grades, and ``overall`` is over both, with 95% intervals over questions. Of the turns, ``failed`` ones have a
    judgement without a score, ``lacking`` ones are not in the replayed file, ``no_answer`` ones have no answer, and
    ``no_reference`` ones were not judged because a reference answer is missing. ``plain`` ones were judged without the
    reference that their category needs.
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
    turn_1: Estimate
    turn_2: Estimate
    overall: Estimate
    judge: str
    date: str


def write(work: Evaluation, turns: Sequence[Turn], problems: Mapping[str, Problems]) -> list[Report]:
    """Compute the scores, write their tables, and return the reports."""
    settings = work.settings
    scores = measure(turns, settings.resamples, settings.seed)
    changes = compare(turns, settings.resamples, settings.seed)
    about = _about(work, turns, problems)
    write_results(work.target.folder / NAME / "scores", Scores, scores, changes, about)
    note = CHANGES.format(flipped="a score")
    differing = changes_reports("MT-Bench: what differs between models", changes, note, digits=2)
    return [scores_report(scores, about), category_report(scores), *differing]


def measure(turns: Sequence[Turn], resamples: int, seed: int) -> list[Scores]:
    """Return the scores of every model and language, by category and of all, and the plain means over languages.

    A score is the mean of the grades that could be read. Questions are resampled, each with both of its turns, jointly
    over models and languages.
    """
    graded: dict[Graded, list[Turn]] = {}
    for turn in turns:
        for category in dict.fromkeys((ALL, turn.question.category)):
            graded.setdefault((turn.model, turn.language, category), []).append(turn)
    draws = _resampled(graded, resamples, seed)
    models, categories = (list(dict.fromkeys(key[place] for key in graded)) for place in (0, 2))
    several = {model for model in models if len({language for name, language, _ in graded if name == model}) > 1}
    for model, category in itertools.product(models, categories):
        keys = [key for key in graded if (key[0], key[2]) == (model, category) and model in several]
        for rate in RATES:
            known = [draws[*key, rate] for key in keys if (*key, rate) in draws]
            draws |= {(model, MEAN, category, rate): mean_over(known)} if known else {}
        graded |= {(model, MEAN, category): [turn for key in keys for turn in graded[key]]} if keys else {}
    order = [ALL, *TEMPERATURES, *sorted(set(categories) - {ALL, *TEMPERATURES})]
    scores = [_scores(*key, group, [draws.get((*key, rate)) for rate in RATES]) for key, group in graded.items()]
    return sorted(scores, key=lambda row: (order.index(row.category), models.index(row.model)))


def _resampled(graded: Mapping[Graded, Sequence[Turn]], resamples: int, seed: int) -> dict[tuple[str, ...], Draws]:
    """Return the draws of each rate that has a grade, by model, language, category, and rate."""
    grades = {(*key, rate): grades_of(turns, rate) for key, turns in graded.items() for rate in RATES}
    return resample_means({key: values for key, values in grades.items() if values}, resamples, seed)


def grades_of(turns: Sequence[Turn], rate: str) -> Grades:
    """Return the grades that count for a rate, by question."""
    grades: Grades = {}
    for turn in turns:
        if turn.number in RATES[rate] and turn.grade is not None:
            grades.setdefault(turn.question.question_id, []).append(turn.grade)
    return grades


def _scores(model: str, language: str, category: str, turns: Sequence[Turn], draws: Sequence[Draws | None]) -> Scores:
    turn_1, turn_2, overall = (UNKNOWN if one is None else percentile_interval(one) for one in draws)
    why = Counter(turn.failure for turn in turns if turn.failure)
    return Scores(
        model=model,
        language=language,
        category=category,
        questions=len(turns) // 2,
        n_1=sum(turn.grade is not None for turn in turns if turn.number == 1),
        n_2=sum(turn.grade is not None for turn in turns if turn.number == 2),
        failed=why.total() - why[LACKING] - why[NO_ANSWER] - why[NO_REFERENCE],
        lacking=why[LACKING],
        no_answer=why[NO_ANSWER],
        no_reference=why[NO_REFERENCE],
        plain=sum(turn.plain and turn.grade is not None for turn in turns),
        turn_1=turn_1,
        turn_2=turn_2,
        overall=overall,
        judge=", ".join(dict.fromkeys(turn.verdict.judge for turn in turns if turn.verdict)),
        date=max((turn.verdict.date for turn in turns if turn.verdict), default=""),
    )


def compare(turns: Sequence[Turn], resamples: int, seed: int) -> list[ModelChange]:
    """Return what differs between models, over the turns that were graded for both."""
    graded: dict[tuple[str, str], dict[tuple[str, int], Turn]] = {}
    for turn in turns:
        by_place = graded.setdefault((turn.model, turn.language), {})
        if turn.grade is not None:
            by_place[turn.question.question_id, turn.number] = turn
    languages = list(dict.fromkeys(turn.language for turn in turns))
    changes = []
    for model, other in pairs_of(list(dict.fromkeys(turn.model for turn in turns))):
        shared: dict[Graded, list[Turn]] = {}
        for language in languages:
            ours, theirs = graded[model, language], graded[other, language]
            shared[model, language, ALL] = [turn for place, turn in ours.items() if place in theirs]
            shared[other, language, ALL] = [turn for place, turn in theirs.items() if place in ours]
        draws = _resampled(shared, resamples, seed)
        for rate in RATES:
            gaps, flips = {}, []
            for language in languages:
                left, right = (model, language, ALL), (other, language, ALL)
                if (*left, rate) in draws:
                    gaps[language] = difference(draws[*left, rate], draws[*right, rate])
                    flips.append(_flip_test(grades_of(shared[left], rate), grades_of(shared[right], rate), seed))
            changes += changes_of(model, other, rate, gaps, flips)
    return changes


def _flip_test(left: Grades, right: Grades, seed: int) -> float:
    """Return the p-value by sign flips of whole questions: the differences of both turns change sign together."""
    return sign_flip_test([sum(grades) - sum(right[name]) for name, grades in left.items()], seed=seed)


def _about(work: Evaluation, turns: Sequence[Turn], problems: Mapping[str, Problems]) -> dict[str, Any]:
    """Return who judged what and how, and what could not be used."""
    failures: dict[str, Counter[str]] = {}
    for turn in turns:
        if turn.failure:
            failures.setdefault(f"{turn.model} {turn.language}", Counter())[f"turns: {turn.failure}"] += 1
    prompts = {"prompts": describe_prompts(), "temperatures": TEMPERATURES, "with_reference": list(WITH_REFERENCE)}
    about = describe(work, NAME, prompts, failures, problems)
    about["answers"].pop("temperature", None)  # each category has its own
    return about


def scores_report(rows: Sequence[Scores], about: Mapping[str, Any]) -> Report:
    """Return the table of scores over all categories, by language and within each by model."""
    cells = []
    whole = [row for row in rows if row.category == ALL]
    for row in by_language(whole):
        scores = [score.text(".2f") for score in (row.turn_1, row.turn_2, row.overall)]
        graded = row.n_1 + row.n_2
        cells.append([label(row.language), row.model, *scores, str(graded), str(2 * row.questions - graded)])
    header = ["language", "model", *RATES, "n", "left\nout"]
    judges = ", ".join(dict.fromkeys(row.judge for row in whole if row.judge))
    notes = [MEANT, f"{INTERVALS} {RESAMPLED}", *about_notes(about)]
    return Report(f"MT-Bench: judged by {judges}", header, without_repeats(cells), notes)


def category_report(rows: Sequence[Scores]) -> Report:
    """Return the overall score of each category."""
    categories = list(dict.fromkeys(row.category for row in rows if row.category != ALL))
    means = {(row.language, row.model, row.category): row.overall.value for row in rows if row.overall.n}
    cells = []
    for row in by_language([row for row in rows if row.category == ALL]):
        by_category = [means.get((row.language, row.model, category)) for category in categories]
        cells.append([label(row.language), row.model, *("" if mean is None else f"{mean:.2f}" for mean in by_category)])
    return Report("MT-Bench by category", ["language", "model", *categories], without_repeats(cells), [FEW])
