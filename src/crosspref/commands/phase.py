"""``crosspref phase``: one phase of a run, in a process of its own; only ``crosspref run`` calls it."""

import argparse

from crosspref import api
from crosspref.run.processes import end_with_parent
from crosspref.run.progress import Reporter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run")
    parser.add_argument("name")
    parser.add_argument("iteration", type=int)


def execute(options: argparse.Namespace) -> None:
    end_with_parent()
    api.run_phase(options.run, options.name, options.iteration, Reporter())
