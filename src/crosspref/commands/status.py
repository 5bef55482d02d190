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

    from crosspref.run.status import run_status
    from crosspref.run.store import RunDirectory

    phases = run_status(RunDirectory(options.run))
    table = Table(box=None)
    for name in ("iteration", "phase", "done", "of"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for phase in phases:
        total = "?" if phase.total is None else str(phase.total)
        table.add_row(str(phase.iteration), phase.phase, str(phase.done), total)
    console = Console()
    console.print(table)
    current = next((phase for phase in phases if not phase.is_done), None)
    console.print(f"Next: {current.phase} of iteration {current.iteration}." if current else "Everything is done.")
