"""The results of X-AlpacaEval: what was judged of each model, the table of rates on disk, and the reports."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from crosspref.data.items import Item, Problems
from crosspref.maths.estimate import Estimate
from crosspref.reports.table import Report, label, without_repeats
from crosspref.run.verdicts import Verdict
from crosspref.suites.judge.questions import LACKING, Template
from crosspref.suites.results import (
    AT_THE_ENDS,
    CHANGES,
    INTERVALS,
    MEAN,
    about_notes,
    by_language,
    changes_reports,
    describe,
    write_results,
)
from crosspref.suites.work import Evaluation
from crosspref.suites.xalpaca.files import Controls
from crosspref.suites.xalpaca.rates import Compared, Rates, measure

NAME = "xalpaca"
KINDS = {
    "LC": "LC: the win rate with the influence of length taken out (a logistic regression over items, with "
    "alpaca_eval's gamed rows).",
    "LC-noreg": "LC-noreg: the length-controlled win rate without the gamed rows; it differs from LC by some points, "
    "and is not to be compared with published ones.",
}
SHRUNK = "A 50.0 without interval is no measurement: the fit kept nothing, as it does where verdicts are few or alike."


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline's answers in one language, by item id, and who gave them."""

    name: str
    outputs: Mapping[str, str]


@dataclass
class Contest:
    """One model against the baseline in one language: their answers, and what the judge said of them."""

    model: str
    language: str
    items: Sequence[Item]
    baseline: Baseline
    outputs: Mapping[str, str]
    annotator: str
    preferences: dict[str, float | None] = field(default_factory=dict)
    verdicts: dict[str, Verdict | None] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    date: str = ""

    def answered(self) -> list[Item]:
        """Return the items that both have answered."""
        return [item for item in self.items if item.item_id in self.outputs and item.item_id in self.baseline.outputs]

    def unanswered(self) -> tuple[int, int]:
        """Return how many items the model has not answered, and how many the baseline has not."""
        answers = (self.outputs, self.baseline.outputs)
        without = [sum(item.item_id not in outputs for item in self.items) for outputs in answers]
        return without[0], without[1]

    def compared(self) -> list[Compared]:
        """Return the items that were judged, including those whose verdict could not be read."""
        return [
            Compared(
                item.item_id,
                item.place,
                self.preferences[item.item_id],
                len(self.outputs[item.item_id]),
                len(self.baseline.outputs[item.item_id]),
            )
            for item in self.answered()
            if item.item_id in self.preferences
        ]


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often a judge prefers a model's answers to a baseline's, in one language or on average over languages.

    Rates are percentages with 95% intervals. ``lc_kind`` is ``LC``, ``LC-noreg`` for a fit without the gamed rows, or
    ``none``. ``n`` counts preferences, of which ``ties`` are ties. ``failed`` answers of the judge could not be read,
    and ``lacking`` ones are not in the replayed file. ``no_answer`` and ``no_baseline`` items have no answer of the
    model and of the baseline. Lengths are means in characters over the judged items.
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
    wr: Estimate
    lc: Estimate
    lc_kind: str
    length: float
    baseline_length: float
    baseline: str
    judge: str
    date: str


def write(
    work: Evaluation,
    contests: Sequence[Contest],
    problems: Mapping[str, Problems],
    controls: Controls,
    template: Template,
) -> list[Report]:
    """Compute the rates, write the tables, and return the reports; ``template`` is what the judge was asked by."""
    compared = {(contest.model, contest.language): contest.compared() for contest in contests}
    settings = work.settings
    rates, changes = measure(
        compared, controls, resamples=settings.resamples, seed=settings.seed, say=work.reporter.say
    )
    rows: list[WinRate] = []
    for model in dict.fromkeys(contest.model for contest in contests):
        by_tag = [_row(one, rates[model, one.language]) for one in contests if one.model == model]
        rows += [*by_tag, _mean(by_tag, rates[model, MEAN])] if len(by_tag) > 1 else by_tag
    about = describe(work, NAME, {"prompt": template.messages}, _failures(contests), problems)
    write_results(work.target.folder / NAME / "win_rates", WinRate, rows, changes, about)
    note = CHANGES.format(flipped="the win rate")
    return [rates_report(rows, about), *changes_reports("X-AlpacaEval: what differs between models", changes, note)]


