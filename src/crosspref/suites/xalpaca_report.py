"""The tables of X-AlpacaEval for the screen and as Markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crosspref.languages import LANGUAGES
from crosspref.stages.report import Report
from crosspref.suites.results import MEAN, WinRate

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
SHRUNK = "A 50.0 without interval is no measurement: the fit kept nothing, as it does where verdicts are few or alike."
CHANGED = "X-AlpacaEval: what differs between models"
CHANGES = (
    "Differences in points, over the items that both were judged on, with 95% bootstrap intervals that resample items "
    "jointly for both models and all languages. p: two-sided, for the win rate of a language by sign flips and else "
    "from the resamples, adjusted over languages by Holm. better and worse stand only where the "
    "interval and p (at most 0.05) say so."
)


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
    meant = [KINDS[kind] for kind in kinds if kind in KINDS]
    sentences = [
        "WR: percentage of items on which the judge prefers the model's answer, a tie or a doubtful verdict counting "
        "in part.",
        *meant,
        *([SHRUNK] if meant else []),
        "length: mean characters of the model's and of the baseline's answers. n: items with a verdict; left out: "
        "items without a readable verdict, or without an answer of either. The mean is the plain mean of languages.",
    ]
    notes = [
        " ".join(sentences),
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
