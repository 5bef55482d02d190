"""Multilingual NLP tasks through lm-evaluation-harness: what an alignment costs beside what it gains."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosspref.data.items import Problems
from crosspref.engines import find_engine
from crosspref.errors import DataError, LimitError, ModelError, RecipeError, RunError
from crosspref.reports.table import Report
from crosspref.run.kept import keeping
from crosspref.run.store import Fingerprint, Unit
from crosspref.suites.nlp.items import Items, by_subject, languages_of, read_items
from crosspref.suites.nlp.results import ItemScore, Measured, write_results
from crosspref.suites.nlp.tasks import ENGLISH_MMLU, SHOTS, Part, TaskName, parts_of
from crosspref.suites.work import Candidate, Evaluation, folder_name

NAME = "nlp"


@dataclass(slots=True)
class LanguageTask:
    """One task in one language, and its items where they come from a file."""

    task: TaskName
    language: str
    items: Items | None
    _made: dict[str, list[Any]] | DataError | None = None

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.language} {self.task}"

    @property
    def parts(self) -> Sequence[Part]:
        """What the harness calls it."""
        return parts_of(self.task, self.language)

    def set_up(self, harness: Any) -> dict[str, list[Any]]:
        """Return the harness's tasks by part, kept for the next model; what fails is tried once.

        Raises:
            DataError: they cannot be set up.
        """
        if self._made is None:
            try:
                self._made = {part.name: self._tasks(harness, part.name) for part in self.parts}
            except DataError as error:
                self._made = error
        if isinstance(self._made, DataError):
            raise self._made
        return self._made

    def _tasks(self, harness: Any, name: str) -> list[Any]:
        shots = SHOTS.get(self.task, 0)
        if self.items is None:
            return list(harness.tasks(name, shots))
        subjects = by_subject(self.items) if name == ENGLISH_MMLU else {name: self.items}
        return [
            made
            for subject, items in subjects.items()
            for made in harness.tasks_of_files(subject, items.rows, items.examples, shots)
        ]


def evaluate(work: Evaluation) -> list[Report]:
    """Run the suite; see ``suites``. What is missing, or fails, is reported, and the rest comes out.

    Raises:
        RecipeError: it is not known which languages are meant, or a judge is named.
        MissingLibraryError: lm-evaluation-harness is not installed.
        DataError: nothing could be measured.
        RunError: stored results were made otherwise.
    """
    if any(path is not None for path in (work.replay, work.annotations, work.given)):
        raise RecipeError("The suite nlp asks no judge: leave out --judge, --annotations and --answers.")
    languages = _languages(work)
    harness = find_engine("harness", "lm_eval")()
    measured = Measured(harness.version, languages)
    try:
        tasks = [task for language in languages for task in _tasks_of(work, harness, language, measured)]
        for candidate in work.target.models:
            _measure(work, candidate, tasks, harness, measured)
    finally:
        harness.close()
    if not measured.values:
        raise DataError("\n".join(["nlp: nothing could be measured."] + [f"  {line}" for line in measured.lines()]))
    return write_results(work, measured)


def _languages(work: Evaluation) -> Sequence[str]:
    data, run = work.settings.nlp.data, work.target.run
    languages = work.languages or (None if run is None else run.read_recipe().languages)
    if languages is None and data is not None:
        languages = languages_of(data, work.settings.nlp.tasks)
        if not languages:
            raise DataError(f"nlp.data: {data} has no file of a task and language, such as arc/es.jsonl.")
    if languages is None:
        raise RecipeError("The suite nlp does not know which languages are meant: name them with --languages en,es.")
    return languages


def _tasks_of(work: Evaluation, harness: Any, language: str, measured: Measured) -> list[LanguageTask]:
    """Return what there is of the wanted tasks in a language; what is missing is noted and said."""
    data, say = work.settings.nlp.data, work.reporter.say
    tasks, unknown, without = [], [], []
    for task in work.settings.nlp.tasks:
        lacking = [part.name for part in parts_of(task, language) if not harness.has(part.name)]
        unknown += lacking
        if lacking:
            continue
        items = None
        if data is not None:
            problems = measured.problems.setdefault(f"{language} {task}", Problems())
            try:
                items = read_items(data, task, language, problems, harness.has)
            except DataError as error:
                measured.miss(f"{language} {task}", str(error), say)
                continue
        if data is not None and items is None:
            without.append(f"{task}/{language}.jsonl")
        else:
            tasks.append(LanguageTask(task, language, items))
    reasons = [f"lm-evaluation-harness {harness.version} has no {', no '.join(unknown)}"] if unknown else []
    reasons += [f"{data} has no {', no '.join(without)}"] if without else []
    if reasons:
        measured.miss(language, "; ".join(reasons), say)
    return tasks


def _measure(
    work: Evaluation, candidate: Candidate, tasks: Sequence[LanguageTask], harness: Any, measured: Measured
) -> None:
    """Measure one model on all that is not stored yet; it is loaded only if there is anything."""
    todo = []
    for task in tasks:
        unit, fingerprint = _shard(work, candidate, task, harness.version)
        if _finished(unit, fingerprint):
            cut = unit.read_marker()["figures"].get("cut", 0)
            measured.add(candidate.name, task.task, task.language, unit.rows(ItemScore), cut)
            continue
        try:
            todo.append((task, task.set_up(harness), unit, fingerprint))
        except DataError as error:
            measured.miss(task.name, str(error), work.reporter.say)
    model = _load(work, candidate, harness, measured) if todo else None
    if model is None:
        return
    try:
        for task, made, unit, fingerprint in todo:
            label, started = f"{candidate.name} {task.name}", time.monotonic()
            try:
                with keeping(lambda *_: None, unit, fingerprint) as kept:
                    model.begin(label, kept)
                    rows, cut = _rows(harness, model, task, made, work.settings.nlp.limit)
            except (DataError, LimitError, ModelError) as error:
                measured.miss(label, str(error), work.reporter.say)
                continue
            unit.write_rows(rows, ItemScore)
            unit.finish(fingerprint, len(rows), seconds=time.monotonic() - started, cut=cut)
            measured.add(candidate.name, task.task, task.language, rows, cut)
    finally:
        model.close()


def _load(work: Evaluation, candidate: Candidate, harness: Any, measured: Measured) -> Any:
    """Return a model as the harness asks it, or None where it cannot be loaded."""
    settings = work.settings
    try:
        if candidate.files is None:
            raise ModelError(f"{candidate.name} is to be measured, but is not here. {candidate.missing}")
        work.reporter.say(f"{candidate.name}: loading the model")
        return harness.model(candidate.files, work.target.answering, settings.nlp.batch_size, work.reporter)
    except (LimitError, ModelError) as error:
        measured.miss(candidate.name, str(error), work.reporter.say)
        return None


def _rows(
    harness: Any, model: Any, task: LanguageTask, made: dict[str, list[Any]], limit: int | None
) -> tuple[list[ItemScore], int]:
    """Return what each item counts, and how many choices did not fit into the model's context."""
    rows, cut = [], 0
    for part in task.parts:
        values, too_long = harness.measure(model, made[part.name], limit)
        cut += too_long
        for metric, measure in part.measures.items():
            rows += [ItemScore(item, measure, value) for item, value in values[metric].items()]
    return rows, cut


def _shard(work: Evaluation, candidate: Candidate, task: LanguageTask, version: str) -> tuple[Unit, Fingerprint]:
    """Return where the items of one model, language and task are stored, and what determines them."""
    limit = work.settings.nlp.limit
    # A limit is part of the name, so that a first look at a few items is not in the way of all of them.
    name = task.task if limit is None else f"{task.task}-first-{limit}"
    folder = work.target.folder / NAME / "items" / folder_name(candidate.name) / task.language
    unit = Unit(folder / f"{name}.parquet")
    settings = {
        "lm_eval": version,
        "tasks": [part.name for part in task.parts],
        "num_fewshot": SHOTS.get(task.task, 0),
        "limit": limit,
    }
    data = "hub" if task.items is None else task.items.digest
    return unit, Fingerprint(settings, {"model": candidate.identity(unit, "model"), "items": data})


def _finished(unit: Unit, fingerprint: Fingerprint) -> bool:
    try:
        return unit.finished(fingerprint)
    except RunError as error:
        raise RunError(f"{error}\nTo measure it anew: rm {unit.path} {unit.marker}") from error
