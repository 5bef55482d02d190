"""Multilingual NLP tasks through lm-evaluation-harness: what an alignment costs beside what it gains."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosspref.data.items import Problems
from crosspref.engines import find_engine
from crosspref.errors import DataError, ModelError, RecipeError, RunError
from crosspref.reports.table import Report, arrow_table
from crosspref.run.store import Fingerprint, Unit
from crosspref.suites.answers import identity_of
from crosspref.suites.nlp.files import Items, by_subject, languages_of, read_items
from crosspref.suites.nlp.tables import Found, write_results
from crosspref.suites.nlp.tasks import ENGLISH_MMLU, SHOTS, Part, TaskName, parts_of
from crosspref.suites.results import ItemScore
from crosspref.suites.targets import Candidate
from crosspref.suites.work import Evaluation

NAME = "nlp"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One task in one language that there is, and its items where they come from a file."""

    task: TaskName
    language: str
    items: Items | None

    @property
    def where(self) -> str:
        """How reports call it."""
        return f"{self.language} {self.task}"

    @property
    def parts(self) -> Sequence[Part]:
        """What the harness calls it."""
        return parts_of(self.task, self.language)


def evaluate(work: Evaluation) -> list[Report]:
    """Run the suite; see ``suites``. What is missing, or fails, is reported, and the rest comes out.

    Raises:
        RecipeError: it is not known which languages are meant, or a judge is named.
        MissingLibraryError: lm-evaluation-harness is not installed.
        DataError: nothing could be measured.
        RunError: stored results were made otherwise.
    """
    if work.replay is not None or work.annotations is not None:
        raise RecipeError("The suite nlp asks no judge: leave out --judge and --annotations.")
    languages = _languages(work)
    harness = find_engine("harness", "lm_eval")()
    found = Found(harness.version, languages)
    try:
        wanted = _wanted(work, harness, languages, found)
        setups = _Setups(harness)
        for candidate in work.target.models:
            _measure(work, candidate, wanted, setups, found)
    finally:
        harness.close()
    if not found.values:
        raise DataError("\n".join(["nlp: nothing could be measured."] + [f"  {m}" for m in found.lines()]))
    return write_results(work, found)


def _languages(work: Evaluation) -> Sequence[str]:
    settings = work.settings.nlp
    found = work.languages or work.target.languages
    if found is None and settings.data is not None:
        found = languages_of(settings.data, settings.tasks)
        if not found:
            raise DataError(f"nlp.data: {settings.data} has no file of a task and language, such as arc/es.jsonl.")
    if found is None:
        raise RecipeError("The suite nlp does not know which languages are meant: name them with --languages en,es.")
    return found


def _wanted(work: Evaluation, harness: Any, languages: Sequence[str], found: Found) -> list[Wanted]:
    """Return what there is of the wanted tasks and languages; what is missing is noted and said."""
    settings, say = work.settings.nlp, work.reporter.say
    wanted = []
    for language in languages:
        unknown, without = [], []
        for task in settings.tasks:
            lacking = [part.name for part in parts_of(task, language) if not harness.has(part.name)]
            unknown += lacking
            if lacking or settings.data is None:
                wanted += [] if lacking else [Wanted(task, language, None)]
                continue
            problems = found.problems.setdefault(f"{language} {task}", Problems())
            try:
                items = read_items(settings.data, task, language, problems, harness.has)
            except DataError as error:
                found.miss(f"{language} {task}", str(error), say)
                continue
            if items is None:
                without.append(f"{task}/{language}.jsonl")
            else:
                wanted.append(Wanted(task, language, items))
        reasons = [f"lm-evaluation-harness {harness.version} has no {', no '.join(unknown)}"] if unknown else []
        reasons += [f"{settings.data} has no {', no '.join(without)}"] if without else []
        if reasons:
            found.miss(language, "; ".join(reasons), say)
    return wanted


