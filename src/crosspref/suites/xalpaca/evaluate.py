"""X-AlpacaEval: each answer of a model against a baseline's, by a judge, per language."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crosspref.data.items import Item, Problems, join
from crosspref.data.records import Prompt
from crosspref.data.rows import Row, is_unicode
from crosspref.data.sources import read_languages
from crosspref.errors import DataError, RecipeError
from crosspref.reports.table import Report
from crosspref.suites.judge.judge import Judge
from crosspref.suites.judge.questions import LACKING, Template
from crosspref.suites.judge.verdicts import Verdict
from crosspref.suites.targets import Candidate
from crosspref.suites.work import Evaluation
from crosspref.suites.xalpaca.cell import Baseline, Cell
from crosspref.suites.xalpaca.files import ANNOTATIONS, OUTPUTS, read_items, read_preference, write_json
from crosspref.suites.xalpaca.prompt import ask_about, preference, read_template
from crosspref.suites.xalpaca.rates import read_controls
from crosspref.suites.xalpaca.tables import write_results

NAME = "xalpaca"
Items = Mapping[str, list[Item]]
"""The items of each language."""


def evaluate(work: Evaluation) -> list[Report]:
    """Run the suite; see ``suites``. What is wrong with settings, prompt and tables shows before a model answers.

    Raises:
        RecipeError: a file is not named.
        DataError: nothing can be judged.
    """
    problems: dict[str, Problems] = {}
    controls, template = read_controls(work.settings.xalpaca), read_template(work.settings.xalpaca.prompt)
    items = _items(work, problems)
    wanted = {language: own[: work.settings.xalpaca.limit] for language, own in items.items()}
    if work.annotations is not None:
        cells = _from_annotations(work, items, wanted, problems)
    else:
        judge, baselines = work.judge, _baselines(work, items, wanted, problems)
        cells = [cell for candidate in work.target.models for cell in _answer(work, candidate, wanted, baselines)]
        _judge(judge, cells, template)
    if not any(cell.preferences for cell in cells):
        raise DataError("X-AlpacaEval: no item has an answer of a model, one of the baseline, and a verdict.")
    for cell in cells:
        _write(work, cell)
    return write_results(work, cells, problems, controls)


def folder_of(work: Evaluation, slug: str, language: str) -> Path:
    """Return where the files of one model in one language lie."""
    return work.target.folder / NAME / slug / language


def _items(work: Evaluation, problems: dict[str, Problems]) -> dict[str, list[Item]]:
    settings = work.settings.xalpaca
    if settings.items is None:
        raise RecipeError("The suite xalpaca needs its instructions: set xalpaca.items to their file or directory.")
    found = {}
    for language, rows in read_languages(settings.items, "xalpaca.items", work.languages, OUTPUTS).items():
        found[language] = read_items(rows, problems.setdefault(language, Problems()))
    for language in work.languages or ():
        if not found.get(language):
            problems.setdefault(language, Problems()).counts["language without items"] = 1
            work.reporter.say(f"xalpaca {language}: there are no items, so nothing is judged in this language.")
    if not any(found.values()):
        raise DataError(f"xalpaca.items: {settings.items} has no item in the languages that are wanted.")
    return {language: items for language, items in found.items() if items}


def _baselines(work: Evaluation, items: Items, wanted: Items, problems: Mapping[str, Problems]) -> dict[str, Baseline]:
    """Return the baseline's answers, joined with all items, of which only some may be wanted."""
    source = work.settings.xalpaca.baseline
    if source is None:
        raise RecipeError("The suite xalpaca needs a baseline: set xalpaca.baseline to its answers.")
    every = read_languages(source, "xalpaca.baseline", list(items), OUTPUTS)
    found = {}
    for language, own in items.items():
        joined = join(every.get(language, []), own, "output", problems[language])
        outputs = {key: row.values["output"] for key, row in joined.items()}
        texts = {key: text for key, text in outputs.items() if isinstance(text, str) and is_unicode(text)}
        problems[language].counts["answers of the baseline that are not text"] += len(outputs) - len(texts)
        if not texts:
            problems[language].counts["language without baseline"] = 1
            work.reporter.say(
                f"xalpaca {language}: the baseline has no answers, so nothing is judged in this language."
            )
            continue
        there, asked = sum(item.item_id in texts for item in wanted[language]), len(wanted[language])
        if there < asked:
            work.reporter.say(f"xalpaca {language}: the baseline answers {there} of {asked} items.")
        found[language] = Baseline(_generator(joined.values(), "generator"), texts)
    return found


def _generator(rows: Any, column: str) -> str:
    names = list(dict.fromkeys(str(row.values[column]) for row in rows if row.values.get(column)))
    return ", ".join(names) or "baseline"


