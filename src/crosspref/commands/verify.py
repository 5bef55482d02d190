"""``crosspref verify``: read everything of a run, and say what is damaged."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from crosspref import api
from crosspref.commands import command_line
from crosspref.errors import RunError
from crosspref.run.layout import RunDirectory
from crosspref.run.terminal import say
from crosspref.run.verify import MOST_LINES, Damage, Findings

SHOWN = 5
"""How many files are named that are no results."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the run directory")


def execute(options: argparse.Namespace) -> None:
    """Say what is damaged, what makes it again, and what was read.

    Raises:
        RunError: something is damaged, or there is no run in the directory.
    """
    run = RunDirectory(options.run)
    findings = api.verify(run.root)
    for damage in findings.damages:
        say(f"{_within(damage.path, run)}: {damage.problem}")
        say(f"    {_mend(damage, run)}")
    for line in _summary(findings, run):
        say(line)
    if findings.damages:
        raise RunError(
            f"Damage was found in {len(findings.damages)} places. Remove the files named above, run the command "
            f"below, and verify again: {command_line('run', str(run.recipe), '--out', str(run.root))}"
        )


def _within(path: Path, run: RunDirectory) -> str:
    return os.path.relpath(path, run.root)


def _mend(damage: Damage, run: RunDirectory) -> str:
    """Say what makes it again, and the command that removes first what is damaged."""
    if damage.path == run.recipe:
        return "Restore the recipe that the run was started with."
    if damage.lines:
        script = "".join(f"{number}d;" for number in damage.lines[:MOST_LINES])
        return f"The command that asked the judge asks it again: {shlex.join(['sed', '-i', script, str(damage.path)])}"
    if damage.phase is None:
        made = "The command that made it makes it again"
    else:
        made = f"The phase {damage.phase.name} of iteration {damage.phase.iteration} makes it again"
    remove = f": {shlex.join(['rm', '-r', *map(str, damage.remove)])}" if damage.remove else ""
    return f"{made}{remove}"


def _summary(findings: Findings, run: RunDirectory) -> Sequence[str]:
    read = f"Read: {findings.units:,} finished units, {findings.files:,} files, {findings.size:,} bytes."
    lines = [read]
    if findings.unrecorded:
        lines.append(f"No digest was recorded for {findings.unrecorded:,} files: older versions recorded none.")
    if findings.others:
        shown = ", ".join(_within(path, run) for path in findings.others[:SHOWN])
        more = ", ..." if len(findings.others) > SHOWN else ""
        lines.append(f"Not read: {len(findings.others):,} files that are no finished results: {shown}{more}.")
    if findings.uncompared is not None:
        phase = f"{findings.uncompared.name} of iteration {findings.uncompared.iteration}"
        lines.append(f"The rows of {phase}, and of later phases, were not compared: damage is in the way.")
    if not findings.damages:
        lines.append("Nothing is damaged.")
    return lines
