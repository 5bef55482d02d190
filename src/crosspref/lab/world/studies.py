"""Comparisons with controls: variants of the laboratory's recipe, each over the same seeds, and what the seeds say.

Differences between variants are paired by seed.
"""

import math
import os
import signal
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from crosspref import __version__
from crosspref.data.rows import column_names, read_file
from crosspref.engines import find_engine
from crosspref.errors import DataError, RunError
from crosspref.lab.world.experiment import (
    Content,
    Given,
    Rating,
    gold_rating,
    lab_recipe,
    random_rating,
    run,
    settings_digest,
)
from crosspref.lab.world.files import TRANSLATOR, World, WorldFiles, make_world
from crosspref.lab.world.measure import HEADINGS, MEASURES, MEASURES_NOTE, measure_run, without_english
from crosspref.languages import ENGLISH
from crosspref.maths.estimate import Estimate
from crosspref.maths.statistics import difference_interval
from crosspref.paths import SAFE_PATH
from crosspref.recipe.files import merged
from crosspref.reports.table import Report, csv_text
from crosspref.run.layout import RunDirectory
from crosspref.run.processes import ending
from crosspref.run.progress import Reporter
from crosspref.run.store import write_text

BASE = "R_c, alpha per language"
"""The laboratory's recipe as it is; every study has it."""
POLICY_0 = "pi_0"
ENGLISH_GOLD = "English gold"
"""Stands beside `MEASURES`, which are means over the languages other than English."""

TRANSLATOR_SEED = 10_000
TRANSLATOR_WORLD = World(mix=TRANSLATOR)
COLUMNS = ("study", "variant", "seed", "iteration", "language", *MEASURES, "settings", "version")
NOTES = [
    "Mean of the four languages other than English, and sd over seeds; English gold has its own column. difference: in "
    "gold from the first row of the same iteration, paired by seed, with its 95% interval (Student's t over seeds).",
    MEASURES_NOTE,
    "The labels of the English preferences are not pure gold: their annotator adds .04 per token.",
]


@dataclass(frozen=True, slots=True)
class Variant:
    """What differs from the laboratory's recipe."""

    changes: Content = field(default_factory=dict)
    given: Given = field(default_factory=Given)
    needs_translator: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """A question, and the variants that answer it; the others are compared with the first one."""

    question: str
    iterations: int
    variants: dict[str, Variant]


def _rated_by(rating: Rating) -> Variant:
    changes = {"reward": {"name": "reward_model"}, "length_penalty": {"mode": "none"}}
    return Variant(changes, Given(rating))