def _answer(work: Evaluation, candidate: Candidate, items: Items, baselines: Mapping[str, Baseline]) -> list[Cell]:
    prompts = [Prompt(item.item_id, language, item.instruction) for language in baselines for item in items[language]]
    answers: dict[str, dict[str, str]] = {language: {} for language in baselines}
    for row in work.answers(NAME, candidate, prompts):
        answers[row.language][row.prompt_id] = row.text
    return [
        Cell(candidate.name, language, items[language], baseline, answers[language])
        for language, baseline in baselines.items()
    ]


def _judge(judge: Judge, cells: Sequence[Cell], template: Template) -> None:
    """Ask about every model and language at once, so that the estimate is of the whole."""
    for cell in cells:
        cell.annotator = judge.name
        for item in cell.both():
            outputs = cell.baseline.outputs[item.item_id], cell.outputs[item.item_id]
            cell.questions[item.item_id] = ask_about(item.instruction, *outputs, template)
    asked = [(cell, item_id) for cell in cells for item_id in cell.questions]
    verdicts = judge.ask([cell.questions[item_id] for cell, item_id in asked], "xalpaca")
    instructions = {(cell.language, item.item_id): item.instruction for cell in cells for item in cell.items}
    for (cell, item_id), verdict in zip(asked, verdicts, strict=True):
        cell.verdicts[item_id] = verdict
        if verdict is None:
            cell.failures[LACKING] += 1
            continue
        cell.date = max(cell.date, verdict.date)
        if verdict.verdict is None:
            cell.failures[str(verdict.failure)] += 1
            cell.preferences[item_id] = None
        else:
            cell.preferences[item_id] = preference(instructions[cell.language, item_id], verdict.verdict)


def _from_annotations(work: Evaluation, items: Items, wanted: Items, problems: Mapping[str, Problems]) -> list[Cell]:
    """Return the cells of annotations made elsewhere: as many models as generators."""
    cells = []
    for language, rows in read_languages(str(work.annotations), "--annotations", list(items), ANNOTATIONS).items():
        by_model: dict[str, list[Row]] = {}
        for row in rows:
            by_model.setdefault(str(row.values.get("generator_2", work.target.models[0].name)), []).append(row)
        for model, own in by_model.items():
            joined = join(own, items[language], "preference", problems[language])
            texts = {key: row for key, row in joined.items() if _is_whole(row)}
            problems[language].counts["annotations without outputs"] += len(joined) - len(texts)
            baseline = Baseline(
                _generator(own, "generator_1"), {key: str(row.values["output_1"]) for key, row in texts.items()}
            )
            outputs = {key: str(row.values["output_2"]) for key, row in texts.items()}
            cell = Cell(model, language, wanted[language], baseline, outputs)
            cell.preferences = {key: read_preference(row.values["preference"]) for key, row in texts.items()}
            cell.failures["no preference"] = sum(value is None for value in cell.preferences.values())
            cell.annotator = _generator(own, "annotator")
            cell.date = max((str(row.values.get("date") or "") for row in own), default="")
            cells.append(cell)
    there = {cell.language for cell in cells}
    for language in [language for language in wanted if language not in there]:
        problems[language].counts["language without annotations"] = 1
        work.reporter.say(f"xalpaca {language}: there are no annotations in this language.")
    return cells


def _is_whole(row: Row) -> bool:
    texts = (row.values.get(name) for name in ("output_1", "output_2"))
    return all(isinstance(text, str) and is_unicode(text) for text in texts)


def _write(work: Evaluation, cell: Cell) -> None:
    """Write a model's outputs and annotations in one language, as alpaca_eval has them."""
    slug = Candidate(cell.model, None).slug
    folder = folder_of(work, slug, cell.language)
    about = {"dataset": NAME, "language": cell.language}
    outputs = [
        {"id": item.item_id, "instruction": item.instruction, "output": cell.outputs[item.item_id],
         "generator": cell.model, **about}
        for item in cell.items
        if item.item_id in cell.outputs
    ]  # fmt: skip
    annotations = []
    for item in cell.both():
        if item.item_id in cell.preferences:
            verdict = cell.verdicts.get(item.item_id)
            annotations.append(
                {
                    "id": item.item_id,
                    "instruction": item.instruction,
                    "output_1": cell.baseline.outputs[item.item_id],
                    "generator_1": cell.baseline.name,
                    **about,
                    "output_2": cell.outputs[item.item_id],
                    "generator_2": cell.model,
                    "annotator": cell.annotator,
                    "preference": cell.preferences[item.item_id],
                    "raw_completion": verdict and _raw(verdict),
                    "date": verdict.date if verdict else cell.date,
                }
            )
    write_json(folder / "model_outputs.json", outputs)
    write_json(folder / "annotations.json", annotations)


def _raw(verdict: Verdict) -> dict[str, Any]:
    kept = ("text", "logprobs", "failure", "decoding", "key")
    return {name: value for name, value in asdict(verdict).items() if name in kept}
