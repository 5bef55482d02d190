"""``crosspref status``: where a run is."""

import argparse

from rich.table import Table

from crosspref import api
from crosspref.run.terminal import Terminal, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the run directory")


def execute(options: argparse.Namespace) -> None:
    statuses = api.status(options.run)
    table = Table(box=None)
    for name in ("iteration", "phase", "done", "of"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for status in statuses:
        total = "?" if status.total is None else str(status.total)
        table.add_row(str(status.phase.iteration), status.phase.name, str(status.done), total)
    Terminal().print(table)
    current = next((status.phase for status in statuses if not status.is_done), None)
    say(f"Next: {current.name} of iteration {current.iteration}." if current else "Everything is done.")
