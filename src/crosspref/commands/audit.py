"""The command ``crosspref audit``: how noisy the scores of a run are."""

import argparse

from crosspref.errors import RecipeError
from crosspref.reports.audit import audit_run
from crosspref.reports.table import print_reports, write_if_possible
from crosspref.run.layout import RunDirectory
from crosspref.run.progress import Reporter
from crosspref.run.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Score some responses of a run again in float32, one at a time, and show by how many nats its scores are off, "
        "next to the gap between best and worst response."
    )
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--iteration", type=int, metavar="T", help="whose scores; the last that has pairs if left out")
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="prompts per language (8)")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the models; the run's recipe alone is not enough",
    )


def execute(options: argparse.Namespace) -> None:
    if options.prompts < 1:
        raise RecipeError(f"--prompts must be at least 1, but it is {options.prompts}.")
    report, _, iteration = audit_run(
        options.run, options.iteration, options.prompts, Reporter(), trust_remote_code=options.trust_remote_code
    )
    print_reports([report])
    path = RunDirectory(options.run).iteration(iteration).audit
    if write_if_possible(path, [report]):
        say(f"Written: {path}")
