"""The tables of X-AlpacaEval for the screen and as Markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crosspref.reports.table import Report
from crosspref.suites.reports import INTERVALS, about_notes, by_language, with_range
from crosspref.suites.results import WinRate

KINDS = {
    "LC": "LC: the win rate with the influence of length taken out (a logistic regression over items, with "
    "alpaca_eval's gamed rows).",
    "LC-noreg": "LC-noreg: the length-controlled win rate without the gamed rows; it differs from LC by some points, "
    "and is not to be compared with published ones.",
}
SHRUNK = "A 50.0 without interval is no measurement: the fit kept nothing, as it does where verdicts are few or alike."


def make_report(rows: Sequence[WinRate], about: Mapping[str, Any]) -> Report:
    """Return the table: languages in the order they come in, within each the models, the mean last."""
    kinds = list(dict.fromkeys(row.lc_kind for row in rows if row.lc_kind != "none"))
    cells = []
    for name, row in by_language(rows):
        rate = [with_range(row.lc, row.lc_low, row.lc_high), with_range(row.wr, row.wr_low, row.wr_high)]
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
    return [" ".join(sentences), INTERVALS, *about_notes(about)]