def _row(contest: Contest, rates: Rates) -> WinRate:
    compared = contest.compared()
    judged = [row for row in compared if row.preference is not None]
    no_answer, no_baseline = contest.unanswered()
    return WinRate(
        model=contest.model,
        language=contest.language,
        items=len(contest.items),
        n=len(judged),
        ties=sum(row.preference == 1.5 for row in judged),
        failed=len(compared) - len(judged),
        lacking=contest.failures[LACKING],
        no_answer=no_answer,
        no_baseline=no_baseline,
        wr=rates.wr,
        lc=rates.lc,
        lc_kind=rates.lc_kind,
        length=_average([row.length for row in compared]),
        baseline_length=_average([row.baseline_length for row in compared]),
        baseline=contest.baseline.name,
        judge=contest.annotator,
        date=contest.date,
    )


def _mean(rows: Sequence[WinRate], rates: Rates) -> WinRate:
    """Return the row for all languages: the mean of rates and lengths, and the sum of counts."""
    counts = ("items", "n", "ties", "failed", "lacking", "no_answer", "no_baseline")
    judged = [row for row in rows if row.n]
    return replace(
        rows[0],
        language=MEAN,
        **{name: sum(getattr(row, name) for row in rows) for name in counts},
        wr=rates.wr,
        lc=rates.lc,
        lc_kind=rates.lc_kind,
        length=_average([row.length for row in judged]),
        baseline_length=_average([row.baseline_length for row in judged]),
        baseline=", ".join(dict.fromkeys(row.baseline for row in rows)),
        judge=", ".join(dict.fromkeys(row.judge for row in rows if row.judge)),
        date=max(row.date for row in rows),
    )


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _failures(contests: Sequence[Contest]) -> dict[str, dict[str, int]]:
    """Return how many items have no verdict, by model and language and by reason."""
    failures = {}
    for contest in contests:
        no_answer, no_baseline = contest.unanswered()
        without = {"items without an answer": no_answer, "items without an answer of the baseline": no_baseline}
        counts = {reason: count for reason, count in {**contest.failures, **without}.items() if count}
        failures[f"{contest.model} {contest.language}"] = counts
    return failures


def rates_report(rows: Sequence[WinRate], about: Mapping[str, Any]) -> Report:
    """Return the table of rates, by language and within each by model."""
    kinds = list(dict.fromkeys(row.lc_kind for row in rows if row.lc_kind != "none"))
    cells = []
    for row in by_language(rows):
        rates = [row.lc, row.wr] if kinds else [row.wr]
        length = "" if math.isnan(row.length) else f"{row.length:.0f}/{row.baseline_length:.0f}"
        counts = [length, str(row.n), str(row.items - row.n)]
        cells.append([label(row.language), row.model, *(rate.text(".1f") for rate in rates), *counts])
    header = ["language", "model", *([" or ".join(kinds)] if kinds else []), "WR", "length", "n", "left\nout"]
    judges, baselines = ({getattr(row, name) for row in rows if row.n} for name in ("judge", "baseline"))
    title = f"X-AlpacaEval: against {', '.join(sorted(baselines))}, judged by {', '.join(sorted(judges))}"
    meant = [KINDS[kind] for kind in kinds if kind in KINDS]
    sentences = [
        "WR: percentage of items on which the judge prefers the model's answer, a tie or a doubtful verdict counting "
        "in part.",
        *meant,
        *([SHRUNK] if meant else []),
        "length: mean characters of the model's and of the baseline's answers. n: items with a verdict; left out: "
        "items without a readable verdict, or without an answer of either. The mean is the plain mean of languages.",
    ]
    return Report(
        title, header, without_repeats(cells), [" ".join(sentences), f"{INTERVALS} {AT_THE_ENDS}", *about_notes(about)]
    )
