"""``crosspref report``: what was measured in a run."""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from crosspref.commands import command_line
from crosspref.data.records import Agreement, Measure, Prompt
from crosspref.errors import RunError
from crosspref.languages import ENGLISH
from crosspref.paths import require_writable
from crosspref.reports.report import agreement_report, answers_table, measures_report
from crosspref.reports.table import print_reports, write_if_possible
from crosspref.run.layout import RunDirectory
from crosspref.run.owned import require_closed
from crosspref.run.store import write_text
from crosspref.run.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--svg", type=require_writable, help="also write the table as a picture")


def execute(options: argparse.Namespace) -> None:
    run = RunDirectory(options.run)
    if run.iterations():
        require_closed(run.root)
    if not show_report(run, options.svg):
        raise RunError(
            f"Nothing has been measured in {options.run} yet. That takes a run whose recipe names evaluate.prompts; "
            f"`{command_line('status', options.run)}` says where it is."
        )


def show_report(run: RunDirectory, svg: Path | None) -> bool:
    """Show the report, if there is anything to show, and write it into the run if that is possible."""
    iterations = run.iterations()
    measures = [row for iteration in iterations for row in iteration.evaluation.measured()]
    units = [unit for iteration in iterations for unit in iteration.agreement.stored()]
    reports = [measures_report(measures)] if measures else []
    if units:
        reports.append(agreement_report([row for unit in units for row in unit.rows(Agreement)]))
    if not reports:
        return False
    answers = _answers(run, measures)
    if answers is not None:
        Terminal().print(answers)
    print_reports(reports)
    write_if_possible(run.report, reports)
    if svg:
        width = max(80, *(report.width for report in reports))
        canvas = Terminal(record=True, width=width, height=25, file=io.StringIO())
        if answers is not None:
            canvas.print(answers)
        for report in reports:
            canvas.print(report.table())
        write_text(svg, canvas.export_svg(title="crosspref"))
    return True


def _answers(run: RunDirectory, measures: Sequence[Measure]) -> Table | None:
    """Return what pi_0 and the last policy answered to the first held-out prompt, or None if they did not.

    The language is the first one of the run beside English. Of several answers the first is taken.
    """
    numbers = sorted({row.iteration for row in measures})
    if len(numbers) < 2:
        return None
    languages = sorted(dict.fromkeys(row.language for row in measures), key=lambda language: language == ENGLISH)
    places = {f"pi_{number}": run.iteration(number).evaluation for number in (numbers[0], numbers[-1])}
    stored = next(iter(places.values())).prompts.unit(languages[0])
    if not stored.marker.exists():
        return None
    prompt = next(iter(stored.rows(Prompt)), None)
    if prompt is None:
        return None
    answers = {
        name: response
        for name, place in places.items()
        for response in reversed(place.responses.rows(languages[0]))
        if response.prompt_id == prompt.prompt_id
    }
    return answers_table(prompt, answers) if len(answers) == len(places) else None