class _Setups:
    """The harness's tasks, set up when a model first needs them and kept for the next one; what fails is tried once."""

    def __init__(self, harness: Any) -> None:
        self.harness = harness
        self._done: dict[str, dict[str, list[Any]] | DataError] = {}

    def of(self, wanted: Wanted) -> dict[str, list[Any]]:
        """Return them by part.

        Raises:
            DataError: they cannot be set up.
        """
        if wanted.where not in self._done:
            try:
                self._done[wanted.where] = {part.name: self._tasks(wanted, part.name) for part in wanted.parts}
            except DataError as error:
                self._done[wanted.where] = error
        done = self._done[wanted.where]
        if isinstance(done, DataError):
            raise done
        return done

    def _tasks(self, wanted: Wanted, name: str) -> list[Any]:
        shots, items = SHOTS.get(wanted.task, 0), wanted.items
        if items is None:
            found: list[Any] = self.harness.tasks(name, shots)
            return found
        subjects = by_subject(items) if name == ENGLISH_MMLU else {name: items}
        return [
            task
            for at, own in subjects.items()
            for task in self.harness.tasks_of_files(at, own.rows, own.examples, shots)
        ]


def _measure(work: Evaluation, candidate: Candidate, wanted: Sequence[Wanted], setups: _Setups, found: Found) -> None:
    """Measure one model on all that is not stored yet; it is loaded only if there is anything."""
    todo = []
    for one in wanted:
        unit, fingerprint = _shard(work, candidate, one, setups.harness.version)
        if _finished(unit, fingerprint):
            cut = unit.read_marker()["figures"]["cut"]
            found.add(candidate.name, one.task, one.language, unit.rows(ItemScore), cut)
            continue
        try:
            todo.append((one, setups.of(one), unit, fingerprint))
        except DataError as error:
            found.miss(one.where, str(error), work.reporter.say)
    if not todo:
        return
    settings = work.settings
    try:
        if candidate.files is None:
            raise ModelError(f"{candidate.name} is to be measured, but is not here. {candidate.missing}")
        work.reporter.say(f"{candidate.name}: loading the model")
        trusted = settings.answers.trust_remote_code
        resources, batch_size = settings.resources, settings.nlp.batch_size
        model = setups.harness.model(candidate.files, resources, batch_size, work.reporter, trusted)
    except ModelError as error:
        found.miss(candidate.name, str(error), work.reporter.say)
        return
    try:
        for one, tasks, unit, fingerprint in todo:
            label, started = f"{candidate.name} {one.where}", time.monotonic()
            try:
                rows, cut = _rows(setups.harness, model, one, tasks, settings.nlp.limit, label)
            except (DataError, ModelError) as error:
                found.miss(label, str(error), work.reporter.say)
                continue
            unit.write_table(arrow_table(rows, ItemScore))
            unit.finish(fingerprint, len(rows), seconds=time.monotonic() - started, cut=cut)
            found.add(candidate.name, one.task, one.language, rows, cut)
    finally:
        model.close()


def _rows(
    harness: Any, model: Any, one: Wanted, tasks: dict[str, list[Any]], limit: int | None, label: str
) -> tuple[list[ItemScore], int]:
    """Return what each item counts, and how many choices did not fit into the model's context."""
    rows, cut = [], 0
    for part in one.parts:
        values, too_long = harness.measure(model, tasks[part.name], limit, label)
        cut += too_long
        for metric, measure in part.measures.items():
            rows += [ItemScore(item, measure, value) for item, value in values[metric].items()]
    return rows, cut


def _shard(work: Evaluation, candidate: Candidate, one: Wanted, version: str) -> tuple[Unit, Fingerprint]:
    """Return where the items of one model, language and task are stored, and what determines them."""
    limit = work.settings.nlp.limit
    # A limit is part of the name, so that a first look at a few items is not in the way of all of them.
    name = one.task if limit is None else f"{one.task}-first-{limit}"
    unit = Unit(work.target.folder / NAME / "items" / candidate.slug / one.language / f"{name}.parquet")
    settings = {
        "lm_eval": version,
        "tasks": [part.name for part in one.parts],
        "num_fewshot": SHOTS.get(one.task, 0),
        "limit": limit,
    }
    data = "hub" if one.items is None else one.items.digest
    return unit, Fingerprint(settings, {"model": identity_of(candidate, unit, "model"), "items": data})


def _finished(unit: Unit, fingerprint: Fingerprint) -> bool:
    try:
        return unit.finished(fingerprint)
    except RunError as error:
        raise RunError(f"{error}\nTo measure it anew: rm {unit.path} {unit.marker}") from error
