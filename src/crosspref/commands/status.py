"""``crosspref status``: where a run is."""

import argparse

from crosspref.commands import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("status", help="show where a run is")
    parser.add_argument("run", help="the run directory")
    parser.set_defaults(command=_status)


def _status(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from crosspref import api

    statuses = api.status(options.run)
    table = Table(box=None)
    for name in ("iteration", "phase", "done", "of"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for status in statuses:
        total = "?" if status.total is None else str(status.total)
        table.add_row(str(status.phase.iteration), status.phase.name, str(status.done), total)
    console = Console()
    console.print(table)
    current = next((status.phase for status in statuses if not status.is_done), None)
    console.print(f"Next: {current.name} of iteration {current.iteration}." if current else "Everything is done.")
