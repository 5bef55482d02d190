"""The results of MT-Bench: means of grades with intervals, what differs between models, as tables and reports."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crosspref.data.items import Problems
from crosspref.maths.resampling import Draws, difference, mean_over, percentile_interval, resample_means
from crosspref.maths.statistics import sign_flip_test
from crosspref.reports.table import Report, as_json, write_table
from crosspref.run.store import write_text
from crosspref.suites.differences import changes_of, pairs_of
from crosspref.suites.judge.questions import LACKING
from crosspref.suites.mtbench.files import TEMPERATURES, WITH_REFERENCE
from crosspref.suites.mtbench.prompt import describe_prompts
from crosspref.suites.mtbench.report import make_category_report, make_report
from crosspref.suites.mtbench.turn import NO_ANSWER, NO_REFERENCE, Turn
from crosspref.suites.reports import CHANGES, make_changes_report
from crosspref.suites.results import MEAN, Judgement, ModelChange, Scores
from crosspref.suites.work import Evaluation

ALL = "all"
RATES = {"turn 1": (1,), "turn 2": (2,), "overall": (1, 2)}
"""What is measured, and over which turns."""

Key = tuple[str, str, str]
"""A model, a language, and a category or all."""

Grades = dict[Hashable, list[float]]
"""The grades of each question, by id: a question's turns are resampled together."""


def write_judgements(work: Evaluation, turns: Sequence[Turn]) -> Path:
    """Write what the judge said of each answer, and return the file for people."""
    path = work.target.folder / "mtbench" / "judgements"
    write_table(path, [turn.row() for turn in turns], Judgement)
    return path.with_suffix(".csv")


def write_results(work: Evaluation, turns: Sequence[Turn], problems: Mapping[str, Problems]) -> list[Report]:
    """Compute the scores, write their tables, and return the reports."""
    settings, folder = work.settings, work.target.folder / "mtbench"
    scores = measure(turns, settings.resamples, settings.seed)
    changes = compare(turns, settings.resamples, settings.seed)
    about = _about(work, turns, problems)
    write_table(folder / "scores", scores, Scores)
    write_table(folder / "changes", changes, ModelChange)
    content = {**about, "rows": [as_json(row) for row in scores], "changes": [as_json(row) for row in changes]}
    write_text(folder / "scores.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    reports = [make_report(scores, about), make_category_report(scores)]
    if changes:
        note = CHANGES.format(flipped="a score")
        reports.append(make_changes_report("MT-Bench: what differs between models", changes, note, digits=2))
    return reports


def measure(turns: Sequence[Turn], resamples: int, seed: int) -> list[Scores]:
    """Return the scores of every model and language, by category and of all, and the plain means over languages.

    A score is the mean of the grades that could be read. Questions are resampled, each with both of its turns, jointly
    over models and languages.
    """
    cells: dict[Key, list[Turn]] = {}
    for turn in turns:
        for category in dict.fromkeys((ALL, turn.question.category)):
            cells.setdefault((turn.model, turn.language, category), []).append(turn)
    draws = _resampled(cells, resamples, seed)
    found = [_scores(*key, own, {rate: draws.get((*key, rate)) for rate in RATES}) for key, own in cells.items()]
    models, categories = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 2))
    for model, category in itertools.product(models, categories):
        keys = [key for key in cells if (key[0], key[2]) == (model, category)]
        if len({language for name, language, _ in cells if name == model}) > 1 and keys:
            known = {rate: [draws[*key, rate] for key in keys if (*key, rate) in draws] for rate in RATES}
            means = {rate: mean_over(every) if every else None for rate, every in known.items()}
            found.append(_scores(model, MEAN, category, [turn for key in keys for turn in cells[key]], means))
    order = [ALL, *TEMPERATURES, *sorted(set(categories) - {ALL, *TEMPERATURES})]
    return sorted(found, key=lambda row: (order.index(row.category), models.index(row.model)))


def _resampled(cells: Mapping[Key, Sequence[Turn]], resamples: int, seed: int) -> dict[tuple[str, ...], Draws]:
    """Return the draws of each rate of every cell that has a grade, by the cell's key and the rate."""
    grades = {(*key, rate): grades_of(own, rate) for key, own in cells.items() for rate in RATES}
    return resample_means({key: values for key, values in grades.items() if values}, resamples, seed)