STUDIES: dict[str, Study] = {
    "rewards": Study(
        "Which reward finds the better pairs (Tables 1, 12)?",
        1,
        {
            BASE: Variant(),
            "R_m": Variant({"reward": {"name": "multilingual"}}),
            "R_t, the policy translates": Variant({"reward": {"name": "translated"}}),
            "R_t, a good translator": Variant({"reward": {"name": "translated"}}, needs_translator=True),
            "gold labels": _rated_by(gold_rating),
            "random pairs": _rated_by(random_rating),
        },
    ),
    "length": Study(
        "What does the length penalty do (Tables 6, 11)?",
        2,
        {
            BASE: Variant(),
            "no penalty": Variant({"length_penalty": {"mode": "none"}}),
            "alpha .0125 for all": Variant({"length_penalty": {"mode": "fixed", "alpha": 0.0125}}),
        },
    ),
    "reference": Study(
        "Which reference should the reward have (Tables 6, 11)?",
        2,
        {BASE: Variant(), "previous policy": Variant({"reward": {"reference": "previous"}})},
    ),
    "methods": Study(
        "Which loss should train on the pairs (Table 2)?",
        1,
        {
            BASE: Variant(),
            "DPO": Variant({"train": {"nll_weight": 0.0}}),
            "KTO+NLL": Variant({"train": {"method": "kto"}}),
            "KTO": Variant({"train": {"method": "kto", "nll_weight": 0.0}}),
            "IPO": Variant({"train": {"method": "ipo", "nll_weight": 0.0}}),
            "SimPO": Variant({"train": {"method": "simpo", "nll_weight": 0.0, "beta": 2.0}}),
        },
    ),
    "prompts": Study(
        "How many prompts does it take (Table 13)?",
        1,
        {
            BASE: Variant(),
            **{f"{count} prompts": Variant({"prompts": {"limit": count}}) for count in (50, 100, 400, 800)},
        },
    ),
    "samples": Study(
        "How many responses per prompt does it take?",
        1,
        {BASE: Variant(), **{f"N = {n}": Variant({"sample": {"n": n}}) for n in (2, 4, 16)}},
    ),
    "noise": Study(
        "What does scoring in bfloat16 cost?",
        1,
        {BASE: Variant(), "scored in bfloat16": Variant(given=Given(scoring_dtype="bfloat16"))},
    ),
    "iterations": Study("How many iterations are good (Table 2)?", 5, {BASE: Variant()}),
    "lidr": Study(
        "Rewards, or language imbalance (Table 8)?",
        2,
        {BASE: Variant(), "LIDR": Variant({"language_imbalance": {}})},
    ),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What one variant gave with one seed, in one iteration and language; a value that was not measured is None."""

    study: str
    variant: str
    seed: int
    iteration: int
    language: str
    values: Mapping[str, float | None]
    settings: str
    version: str


def run_study(name: str, seeds: Sequence[int], out: Path, *, jobs: int, threads: int) -> list[Result]:
    """Run a study over seeds, ``jobs`` of them side by side, each in a process of its own.

    Raises:
        RunError: there is no such study, or a seed failed; the others are kept.
    """
    if name not in STUDIES:
        raise RunError(f"There is no study {name!r}. Known: {', '.join(STUDIES)}")
    os.environ |= SAFE_PATH  # for the processes; their warnings are as unwanted as the command's own
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=warnings.simplefilter, initargs=("ignore",), max_tasks_per_child=1
    ) as pool:
        futures = [pool.submit(run_seed, name, seed, out, threads) for seed in seeds]
        try:
            results = [result for future in as_completed(futures) for result in future.result()]
        except BrokenProcessPool as error:
            raise RunError(f"The process of a seed {ending(-signal.SIGKILL)}") from error
    order = list(STUDIES[name].variants)
    return sorted(results, key=lambda result: (order.index(result.variant), result.seed))


def run_seed(name: str, seed: int, out: Path, threads: int) -> list[Result]:
    """Run every variant of a study with one seed, as far as it has not been run before.

    The runs lie in ``out / seed_N``, and studies share the one of the laboratory's own recipe.
    """
    study, reporter, folder = STUDIES[name], Reporter(), out / f"seed_{seed}"
    files = make_world(World(), seed, threads, reporter)
    base = folder / "base"
    begun = RunDirectory(base).iterations()
    done = sum(places.number > 0 and places.policy.marker.exists() for places in begun)  # maybe for another study
    results = []
    for variant, differs in study.variants.items():
        reporter.say(f"study {name}, seed {seed}: {variant}")
        is_base = variant == BASE
        iterations = {"iterations": max(study.iterations, done) if is_base else study.iterations}
        changes = _changes(differs, files, threads, reporter)
        content = merged(merged(lab_recipe(files, seed, threads), iterations), changes)
        place = base if is_base else folder / name / "".join(c if c.isalnum() else "_" for c in variant)
        job = run(content, files.heldout, place, reporter, differs.given, None if is_base else base)
        values: dict[tuple[int, str], dict[str, float | None]] = {}
        for (iteration, language, measure), estimate in measure_run(job, resamples=2).items():
            if iteration <= study.iterations:
                values.setdefault((iteration, language), dict.fromkeys(MEASURES))[measure] = estimate.value
        settings = settings_digest(content)
        results += [Result(name, variant, seed, *key, row, settings, __version__) for key, row in values.items()]
    write_text(folder / f"{name}.csv", to_csv(results))
    return results


def _changes(variant: Variant, files: WorldFiles, threads: int, reporter: Reporter) -> Content:
    """Return a variant's changes, with the models that lie in the cache."""
    changes = dict(variant.changes)
    if variant.given.rating:
        changes["reward"] = {**changes["reward"], "reward_model": str(files.initial)}
    if variant.needs_translator:
        translator = make_world(TRANSLATOR_WORLD, TRANSLATOR_SEED, threads, reporter)
        changes["translate"] = {"model": str(translator.initial)}
    return changes


def to_csv(results: Sequence[Result]) -> str:
    """Return results as CSV, rounded to what a person reads."""
    rows = []
    for result in results:
        values = [None if value is None else f"{value:.4f}" for value in map(result.values.get, MEASURES)]
        key = [result.study, result.variant, result.seed, result.iteration, result.language]
        rows.append([*key, *values, result.settings, result.version])
    return csv_text(COLUMNS, rows, quoted=False)


def from_csv(path: Path) -> list[Result]:
    """Read what `to_csv` wrote.

    Raises:
        DataError: the file cannot be read, or has other columns than a study's results.
    """
    rows = read_file(path, str(path))
    if tuple(column_names(rows)) != COLUMNS:
        raise DataError(f"{path} has other columns than a study's results: {', '.join(COLUMNS)}")
    results = []
    for row in rows:
        if row.broken:
            raise row.error(row.broken)
        study, variant, language, settings, version = (
            str(row.values[name]) for name in ("study", "variant", "language", "settings", "version")
        )
        seed, iteration = int(row.number_in("seed")), int(row.number_in("iteration"))
        values = {measure: row.number_in(measure) if row.values[measure] else None for measure in MEASURES}
        results.append(Result(study, variant, seed, iteration, language, values, settings, version))
    return results


@dataclass(frozen=True, slots=True)
class Summary:
    """One variant at one iteration: the values of each measure, and of `ENGLISH_GOLD`, by seed."""

    variant: str
    iteration: int
    values: Mapping[str, Mapping[int, float]]

    def text(self, measure: str) -> str:
        """Return the mean over seeds and the standard deviation, as far as there is any."""
        values = list(self.values[measure].values())
        form = ".1f" if measure == "tokens" else ".2f" if measure == ENGLISH_GOLD else ".3f"
        deviation = f" ({np.std(values, ddof=1):{form}})" if len(values) > 1 and measure != ENGLISH_GOLD else ""
        return f"{np.mean(values):{form}}{deviation}" if values else ""


def summaries(results: Sequence[Result]) -> list[Summary]:
    """Gather results by variant and iteration; pi_0, which all variants share, comes first and once."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        variant = result.variant if result.iteration else POLICY_0
        groups.setdefault((variant, result.iteration), []).append(result)
    ordered = sorted(groups, key=lambda group: group[1])  # stable: variants stay in the study's order
    return [Summary(*group, _by_seed(groups[group])) for group in ordered]


def _by_seed(results: Sequence[Result]) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = {measure: {} for measure in (*MEASURES, ENGLISH_GOLD)}
    for seed in sorted({result.seed for result in results}):
        for measure in MEASURES:
            every = {result.language: result.values[measure] for result in results if result.seed == seed}
            known = {language: value for language, value in every.items() if value is not None}
            average = without_english(known)
            if not math.isnan(average):
                values[measure][seed] = average
            if measure == "gold":
                values[ENGLISH_GOLD][seed] = known[ENGLISH]
    return values


def difference(left: Summary, right: Summary, measure: str = "gold") -> Estimate:
    """Return the mean over seeds of left - right with its interval; only seeds that both have count."""
    of_left, of_right = left.values[measure], right.values[measure]
    seeds = sorted(of_left.keys() & of_right.keys())
    return difference_interval([of_left[seed] for seed in seeds], [of_right[seed] for seed in seeds])


def report(results: Sequence[Result]) -> Report:
    """Return a study's table."""
    seeds = sorted({result.seed for result in results})
    first: dict[int, Summary] = {}
    rows = []
    for summary in summaries(results):
        base = first.setdefault(summary.iteration, summary)
        gap = "" if summary is base else difference(summary, base).text("+.3f")
        cells = [summary.text(measure) for measure in (*HEADINGS, ENGLISH_GOLD)]
        rows.append([summary.variant, f"pi_{summary.iteration}", *cells, gap])
    header = ["variant", "policy", *HEADINGS.values(), "English\ngold", "difference"]
    which = f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})" if len(seeds) > 1 else f"One seed ({seeds[0]})"
    return Report(STUDIES[results[0].study].question, header, rows, [f"{which}. {NOTES[0]}", *NOTES[1:]])


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw by how much gold differs from pi_0's of the same seed, with a dot per seed."""
    start, *later = summaries(results)
    before = start.values["gold"]
    gains = {
        f"{row.variant}, pi_{row.iteration}": [value - before[seed] for seed, value in row.values["gold"].items()]
        for row in later
    }
    label = "gold above pi_0's of the same seed, mean of es, de, ru, sw; a dot per seed"
    find_engine("figures", "dots")(path, STUDIES[results[0].study].question, label, gains, 0.0)
