"""The results of X-AlpacaEval: a table of rates, as Parquet, CSV, JSON, and a report for the screen and as Markdown."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from crosspref.data.items import Problems
from crosspref.reports.table import Report, as_json, write_table
from crosspref.run.store import write_text
from crosspref.suites.judge.questions import LACKING
from crosspref.suites.reports import CHANGES, make_changes_report
from crosspref.suites.results import MEAN, ModelChange, WinRate
from crosspref.suites.work import Evaluation
from crosspref.suites.xalpaca.cell import Cell
from crosspref.suites.xalpaca.measuring import measure
from crosspref.suites.xalpaca.prompt import read_template
from crosspref.suites.xalpaca.rates import Controls, Rates
from crosspref.suites.xalpaca.report import make_report


def write_results(
    work: Evaluation, cells: Sequence[Cell], problems: Mapping[str, Problems], controls: Controls
) -> list[Report]:
    """Compute the rates, write the tables, and return the reports."""
    compared = {(cell.model, cell.language): cell.compared() for cell in cells}
    settings = work.settings
    found = measure(compared, controls, resamples=settings.resamples, seed=settings.seed, say=work.reporter.say)
    rows: list[WinRate] = []
    for model in dict.fromkeys(cell.model for cell in cells):
        own = [_row(cell, found.rates[cell.model, cell.language]) for cell in cells if cell.model == model]
        rows += [*own, _mean(own, found.means[model])] if len(own) > 1 else own
    folder = work.target.folder / "xalpaca"
    about = _about(work, cells, problems)
    write_table(folder / "win_rates", rows, WinRate)
    write_table(folder / "changes", found.changes, ModelChange)
    content = {
        **about,
        "rows": [as_json(row) for row in rows],
        "changes": [as_json(row) for row in found.changes],
    }
    write_text(folder / "win_rates.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    reports = [make_report(rows, about)]
    if found.changes:
        note = CHANGES.format(flipped="the win rate")
        reports.append(make_changes_report("X-AlpacaEval: what differs between models", found.changes, note))
    return reports


def _row(cell: Cell, found: Rates) -> WinRate:
    compared = cell.compared()
    judged = [row for row in compared if row.preference is not None]
    answered = [item for item in cell.items if item.item_id in cell.baseline.outputs]
    return WinRate(
        model=cell.model,
        language=cell.language,
        items=len(cell.items),
        n=len(judged),
        ties=sum(row.preference == 1.5 for row in judged),
        failed=len(compared) - len(judged),
        lacking=cell.failures[LACKING],
        no_answer=sum(item.item_id not in cell.outputs for item in cell.items),
        no_baseline=len(cell.items) - len(answered),
        **asdict(found),
        length=_average([row.length for row in compared]),
        baseline_length=_average([row.baseline_length for row in compared]),
        baseline=cell.baseline.name,
        judge=cell.annotator,
        date=cell.date,
    )


def _mean(rows: Sequence[WinRate], found: Rates) -> WinRate:
    """Return the plain mean of languages: of rates and lengths the mean, of counts the sum."""
    counts = ("items", "n", "ties", "failed", "lacking", "no_answer", "no_baseline")
    there = [row for row in rows if row.n]
    return WinRate(
        model=rows[0].model,
        language=MEAN,
        **{name: sum(getattr(row, name) for row in rows) for name in counts},
        **asdict(found),
        length=_average([row.length for row in there]),
        baseline_length=_average([row.baseline_length for row in there]),
        baseline=", ".join(dict.fromkeys(row.baseline for row in rows)),
        judge=", ".join(dict.fromkeys(row.judge for row in rows if row.judge)),
        date=max(row.date for row in rows),
    )


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _about(work: Evaluation, cells: Sequence[Cell], problems: Mapping[str, Problems]) -> dict[str, Any]:
    """Return who judged what and how, and what could not be used."""
    failures: dict[str, dict[str, int]] = {}
    for cell in cells:
        without = {
            "items without an answer": sum(item.item_id not in cell.outputs for item in cell.items),
            "items without an answer of the baseline": sum(
                item.item_id not in cell.baseline.outputs for item in cell.items
            ),
        }
        counted = {reason: count for reason, count in {**cell.failures, **without}.items() if count}
        if counted:
            failures[f"{cell.model} {cell.language}"] = counted
    settings = work.settings
    return {
        "suite": "xalpaca",
        "judge": work.judge.describe() if work.annotations is None else {"annotations": str(work.annotations)},
        "prompt": [list(message) for message in read_template(settings.xalpaca.prompt).messages],
        "answers": settings.answers.model_dump(mode="json"),
        "settings": settings.xalpaca.model_dump(mode="json"),
        "seed": settings.seed,
        "resamples": settings.resamples,
        "failures": failures,
        "problems": {language: dict(found.counts) for language, found in problems.items() if str(found)},
    }
