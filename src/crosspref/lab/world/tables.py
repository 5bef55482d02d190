"""What `crosspref lab` shows of one run: a table with intervals, the same as CSV, and a picture."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from crosspref.engines import find_engine
from crosspref.lab.world.measure import MEASURES, Measured, means, policy_to_keep
from crosspref.lab.world.world import LANGUAGES
from crosspref.languages import language_name
from crosspref.maths.estimate import Estimate
from crosspref.reports.table import Report

TITLE = "A world whose true reward is known: gold per language and policy"
HEADER = ["language", "policy", "gold", "win rate\nover pi_0", "pair\naccuracy", "tokens", "own\nlanguage"]
CURVES = {"gold": "gold", "win_rate": "win rate over pi_0", "accuracy": "pair accuracy", "tokens": "tokens"}


def report(measured: Sequence[Measured]) -> Report:
    """Return the table of one run."""
    found = {(row.language, row.iteration, row.measure): row.interval for row in measured}
    iterations = sorted({row.iteration for row in measured})
    rows = []
    for language in LANGUAGES:
        for iteration in iterations:
            cells = [_cell(found.get((language, iteration, measure)), measure) for measure in MEASURES]
            name = f"{language} {language_name(language)}" if iteration == iterations[0] else ""
            rows.append([name, f"pi_{iteration}", *cells])
    kept, why = policy_to_keep({iteration: means(measured, "fidelity", iteration) for iteration in iterations})
    notes = [
        f"A warning that needs no gold: {why}. The last policy before is pi_{kept}."
        if why
        else "No policy mixes languages.",
        "; ".join(f"{name}: {what}" for name, what in MEASURES.items()) + ".",
        "Ranges are 95% bootstrap intervals over prompts. They do not cover the seed: for that, run a study.",
        "Nothing but English preferences was given, and these carry their annotator's bias for length: the labels are "
        "not pure gold. Gold is never shown to the method.",
    ]
    return Report(TITLE, HEADER, rows, notes)


def to_csv(measured: Sequence[Measured], seed: int, settings: str, version: str) -> str:
    """Return all numbers of one run, unrounded."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = ["iteration", "language", "measure", "mean", "low", "high", "n", "seed", "settings", "version"]
    table.writerow(names)
    for row in measured:
        value = row.interval
        numbers = [value.value, value.low, value.high, value.n]
        table.writerow([row.iteration, row.language, row.measure, *numbers, seed, settings, version])
    return text.getvalue()


def draw(measured: Sequence[Measured], path: Path, seed: int) -> None:
    """Draw the run's measures over its policies."""
    found = {(row.measure, row.language, row.iteration): row.interval for row in measured}
    iterations = sorted({row.iteration for row in measured})
    panels = {
        name: {
            language: [found.get((measure, language, iteration)) for iteration in iterations] for language in LANGUAGES
        }
        for measure, name in CURVES.items()
    }
    labels = [f"pi_{iteration}" for iteration in iterations]
    find_engine("figures", "curves")(path, f"crosspref lab, seed {seed}, 95% intervals over prompts", labels, panels)


def _cell(value: Estimate | None, measure: str) -> str:
    if value is None:
        return ""
    form = ".1f" if measure == "tokens" else ".0%" if measure in {"accuracy", "fidelity", "win_rate"} else ".2f"
    spread = "" if math.isnan(value.low) else f" [{value.low:{form}}, {value.high:{form}}]"
    return f"{value.value:{form}}{spread}"
