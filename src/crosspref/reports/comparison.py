"""Comparing finished runs: one row per policy, and what to know before believing them."""

import csv
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosspref.api import phase_log
from crosspref.data.records import Measure, Pair
from crosspref.errors import RunError
from crosspref.recipe.files import flatten
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import TrainSettings
from crosspref.reports.comparability import ComparedRun, read_run, unfinished, warnings
from crosspref.reports.report import SYMBOLS
from crosspref.reports.table import Report
from crosspref.run.changes import affected_by
from crosspref.run.store import Unit
from crosspref.stages.evaluate import MEASURES, WIN_RATE

TITLE = "Comparison of runs"
METHODS = {"dpo": "DPO", "kto": "KTO", "ipo": "IPO", "simpo": "SimPO", "orpo": "ORPO"}
HEADER = ["run", "policy", "pairs by", "penalty", "training"]
NUMBERS = ["pairs", "win\nrate*", "right\nlang.", "length", "chosen\nlonger", "min."]


@dataclass(frozen=True, slots=True)
class Row:
    """What one policy came from and what was measured of it; None where that is not known.

    ``characters`` and ``length_difference``, the mean of len(chosen) - len(rejected), are in characters. ``minutes`` is
    the wall time of all phases of the run up to this policy's evaluation.
    """

    run: str
    iteration: int
    pairs_by: str
    penalty: str
    training: str
    pairs: int | None
    win_rates: dict[str, Measure]
    win_rate: float | None
    right_language: float | None
    characters: float | None
    length_difference: float | None
    minutes: float | None

    def texts(self, above: "Row | None") -> list[str]:
        """Return the cells on the left; what the same run's row above says already is left out."""
        made = [self.pairs_by.replace(" (", "\n("), self.penalty.replace(" ", "\n"), self.training.replace(" (", "\n(")]
        if above is None or above.run != self.run:
            return [self.run, f"pi_{self.iteration}", *made]
        same = (self.pairs_by, self.penalty, self.training) == (above.pairs_by, above.penalty, above.training)
        return ["", f"pi_{self.iteration}", *([""] * len(made) if same else made)]

    def numbers(self) -> list[str]:
        """Return the cells on the right, as ``NUMBERS`` names them."""
        minutes = ".1f" if (self.minutes or 0) < 100 else ".0f"
        shares = [_cell(self.win_rate, ".0%"), _cell(self.right_language, ".0%"), _cell(self.characters, ".0f")]
        return [_cell(self.pairs, "d"), *shares, _cell(self.length_difference, "+.1f"), _cell(self.minutes, minutes)]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows of all runs, the languages of their win rates, and what is said below the table."""

    rows: list[Row]
    languages: list[str]
    notes: list[str]

    def report(self, *, by_language: bool) -> Report:
        """Return the table; with the win rate in every language and its interval it is too wide for a screen."""
        header, rows = [*HEADER, *NUMBERS], []
        for above, row in zip([None, *self.rows], self.rows, strict=False):
            won = [_interval(row.win_rates.get(tag)) for tag in self.languages] if by_language else []
            rows.append([*row.texts(above), *row.numbers(), *won])
        header += [f"win rate in {tag}" for tag in self.languages] if by_language else []
        return Report(TITLE, header, rows, self.notes, left=len(HEADER))

    def csv(self) -> str:
        """Return all numbers, unrounded, as CSV; a cell is empty where something is not known."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        columns = ["pairs", "win_rate", "right_language", "characters", "length_difference", "minutes"]
        by_language = [f"win_rate_{tag}{end}" for tag in self.languages for end in ("", "_low", "_high")]
        table.writerow(["run", "iteration", "pairs_by", "penalty", "training", *columns, *by_language])
        for row in self.rows:
            made = [row.run, row.iteration, row.pairs_by, row.penalty, row.training]
            found = [row.win_rates.get(tag) for tag in self.languages]
            ends = [value for won in found for value in ((won.mean, won.low, won.high) if won else (None,) * 3)]
            numbers = [*(getattr(row, column) for column in columns), *ends]
            table.writerow([*made, *("" if value is None or math.isnan(value) else value for value in numbers)])
        return text.getvalue()


def compare_runs(directories: Sequence[str | Path]) -> Comparison:
    """Return what runs made and measured, side by side; what a run does not have yet is left open and said.

    Raises:
        RunError: a directory holds no run, or is given twice.
    """
    roots = [Path(os.path.abspath(directory)) for directory in directories]  # noqa: PTH100 - keeps a link's name
    for number, root in enumerate(roots):
        if root.resolve() in [other.resolve() for other in roots[:number]]:
            raise RunError(f"{directories[number]} is given twice. Name each run once.")
    runs = [read_run(directory, name) for directory, name in zip(directories, run_names(roots), strict=True)]
    rows = [*_rows_of_pi_0(runs), *(_row(run, iteration) for run in runs for iteration in _iterations(run))]
    languages = list(dict.fromkeys(language for row in rows for language in row.win_rates))
    notes = [*warnings([run for run in runs if run.measures]), *unfinished(runs), *_explanations(runs)]
    return Comparison(rows, languages, notes)


def run_names(roots: Sequence[Path]) -> list[str]:
    """Return each run's directory name, with as many of its parents as tell it from the others."""

    def shortest(root: Path) -> str:
        for depth in range(1, len(root.parts) + 1):
            if sum(other.parts[-depth:] == root.parts[-depth:] for other in roots) == 1:
                return str(Path(*root.parts[-depth:]))
        return str(root)

    return [shortest(root) for root in roots]