def grades_of(turns: Sequence[Turn], rate: str) -> Grades:
    """Return the grades that count for a rate, by question."""
    found: Grades = {}
    for turn in turns:
        if turn.number in RATES[rate] and turn.grade is not None:
            found.setdefault(turn.question.question_id, []).append(turn.grade)
    return found


def _scores(
    model: str, language: str, category: str, turns: Sequence[Turn], draws: Mapping[str, Draws | None]
) -> Scores:
    figures: dict[str, float] = {}
    for rate, drawn in draws.items():
        name = rate.replace(" ", "_")
        figures |= {name: math.nan, f"{name}_low": math.nan, f"{name}_high": math.nan}
        if drawn is not None:
            interval = percentile_interval(drawn)
            figures |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    why = Counter(turn.failure for turn in turns if turn.failure)
    return Scores(
        model=model,
        language=language,
        category=category,
        questions=len(turns) // 2,
        n_1=sum(turn.grade is not None for turn in turns if turn.number == 1),
        n_2=sum(turn.grade is not None for turn in turns if turn.number == 2),
        failed=sum(why.values()) - why[LACKING] - why[NO_ANSWER] - why[NO_REFERENCE],
        lacking=why[LACKING],
        no_answer=why[NO_ANSWER],
        no_reference=why[NO_REFERENCE],
        plain=sum(turn.plain and turn.grade is not None for turn in turns),
        **figures,
        judge=", ".join(dict.fromkeys(turn.verdict.judge for turn in turns if turn.verdict)),
        date=max((turn.verdict.date for turn in turns if turn.verdict), default=""),
    )


def compare(turns: Sequence[Turn], resamples: int, seed: int) -> list[ModelChange]:
    """Return what differs between models, over the turns of questions that both were graded on."""
    graded: dict[tuple[str, str], dict[tuple[str, int], Turn]] = {}
    for turn in turns:
        own = graded.setdefault((turn.model, turn.language), {})
        if turn.grade is not None:
            own[turn.question.question_id, turn.number] = turn
    languages = list(dict.fromkeys(turn.language for turn in turns))
    found = []
    for pair in pairs_of(list(dict.fromkeys(turn.model for turn in turns))):
        shared: dict[Key, list[Turn]] = {}
        for language in languages:
            ours, theirs = (graded[name, language] for name in pair)
            shared[pair[0], language, ALL] = [turn for place, turn in ours.items() if place in theirs]
            shared[pair[1], language, ALL] = [turn for place, turn in theirs.items() if place in ours]
        draws = _resampled(shared, resamples, seed)
        for rate in RATES:
            gaps, flips = {}, []
            for language in languages:
                left, right = ((name, language, ALL) for name in pair)
                if (*left, rate) in draws:
                    gaps[language] = difference(draws[*left, rate], draws[*right, rate])
                    flips.append(_flip_test(grades_of(shared[left], rate), grades_of(shared[right], rate), seed))
            found += changes_of(*pair, rate, gaps, flips)
    return found


def _flip_test(left: Grades, right: Grades, seed: int) -> float:
    """Return the p-value by sign flips of whole questions: what a question's turns differ by changes sign together."""
    return sign_flip_test([sum(grades) - sum(right[name]) for name, grades in left.items()], seed=seed)


def _about(work: Evaluation, turns: Sequence[Turn], problems: Mapping[str, Problems]) -> dict[str, Any]:
    """Return who judged what and how, and what could not be used."""
    failures: dict[str, Counter[str]] = {}
    for turn in turns:
        if turn.failure:
            failures.setdefault(f"{turn.model} {turn.language}", Counter())[f"turns: {turn.failure}"] += 1
    settings = work.settings
    return {
        "suite": "mtbench",
        "judge": work.judge.describe(),
        "prompts": describe_prompts(),
        "temperatures": TEMPERATURES,
        "with_reference": list(WITH_REFERENCE),
        "answers": settings.answers.model_dump(mode="json", exclude={"temperature"}),
        "settings": settings.mtbench.model_dump(mode="json"),
        "seed": settings.seed,
        "resamples": settings.resamples,
        "failures": {where: dict(counts) for where, counts in failures.items()},
        "problems": {language: dict(found.counts) for language, found in problems.items() if str(found)},
    }
