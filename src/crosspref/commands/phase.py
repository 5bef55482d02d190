"""``crosspref phase``: one phase of a run, in a process of its own; only ``crosspref run`` calls it."""

import argparse

from crosspref.commands import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser's commands, without a help text: nobody types it."""
    parser = commands.add_parser("phase")
    parser.add_argument("run")
    parser.add_argument("name")
    parser.add_argument("iteration", type=int)
    parser.set_defaults(command=_phase)


def _phase(options: argparse.Namespace) -> None:
    from crosspref import api
    from crosspref.run.processes import end_with_parent
    from crosspref.run.progress import Reporter

    end_with_parent()
    api.run_phase(options.run, options.name, options.iteration, Reporter())
