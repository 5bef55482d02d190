"""The command ``crosspref lab``: one run in a world whose true reward is known, or a study over seeds."""

import argparse
import os
from pathlib import Path

from crosspref.engines import find_engine
from crosspref.errors import RunError
from crosspref.lab.world import measure, studies
from crosspref.lab.world.evidence import write_evidence
from crosspref.lab.world.experiment import lab_recipe, run, settings_digest
from crosspref.lab.world.files import World, make_world
from crosspref.paths import require_named, require_writable
from crosspref.recipe.files import merged
from crosspref.reports.table import print_reports
from crosspref.run.progress import Reporter
from crosspref.run.store import write_text
from crosspref.run.terminal import say

ENDINGS = ("md", "csv", "svg")
"""The files that a run or a study leaves."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=require_named, default="runs/lab", metavar="DIR", help="where runs and tables go (runs/lab)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--iterations", type=int, default=2, help="iterations of a single run (2)")
    parser.add_argument(
        "--study", metavar="NAME", help="compare variants over seeds; an unknown NAME lists the studies"
    )
    parser.add_argument("--seeds", type=int, default=4, metavar="K", help="how many seeds a study has (4)")
    parser.add_argument("--jobs", type=int, metavar="J", help="seeds of a study that run side by side (all cores)")
    parser.add_argument("--evidence", metavar="DIR", help="only write DIR.md from the studies' results in DIR")


def execute(options: argparse.Namespace) -> None:
    find_engine("figures", "curves")  # what draws must not be missed only when there is something to draw
    if options.evidence:
        say(f"Written: {write_evidence(Path(options.evidence))}")
    elif options.study:
        _study(options)
    else:
        _single(options)


def _single(options: argparse.Namespace) -> None:
    if not (0 <= options.seed < 2**32 and 0 <= options.iterations <= 1000):
        raise RunError(
            f"--seed is {options.seed} and --iterations is {options.iterations}, but a seed is at least 0 and below "
            "2^32, and there are at most 1,000 iterations."
        )
    reporter, out, threads = Reporter(), Path(options.out), min(2, os.cpu_count() or 1)
    name = f"seed_{options.seed}_alone"
    for ending in ENDINGS:
        require_writable(out / f"{name}.{ending}")
    files = make_world(World(), options.seed, threads, reporter)
    content = merged(lab_recipe(files, options.seed, threads), {"iterations": options.iterations})
    job = run(content, files.heldout, out / name, reporter)
    measured = measure.measure_run(job)
    report = measure.report(measured)
    write_text(out / f"{name}.md", report.markdown())
    write_text(out / f"{name}.csv", measure.to_csv(measured, options.seed, settings_digest(content)))
    measure.draw(measured, out / f"{name}.svg", options.seed)
    print_reports([report])
    reporter.say(f"Written: {out / name}.md, .csv and .svg. The run: {job.run.root}")


def _study(options: argparse.Namespace) -> None:
    jobs = os.cpu_count() or 1 if options.jobs is None else options.jobs
    if options.seeds < 1 or jobs < 1:
        raise RunError(f"--seeds is {options.seeds} and --jobs is {jobs}, but a study needs at least one of both.")
    out = Path(options.out)
    for ending in ENDINGS:
        require_writable(out / f"{options.study}.{ending}")
    seeds = range(options.seed, options.seed + options.seeds)
    results = studies.run_study(options.study, seeds, out, jobs=jobs, threads=1)
    report = studies.report(results)
    write_text(out / f"{options.study}.md", report.markdown())
    write_text(out / f"{options.study}.csv", studies.to_csv(results))
    studies.draw(results, out / f"{options.study}.svg")
    print_reports([report])
    say(f"Written: {', '.join(str(out / options.study) + end for end in ('.md', '.csv', '.svg'))}")
