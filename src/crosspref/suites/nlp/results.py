"""The results of the suite ``nlp``: scores, what an alignment changed, and what is missing."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from crosspref.data.items import Problems
from crosspref.maths.estimate import Estimate
from crosspref.maths.resampling import mean_over, rate_interval, resample_means
from crosspref.maths.statistics import sign_flip_test
from crosspref.reports.table import Report, columns, label, without_repeats
from crosspref.suites import results
from crosspref.suites.nlp.tasks import HUB, SHOTS, TITLES, TaskName, parts_of
from crosspref.suites.results import AT_THE_ENDS, MEAN, ModelChange, changes_of, changes_reports
from crosspref.suites.settings import EvaluationSettings
from crosspref.suites.work import Evaluation

BEFORE = ("pi_I", "pi_0")
"""The models that an alignment starts from: what a later one loses against them is its tax."""

Values = dict[str, float]
"""What each item counts, in percent."""

MEASURES = {
    "acc": "acc: the right choice is the likeliest",
    "acc_norm": "acc_norm: it is the likeliest per character",
    "mc1": "mc1: the one right choice is the likeliest of those of MC1",
    "mc2": "mc2: the probability of MC2's right choices among all of them",
}
INTERVALS = (
    "Percentages, with 95% bootstrap intervals over the items. They do not cover the wording of the prompt, nor the "
    "seed of a training. English is measured on the original data sets, other languages on translations of them. The "
    "mean is the plain mean of languages, of a model that was measured in all of them."
)
TAX = (
    "Differences in points, over the items that both were measured on, with 95% bootstrap intervals that resample "
    "items jointly for both models and, where items have the same id, all languages. p: two-sided, for a language by "
    "sign flips, adjusted over languages by Holm; for the mean from the resamples. better and worse stand only where "
    "the interval and p (at most 0.05) say so. No difference shown is not the same as none."
)


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
    score: Estimate = field(metadata=columns("score", "low", "high", "n"))


@dataclass
class Measured:
    """What was measured, by task, model, language and measure, and what was not, and why."""

    version: str
    languages: Sequence[str]
    values: dict[tuple[TaskName, str, str, str], Values] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    problems: dict[str, Problems] = field(default_factory=dict)

    def add(self, model: str, task: TaskName, language: str, rows: Sequence[ItemScore], cut: int = 0) -> None:
        """Add what one model scores on the items of a task in a language, and how many choices were cut."""
        counts = Counter[str]({"choices longer than the model's context, cut on the left": cut})
        for row in rows:
            if math.isfinite(row.value):
                self.values.setdefault((task, model, language, row.measure), {})[row.item] = 100 * row.value
            else:  # MC2 where the probability of every choice is too small for a number
                counts[f"items without a value of {row.measure}"] += 1
        self.problems[f"{model} {language} {task}"] = Problems(counts)

    def miss(self, where: str, reason: str, say: Callable[[str], None]) -> None:
        """Note what could not be measured, and say it once."""
        if self.missing.get(where) != reason:
            self.missing[where] = reason
            say(f"nlp {where} is not measured: {reason}")

    def lines(self) -> list[str]:
        """Return what is missing, a line each."""
        return [f"{where}: {reason}" for where, reason in self.missing.items()]


@dataclass(frozen=True, slots=True)
class _TaskResults:
    """The scores in one task, the languages of each model in order and their mean last, and what differs."""

    name: TaskName
    languages: list[str]
    scores: list[TaskScore]
    changes: list[ModelChange]


def write_results(work: Evaluation, measured: Measured) -> list[Report]:
    """Compute scores and changes, write the tables, and return the reports."""
    models = [candidate.name for candidate in work.target.models]
    names = {name for name, *_ in measured.values}
    tasks = [_compute(name, measured, models, work.settings) for name in work.settings.nlp.tasks if name in names]
    scores = [score for task in tasks for score in task.scores]
    changes = [change for task in tasks for change in task.changes]
    about = _about(work, measured, tasks)
    results.write_results(work.target.folder / "nlp" / "scores", TaskScore, scores, changes, about)
    reports = [_report(task, models) for task in tasks]
    reports[-1] = replace(reports[-1], notes=_notes(measured, scores))
    return reports + changes_reports("Alignment tax: what differs from pi_I and pi_0", changes, TAX)


def _compute(name: TaskName, measured: Measured, models: Sequence[str], settings: EvaluationSettings) -> _TaskResults:
    """Resample the items of one task, jointly over models, languages and measures, and over what differs."""
    languages = [one for one in measured.languages if any((name, one) == (key[0], key[2]) for key in measured.values)]
    values = {
        (model, language, measure): measured.values[name, model, language, measure]
        for language in languages
        for model in models
        for measure in MEASURES
        if (name, model, language, measure) in measured.values
    }
    pairs = [(model, start) for number, model in enumerate(models) for start in BEFORE if start in models[:number]]
    gaps = _gaps(values, pairs)
    draws = resample_means({**values, **gaps}, settings.resamples, settings.seed)
    scores, changes = [], []
    for model in models:
        for measure in MEASURES:
            known = {at: draws[model, at, measure] for at in languages if (model, at, measure) in values}
            items = max((one.n for one in known.values()), default=0)
            if len(known) == len(languages) > 1:
                known[MEAN] = mean_over(known.values())
            scores += [TaskScore(model, at, name, measure, rate_interval(one, items)) for at, one in known.items()]
    for model, other in pairs:
        for measure in MEASURES:
            keys = {at: (model, other, at, measure) for at in languages if (model, other, at, measure) in gaps}
            flips = [sign_flip_test([*gaps[key].values()], seed=settings.seed) for key in keys.values()]
            drawn = {language: draws[key] for language, key in keys.items()}
            changes += changes_of(model, other, f"{name} {measure}", drawn, flips)
    return _TaskResults(name, languages, scores, changes)


def _gaps(
    values: Mapping[tuple[str, str, str], Values], pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, ...], Values]:
    """Return the differences of two models on the items that both were measured on, by pair, language and measure."""
    gaps: dict[tuple[str, ...], Values] = {}
    for model, other in pairs:
        for (name, language, measure), items in values.items():
            theirs = values.get((other, language, measure), {}) if name == model else {}
            shared = {item: value - theirs[item] for item, value in items.items() if item in theirs}
            if shared:
                gaps[model, other, language, measure] = shared
    return gaps


def _report(task: _TaskResults, models: Sequence[str]) -> Report:
    """Return one task's table: languages in order and their mean last, within each the models."""
    by_key = {(row.language, row.model, row.measure): row.score for row in task.scores}
    measures = list(dict.fromkeys(row.measure for row in task.scores))
    cells = []
    for language in [*task.languages, MEAN]:
        for model in models:
            scores = [by_key.get((language, model, measure)) for measure in measures]
            texts = [score.text(".1f") if score else "" for score in scores]
            if any(texts):
                cells.append([label(language), model, *texts, str(max(score.n for score in scores if score))])
    return Report(f"NLP tasks: {TITLES[task.name]}", ["language", "model", *measures, "n"], without_repeats(cells), [])


