"""The results of X-AlpacaEval: a table of rates, as Parquet, CSV, JSON, and a report for the screen and as Markdown."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from crosspref.languages import LANGUAGES
from crosspref.stages.report import Report
from crosspref.store import Unit, write_text
from crosspref.suites.alpaca_files import Problems
from crosspref.suites.rates import Rates, measure, read_controls
from crosspref.suites.results import WinRate
from crosspref.suites.work import Evaluation
from crosspref.suites.xalpaca_cell import LACKING, Cell
from crosspref.suites.xalpaca_prompt import read_template

MEAN = "mean"
"""Stands in the place of the language for the plain mean over languages."""

INTERVALS = (
    "Ranges are 95% bootstrap intervals over the items. They do not cover the judge, whose verdicts may be biased or "
    "come out otherwise another time, nor the sampling of the answers, nor the seed of a training."
)
KINDS = {
    "LC": "LC: the win rate with the influence of length taken out (a logistic regression over items, with "
    "alpaca_eval's gamed rows).",
    "LC-noreg": "LC-noreg: the length-controlled win rate without the gamed rows; it differs from LC by some points, "
    "and is not to be compared with published ones.",
}


def write_results(work: Evaluation, cells: Sequence[Cell], problems: Mapping[str, Problems]) -> list[Report]:
    """Compute the rates, write the tables, and return the report."""
    controls = read_controls(work.settings.xalpaca)
    compared = {(cell.model, cell.language): cell.compared() for cell in cells}
    found = measure(compared, controls, resamples=work.settings.resamples, seed=work.settings.seed)
    rows: list[WinRate] = []
    for model in dict.fromkeys(cell.model for cell in cells):
        own = [_row(cell, found.rates[cell.model, cell.language]) for cell in cells if cell.model == model]
        rows += [*own, _mean(own, found.means[model])] if len(own) > 1 else own
    folder = work.target.folder / "xalpaca"
    about = _about(work, cells, problems)
    Unit(folder / "win_rates.parquet").write_rows(rows, WinRate)
    content = {**about, "rows": [_jsonable(row) for row in rows]}
    write_text(folder / "win_rates.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    write_text(folder / "win_rates.csv", _csv(rows))
    return [make_report(rows, about)]


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
        judge=", ".join(dict.fromkeys(row.judge for row in rows)),
        date=max(row.date for row in rows),
    )


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _about(work: Evaluation, cells: Sequence[Cell], problems: Mapping[str, Problems]) -> dict[str, Any]:
    """Return who judged what and how, and what could not be used."""
    failures: dict[str, dict[str, int]] = {}
    for cell in cells:
        counted = {reason: count for reason, count in cell.failures.items() if count}
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


def _jsonable(row: WinRate) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in asdict(row).items()}


def _csv(rows: Sequence[WinRate]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(WinRate)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in _jsonable(row).items()} for row in rows)
    return text.getvalue()


def make_report(rows: Sequence[WinRate], about: Mapping[str, Any]) -> Report:
    """Return the table: languages in the order they come in, within each the models, the mean last."""
    languages = [*dict.fromkeys(row.language for row in rows if row.language != MEAN), MEAN]
    ordered = sorted(rows, key=lambda row: languages.index(row.language))
    kinds = list(dict.fromkeys(row.lc_kind for row in rows if row.lc_kind != "none"))
    cells = []
    for number, row in enumerate(ordered):
        first = number == 0 or ordered[number - 1].language != row.language
        name = f"{row.language} {LANGUAGES.get(row.language, '')}".strip() if first else ""
        rate = [_rate(row.lc, row.lc_low, row.lc_high), _rate(row.wr, row.wr_low, row.wr_high)]
        left_out = row.items - row.n
        length = "" if math.isnan(row.length) else f"{row.length:.0f}/{row.baseline_length:.0f}"
        cells.append([name, row.model, *(rate if kinds else rate[1:]), length, str(row.n), str(left_out)])
    header = ["language", "model", *([" or ".join(kinds)] if kinds else []), "WR", "length", "n", "left\nout"]
    judges, baselines = ({getattr(row, name) for row in rows if row.n} for name in ("judge", "baseline"))
    title = f"X-AlpacaEval: against {', '.join(sorted(baselines))}, judged by {', '.join(sorted(judges))}"
    return Report(title, header, cells, _notes(kinds, about))


def _notes(kinds: Sequence[str], about: Mapping[str, Any]) -> list[str]:
    notes = [
        "WR: percentage of items on which the judge prefers the model's answer, a tie or a doubtful verdict counting "
        f"in part. {' '.join(KINDS[kind] for kind in kinds if kind in KINDS)} length: mean characters of the model's and "
        "of the baseline's answers. n: items with a verdict; left out: items without a readable verdict, or without an "
        "answer of either. The mean is the plain mean of the languages.",
        INTERVALS,
    ]
    judge = about["judge"]
    if "decoding" in judge:
        decodings = "; ".join(", ".join(f"{k} {v}" for k, v in one.items()) for one in judge["decoding"])
        names = [name for name in judge["answered_as"] if name != judge["judge"]]
        answered = f" (which answered as {', '.join(names)})" if names else ""
        dates = " to ".join(dict.fromkeys(judge["dates"]))
        notes.append(f"Judge: {judge['judge']}{answered}, {decodings}, {dates}; {judge['failed']} verdicts failed.")
    for where, failures in about["failures"].items():
        notes.append(f"{where}: " + ", ".join(f"{count} {reason}" for reason, count in failures.items()))
    for language, counts in about["problems"].items():
        notes.append(f"{language}: " + ", ".join(f"{count} {reason}" for reason, count in counts.items() if count))
    return notes


def _rate(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.1f}" if math.isnan(low) else f"{value:.1f} [{low:.1f}, {high:.1f}]"
