"""What a study's seeds say together: means, spreads, and differences that are paired by seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crosspref.engines import find_engine
from crosspref.lab.world.measure import MEASURES, without_english
from crosspref.lab.world.studies import STUDIES, Result
from crosspref.languages import ENGLISH
from crosspref.maths.estimate import Estimate
from crosspref.maths.statistics import difference_interval
from crosspref.reports.table import Report

POLICY_0 = "pi_0"
SHOWN = {"gold": "gold", "win_rate": "win rate\nover pi_0", "accuracy": "pair\naccuracy", "tokens": "tokens"}
NOTES = [
    "Mean of the four languages other than English, and sd over seeds; English gold has its own column. difference: in "
    "gold from the first row of the same iteration, paired by seed, with its 95% interval (Student's t over seeds).",
    "; ".join(f"{name}: {what}" for name, what in MEASURES.items()) + ".",
    "The labels of the English preferences are not pure gold: their annotator adds .04 per token.",
]


@dataclass(frozen=True, slots=True)
class Line:
    """One variant at one iteration: values by seed, averaged over the languages other than English."""

    variant: str
    iteration: int
    values: Mapping[str, Mapping[int, float]]
    english: Mapping[int, float]

    def mean(self, measure: str) -> float:
        """Return the mean over seeds; nan where nothing was measured."""
        return float(np.mean(list(self.values[measure].values()))) if self.values[measure] else math.nan

    def deviation(self, measure: str) -> float:
        """Return the standard deviation over seeds; nan for fewer than two."""
        found = list(self.values[measure].values())
        return float(np.std(found, ddof=1)) if len(found) > 1 else math.nan


def lines(results: Sequence[Result]) -> list[Line]:
    """Gather results by variant and iteration; pi_0, which all variants share, comes first and once."""
    found: dict[tuple[str, int], list[Result]] = {}
    for row in results:
        found.setdefault((row.variant if row.iteration else POLICY_0, row.iteration), []).append(row)
    ordered = sorted(found.items(), key=lambda item: item[0][1])  # stable: variants stay in the study's order
    return [_line(*key, rows) for key, rows in ordered]


def _line(variant: str, iteration: int, rows: Sequence[Result]) -> Line:
    seeds = sorted({row.seed for row in rows})
    values: dict[str, dict[int, float]] = {}
    for measure in MEASURES:
        by_seed = {seed: _languages(rows, seed, measure) for seed in seeds}
        means = {seed: without_english(known) for seed, known in by_seed.items()}
        values[measure] = {seed: value for seed, value in means.items() if not math.isnan(value)}
    english = {seed: _languages(rows, seed, "gold")[ENGLISH] for seed in seeds}
    return Line(variant, iteration, values, english)


def _languages(rows: Sequence[Result], seed: int, measure: str) -> dict[str, float]:
    own = {row.language: row.values[measure] for row in rows if row.seed == seed}
    return {language: value for language, value in own.items() if value is not None}


def difference(line: Line, other: Line, measure: str = "gold", *, english: bool = False) -> Estimate:
    """Return the mean over seeds of line minus other, with its interval; only seeds that both have count."""
    left = line.english if english else line.values[measure]
    right = other.english if english else other.values[measure]
    both = sorted(left.keys() & right.keys())
    return difference_interval([left[seed] for seed in both], [right[seed] for seed in both])


def summarise(results: Sequence[Result]) -> Report:
    """Return a study's table."""
    study = results[0].study
    found = lines(results)
    seeds = sorted({row.seed for row in results})
    first: dict[int, Line] = {}
    rows = []
    for line in found:
        base = first.setdefault(line.iteration, line)
        against = "" if line is base else show_difference(difference(line, base))
        cells = [_spread(line, measure) for measure in SHOWN]
        english = float(np.mean(list(line.english.values())))
        rows.append([line.variant, f"pi_{line.iteration}", *cells, f"{english:.2f}", against])
    header = ["variant", "policy", *SHOWN.values(), "English\ngold", "difference"]
    counted = f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})" if len(seeds) > 1 else f"One seed ({seeds[0]})"
    return Report(STUDIES[study].question, header, rows, [f"{counted}. {NOTES[0]}", *NOTES[1:]])


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw by how much gold differs from pi_0's of the same seed, a dot per seed."""
    start, *found = lines(results)
    before = start.values["gold"]
    groups = {
        f"{line.variant}, pi_{line.iteration}": [value - before[seed] for seed, value in line.values["gold"].items()]
        for line in found
    }
    label = "gold above pi_0's of the same seed, mean of es, de, ru, sw; a dot per seed"
    find_engine("figures", "dots")(path, STUDIES[results[0].study].question, label, groups, 0.0)


def show_difference(interval: Estimate) -> str:
    """Return a difference with its interval as text."""
    spread = "" if math.isnan(interval.low) else f" [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{interval.value:+.3f}{spread}"


def _spread(line: Line, measure: str) -> str:
    mean, deviation = line.mean(measure), line.deviation(measure)
    if math.isnan(mean):
        return ""
    form: Callable[[float], str] = (lambda value: f"{value:.1f}") if measure == "tokens" else (lambda v: f"{v:.3f}")
    return form(mean) + ("" if math.isnan(deviation) else f" ({form(deviation)})")