def _iterations(run: ComparedRun) -> list[int]:
    """Return the iterations that were begun; the first one of a run that has not begun any."""
    names = (re.fullmatch(r"iteration_([1-9]\d*)", path.name) for path in run.run.root.glob("iteration_*"))
    return sorted(int(name[1]) for name in names if name) or [1] * min(1, run.recipe.iterations)


def _rows_of_pi_0(runs: Sequence[ComparedRun]) -> list[Row]:
    """Return one row for each pi_0 that was measured; runs that share one measured it with equal results."""
    shared: dict[Any, list[ComparedRun]] = {}
    for run in runs:
        measured = tuple(sorted((row.language, row.measure, row.mean) for row in run.measures if row.iteration == 0))
        if measured:
            shared.setdefault((run.judged_by().get("policy", run.name), measured), []).append(run)
    rows = []
    for group in shared.values():
        name = "all runs" if len(group) == len(runs) > 1 else ", ".join(run.name for run in group)
        first, made = group[0], group[0].recipe.align_english
        training = f"{_training(made)} (English)" if made else "given"
        rows.append(Row(name, 0, "-", "-", training, None, {}, None, *_means(first, 0), None, None))
    return rows


def _row(run: ComparedRun, iteration: int) -> Row:
    recipe, folder = run.recipe, run.run.iteration(iteration)
    units = [Unit(folder / "pairs" / f"{language}.parquet") for language in recipe.languages]
    pairs = None
    if all(unit.marker.exists() for unit in units):
        pairs = [row for unit in units for row in unit.rows(Pair)]
    differences = [len(pair.chosen[-1]["content"]) - len(pair.rejected[-1]["content"]) for pair in pairs or []]
    mine = [row for row in run.measures if row.iteration == iteration]
    win_rates = {row.language: row for row in mine if row.measure == WIN_RATE}
    log = phase_log(run.run)
    begun = any(row.get("iteration") == iteration for row in log)
    seconds = [row.get("seconds", 0.0) for row in log if row.get("iteration", 0) <= iteration]
    return Row(
        run.name,
        iteration,
        _pairs_by(recipe),
        _penalty(recipe),
        _training(recipe.train),
        None if pairs is None else len(pairs),
        win_rates,
        _mean([row.mean for row in win_rates.values()]),
        *_means(run, iteration),
        _mean(differences),
        sum(seconds) / 60 if begun else None,
    )


def _means(run: ComparedRun, iteration: int) -> tuple[float | None, float | None]:
    """Return the share in the right language and the mean length, averaged over languages."""
    mine = [row for row in run.measures if row.iteration == iteration]
    right, length = ([row.mean for row in mine if row.measure == name] for name in ("right_language", "characters"))
    return _mean(right), _mean(length)


def _pairs_by(recipe: Recipe) -> str:
    reward = recipe.reward
    if recipe.language_imbalance is not None:
        return "LIDR"
    if reward.name == "reward_model":
        return SYMBOLS[reward.name]
    more = [METHODS[reward.algorithm]] if reward.algorithm != "dpo" else []
    more += ["znlp"] if reward.counting == "znlp" else []
    more += ["prev."] if reward.reference == "previous" else []
    return SYMBOLS[reward.name] + (f" ({', '.join(more)})" if more else "")


def _penalty(recipe: Recipe) -> str:
    if recipe.language_imbalance is not None:
        return "-"
    penalty = recipe.length_penalty
    fixed = f" {penalty.alpha:g}" if penalty.alpha is not None else ""
    return f"{penalty.mode}{fixed}{' (tokens)' if penalty.unit == 'tokens' else ''}"


def _training(train: TrainSettings) -> str:
    weight = "" if train.nll_weight == 1 else f"{train.nll_weight:g}"
    nll = f"+{weight}NLL" if train.nll_weight else ""
    return f"{METHODS[train.method]}{nll}{' (ref. pi_I)' if train.reference == 'initial' else ''}"


def _explanations(runs: Sequence[ComparedRun]) -> list[str]:
    recipes = [flatten(run.recipe) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    changed = [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1 and affected_by(key)]
    # A section that not all of them have is named as one.
    shared = {key: all(key in recipe for recipe in recipes) for key in changed}
    differ = dict.fromkeys(key if shared[key] else key.partition(".")[0] for key in changed)
    return [
        *([f"Settings in which the recipes differ: {', '.join(differ)}."] if differ else []),
        f"* {MEASURES[WIN_RATE]}. 50% is no difference. Here it is the mean over languages; each language's, with its "
        "95% bootstrap interval, is in the files. The intervals cover the choice of held-out prompts only, not that of "
        "training prompts or of the seed.",
        "right lang., length: means over languages; length is in characters. chosen longer: by how many characters the "
        "chosen responses are longer than the rejected ones, on average over all pairs. min.: minutes of wall time of "
        "the run's phases up to there, measuring included; they depend on the machine.",
        "pairs by: the reward (prev.: its reference is the previous policy; KTO and so on: the policy's alignment, "
        "if not by DPO), or LIDR, language imbalance driven rewarding. ref. pi_I: training's reference is pi_I.",
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _interval(row: Measure | None) -> str:
    if row is None:
        return "-"
    return f"{row.mean:.0%}" + ("" if math.isnan(row.low) else f" [{row.low:.0%}, {row.high:.0%}]")