def _notes(measured: Measured, rows: Iterable[TaskScore]) -> list[str]:
    measures = dict.fromkeys(row.measure for row in rows)
    meant = "; ".join(meaning for measure, meaning in MEASURES.items() if measure in measures)
    by = f"Share of items, by lm-evaluation-harness {measured.version}. {meant}. n: items."
    notes = [by, f"{INTERVALS} {AT_THE_ENDS}"]
    notes += [f"Not measured: {line}" for line in measured.lines()]
    return notes + [f"{where}: {problems}" for where, problems in measured.problems.items() if str(problems)]


def _about(work: Evaluation, measured: Measured, tasks: Sequence[_TaskResults]) -> dict[str, Any]:
    """Return what was measured, by what, and what could not be."""
    settings = work.settings
    return {
        "suite": "nlp",
        "lm_eval": measured.version,
        "tasks": {
            task.name: {
                "num_fewshot": SHOTS.get(task.name, 0),
                "names": {at: [part.name for part in parts_of(task.name, at)] for at in task.languages},
                **({} if settings.nlp.data else {"data_sets": HUB[task.name]}),
            }
            for task in tasks
        },
        "models": {one.name: one.files.identity if one.files else None for one in work.target.models},
        "settings": settings.nlp.model_dump(mode="json"),
        "seed": settings.seed,
        "resamples": settings.resamples,
        "missing": measured.missing,
        "problems": {where: dict(problems) for where, problems in measured.problems.items() if str(problems)},
    }
