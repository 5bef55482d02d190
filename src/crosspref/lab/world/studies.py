"""Comparisons with controls: variants of the laboratory's recipe, each over the same seeds, and their results."""

import csv
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from crosspref import __version__
from crosspref.errors import RunError
from crosspref.lab.world.corpus import TRANSLATOR, World
from crosspref.lab.world.experiment import (
    Content,
    Given,
    GoldRewardModel,
    RandomRewardModel,
    lab_recipe,
    merged,
    run,
    settings_digest,
)
from crosspref.lab.world.measure import MEASURES, measure_run
from crosspref.lab.world.setup import WorldFiles, make_world
from crosspref.protocols import RewardModel
from crosspref.run.job import Job
from crosspref.run.progress import Reporter
from crosspref.run.store import write_text

BASE = "R_c, alpha per language"
"""The laboratory's recipe as it is; every study has it."""

TRANSLATOR_SEED = 10_000
TRANSLATOR_WORLD = World(mix=TRANSLATOR)


@dataclass(frozen=True, slots=True)
class Variant:
    """What differs from the laboratory's recipe."""

    changes: Content = field(default_factory=dict)
    given: Given = field(default_factory=Given)
    needs_translator: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """A question, and the variants that answer it; the first one is what the others are compared with."""

    question: str
    iterations: int
    variants: dict[str, Variant]


def _rated_by(reward_model: Callable[[], RewardModel]) -> Variant:
    changes = {"reward": {"name": "reward_model"}, "length_penalty": {"mode": "none"}}
    return Variant(changes, Given(reward_model))


STUDIES: dict[str, Study] = {
    "rewards": Study(
        "Which reward finds the better pairs (Tables 1, 12)?",
        1,
        {
            BASE: Variant(),
            "R_m": Variant({"reward": {"name": "multilingual"}}),
            "R_t, the policy translates": Variant({"reward": {"name": "translated"}}),
            "R_t, a good translator": Variant({"reward": {"name": "translated"}}, needs_translator=True),
            "gold labels": _rated_by(GoldRewardModel),
            "random pairs": _rated_by(RandomRewardModel),
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
    """What one variant gave with one seed, in one iteration and language; a value is None where there is none."""

    study: str
    variant: str
    seed: int
    iteration: int
    language: str
    values: Mapping[str, float | None]
    settings: str
    version: str


COLUMNS = ("study", "variant", "seed", "iteration", "language", *MEASURES, "settings", "version")


def run_seed(name: str, seed: int, out: Path, threads: int, world: World | None = None) -> list[Result]:
    """Run every variant of a study with one seed; what was done before is not done again.

    The runs lie in ``out / seed_N``, and studies share the one of the laboratory's own recipe.
    """
    study, reporter, world = STUDIES[name], Reporter(), world or World()
    files = make_world(world, seed, threads, reporter)
    content = merged(lab_recipe(files, seed, threads), {"iterations": study.iterations})
    folder = out / f"seed_{seed}"
    results: list[Result] = []
    for variant, what in study.variants.items():
        reporter.say(f"study {name}, seed {seed}: {variant}")
        own = merged(content, _changes(what, files, threads, reporter))
        base = folder / "base"
        place = base if variant == BASE else folder / name / "".join(c if c.isalnum() else "_" for c in variant)
        if variant == BASE:  # may have gone further for another study
            own["iterations"] = max(study.iterations, _iterations(base))
        job = run(own, files.heldout, place, reporter, what.given, None if variant == BASE else base)
        results += _results(name, variant, seed, job, study.iterations, settings_digest(own))
    write_text(folder / f"{name}.csv", to_csv(results))
    return results


def _changes(variant: Variant, files: WorldFiles, threads: int, reporter: Reporter) -> Content:
    changes = dict(variant.changes)
    if variant.given.reward_model:
        changes["reward"] = {**changes["reward"], "reward_model": str(files.initial)}
    if variant.needs_translator:
        translator = make_world(TRANSLATOR_WORLD, TRANSLATOR_SEED, threads, reporter)
        changes["translate"] = {"model": str(translator.initial)}
    return changes


def _iterations(base: Path) -> int:
    return sum(1 for _ in base.glob("iteration_[1-9]*/policy.done.json"))


def _results(study: str, variant: str, seed: int, job: Job, iterations: int, settings: str) -> list[Result]:
    found: dict[tuple[int, str], dict[str, float | None]] = {}
    for row in measure_run(job, resamples=2):
        if row.iteration <= iterations:
            values = found.setdefault((row.iteration, row.language), dict.fromkeys(MEASURES))
            values[row.measure] = row.interval.value
    return [Result(study, variant, seed, *key, values, settings, __version__) for key, values in found.items()]


def run_study(name: str, seeds: Sequence[int], out: Path, *, jobs: int, threads: int) -> list[Result]:
    """Run a study over seeds, ``jobs`` of them side by side, each in a process of its own.

    Raises:
        RunError: there is no such study, or a seed failed; the others are kept.
    """
    if name not in STUDIES:
        raise RunError(f"There is no study {name!r}. Known: {', '.join(STUDIES)}")
    # The processes' warnings are as unwanted as the command's own.
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=warnings.simplefilter, initargs=("ignore",), max_tasks_per_child=1
    ) as pool:
        futures = [pool.submit(run_seed, name, seed, out, threads) for seed in seeds]
        results = [row for future in as_completed(futures) for row in future.result()]
    order = list(STUDIES[name].variants)
    return sorted(results, key=lambda row: (order.index(row.variant), row.seed))


def to_csv(results: Sequence[Result]) -> str:
    """Return results as CSV, rounded to what a person reads."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in results:
        values = ["" if (value := row.values.get(name)) is None else f"{value:.4f}" for name in MEASURES]
        table.writerow(
            [row.study, row.variant, row.seed, row.iteration, row.language, *values, row.settings, row.version]
        )
    return text.getvalue()


def from_csv(path: Path) -> list[Result]:
    """Read what `to_csv` wrote.

    Raises:
        RunError: the file has other columns.
    """
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        if tuple(table.fieldnames or ()) != COLUMNS:
            raise RunError(f"{path} has other columns than a study's results: {', '.join(COLUMNS)}")
        return [
            Result(
                row["study"],
                row["variant"],
                int(row["seed"]),
                int(row["iteration"]),
                row["language"],
                {name: float(row[name]) if row[name] else None for name in MEASURES},
                row["settings"],
                row["version"],
            )
            for row in table
        ]
