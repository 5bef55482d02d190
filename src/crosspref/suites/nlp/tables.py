"""The results of the suite ``nlp``: scores, what an alignment changed, and what is missing."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from crosspref.data.items import Problems
from crosspref.languages import LANGUAGES
from crosspref.maths.resampling import Draws, mean_over, percentile_interval, resample_means
from crosspref.maths.statistics import sign_flip_test
from crosspref.reports.table import Report, as_json, write_table
from crosspref.run.store import write_text
from crosspref.suites.nlp.tasks import HUB, SHOTS, TITLES, TaskName, parts_of
from crosspref.suites.results import MEAN, ItemScore, ModelChange, TaskScore, changes_of, changes_report
from crosspref.suites.work import Evaluation

BEFORE = ("pi_I", "pi_0")
"""The models that an alignment starts from: what a later one loses against them is its tax."""

Values = dict[str, float]
"""What each item counts, in percent."""

Key = tuple[str, ...]
"""A model, a language and a measure; or a model, the one it is compared with, a language and a measure."""

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


@dataclass
class Found:
    """What was measured, by task, language, model and measure, and what was not, and why."""

    version: str
    languages: Sequence[str]
    values: dict[TaskName, dict[str, dict[str, dict[str, Values]]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    problems: dict[str, Problems] = field(default_factory=dict)

    def add(self, model: str, task: TaskName, language: str, rows: Sequence[ItemScore], cut: int = 0) -> None:
        """Take what one model counts on the items of a task in a language, and how many choices were cut."""
        own = self.values.setdefault(task, {}).setdefault(language, {}).setdefault(model, {})
        counts = Counter[str]({"choices longer than the model's context, cut on the left": cut})
        for row in rows:
            if math.isfinite(row.value):
                own.setdefault(row.measure, {})[row.item] = 100 * row.value
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
class _Task:
    """One task, whose items are resampled together: its draws by (model, language, measure)."""

    name: TaskName
    languages: list[str]
    scores: Mapping[Key, Draws]
    changes: list[ModelChange]


def write_results(work: Evaluation, found: Found) -> list[Report]:
    """Compute scores and changes, write the tables, and return the reports."""
    models, settings = [candidate.name for candidate in work.target.models], work.settings
    order = [name for name in settings.nlp.tasks if name in found.values]
    tasks = [_measured(name, found, models, settings.resamples, settings.seed) for name in order]
    rows = [row for task in tasks for row in _rows(task, models)]
    changes = [change for task in tasks for change in task.changes]
    folder = work.target.folder / "nlp"
    write_table(folder / "scores", rows, TaskScore)
    write_table(folder / "changes", changes, ModelChange)
    content = {
        **_about(work, found, tasks),
        "rows": [as_json(row) for row in rows],
        "changes": [as_json(row) for row in changes],
    }
    write_text(folder / "scores.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    reports = [_report(task, rows, models) for task in tasks]
    if changes:
        reports.append(changes_report("Alignment tax: what differs from pi_I and pi_0", changes, TAX))
    reports[len(tasks) - 1] = replace(reports[len(tasks) - 1], notes=_notes(found, rows))
    return reports


def _measured(name: TaskName, found: Found, models: Sequence[str], resamples: int, seed: int) -> _Task:
    """Resample the items of one task, jointly over models, languages and measures, and over what differs."""
    values = found.values[name]
    languages = [language for language in found.languages if language in values]
    own: dict[Key, Values] = {
        (model, language, measure): items
        for language in languages
        for model in models
        for measure, items in values[language].get(model, {}).items()
    }
    gaps = _gaps(own, _pairs(models))
    draws = resample_means({**own, **gaps}, resamples, seed)
    changes = []
    for model, other in _pairs(models):
        for measure in dict.fromkeys(key[3] for key in gaps):
            keys = {at: (model, other, at, measure) for at in languages if (model, other, at, measure) in gaps}
            known = {language: draws[key] for language, key in keys.items()}
            flips = [sign_flip_test([*gaps[key].values()], seed=seed) for key in keys.values()]
            changes += changes_of(model, other, f"{name} {measure}", known, flips)
    return _Task(name, languages, {key: draws[key] for key in own}, changes)


def _gaps(own: Mapping[Key, Values], pairs: Sequence[tuple[str, str]]) -> dict[Key, Values]:
    """Return the differences of two models on the items that both were measured on, by pair, language and measure."""
    found: dict[Key, Values] = {}
    for model, other in pairs:
        for (name, language, measure), items in own.items():
            theirs = own.get((other, language, measure), {}) if name == model else {}
            shared = {item: value - theirs[item] for item, value in items.items() if item in theirs}
            if shared:
                found[model, other, language, measure] = shared
    return found


def _pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return each model with the ones that its alignment started from."""
    return [(model, start) for number, model in enumerate(models) for start in BEFORE if start in models[:number]]


def _rows(task: _Task, models: Sequence[str]) -> list[TaskScore]:
    """Return the scores, the languages of each model in order and their mean last, where it has all."""
    rows = []
    for model in models:
        for measure in dict.fromkeys(key[2] for key in task.scores):
            own = {at: task.scores[model, at, measure] for at in task.languages if (model, at, measure) in task.scores}
            rows += [_row(model, language, task.name, measure, draws) for language, draws in own.items()]
            if len(own) == len(task.languages) > 1:
                rows.append(_row(model, MEAN, task.name, measure, mean_over(own.values())))
    return rows


def _row(model: str, language: str, task: str, measure: str, draws: Draws) -> TaskScore:
    interval = percentile_interval(draws)
    return TaskScore(model, language, task, measure, interval.value, interval.low, interval.high, interval.n)


def _report(task: _Task, rows: Sequence[TaskScore], models: Sequence[str]) -> Report:
    """Return one task's table: languages in order and their mean last, within each the models."""
    own = {(row.language, row.model, row.measure): row for row in rows if row.task == task.name}
    measures = list(dict.fromkeys(measure for _, _, measure in own))
    cells = []
    for language in [*task.languages, MEAN]:
        there = [model for model in models if any((language, model, measure) in own for measure in measures)]
        for model in there:
            found = [own.get((language, model, measure)) for measure in measures]
            name = f"{language} {LANGUAGES.get(language, '')}".strip() if model == there[0] else ""
            cells.append([name, model, *map(_cell, found), str(max(row.n for row in found if row))])
    return Report(f"NLP tasks: {TITLES[task.name]}", ["language", "model", *measures, "n"], cells, [])


def _cell(row: TaskScore | None) -> str:
    if row is None:
        return ""
    return f"{row.score:.1f}" if row.low != row.low else f"{row.score:.1f} [{row.low:.1f}, {row.high:.1f}]"


def _notes(found: Found, rows: Iterable[TaskScore]) -> list[str]:
    measures = dict.fromkeys(row.measure for row in rows)
    meant = "; ".join(meaning for measure, meaning in MEASURES.items() if measure in measures)
    notes = [f"Share of items, by lm-evaluation-harness {found.version}. {meant}. n: items.", INTERVALS]
    notes += [f"Not measured: {line}" for line in found.lines()]
    return notes + [f"{where}: {problems}" for where, problems in found.problems.items() if str(problems)]


def _about(work: Evaluation, found: Found, tasks: Sequence[_Task]) -> dict[str, Any]:
    """Return what was measured, by what, and what could not be."""
    settings = work.settings
    return {
        "suite": "nlp",
        "lm_eval": found.version,
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
        "missing": found.missing,
        "problems": {where: dict(problems.counts) for where, problems in found.problems.items() if str(problems)},
    }
