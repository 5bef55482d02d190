"""``crosspref run``: run a recipe, or resume a run that was stopped."""

import argparse
from pathlib import Path

from crosspref import api
from crosspref.commands import RECIPE, add_set, command_line
from crosspref.commands.report import show_report
from crosspref.paths import require_named
from crosspref.plan.planner import expected_seconds
from crosspref.run.layout import RunDirectory, given_recipe
from crosspref.run.progress import Reporter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help=RECIPE)
    parser.add_argument("--out", required=True, type=require_named, metavar="RUN", help="the run directory")
    add_set(parser)
    parser.set_defaults(resume=_resume_command)


def execute(options: argparse.Namespace) -> None:
    recipe = given_recipe(options.recipe, options.overrides)
    reporter = Reporter()
    reporter.say(f"Run directory: {options.out}. To stop: Ctrl-C. To resume: {_resume_command(options)}")
    final = api.align(recipe, options.out, reporter=reporter, expected=expected_seconds(recipe))
    run = RunDirectory(options.out)
    show_report(run, None)
    reporter.say(f"The aligned policy: {final}")
    reporter.say(f"Report, pairs, scores and responses: {run.root}")
    reporter.say(f"To align a model of your own, start with: {command_line('init', 'my-alignment')}")


def _resume_command(options: argparse.Namespace) -> str:
    overrides = [part for override in options.overrides for part in ("--set", override)]
    return command_line("run", options.recipe, "--out", str(Path(options.out)), *overrides)
