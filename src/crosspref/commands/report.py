"""``crosspref report``: what was measured in a run."""

import argparse
from typing import TYPE_CHECKING

from crosspref.commands import Commands, command_line

if TYPE_CHECKING:
    from crosspref.run.layout import RunDirectory


def add(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("report", help="show what was measured in a run")
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--svg", help="also write the table as a picture")
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> None:
    from crosspref.errors import RunError
    from crosspref.run.layout import RunDirectory

    if not show_report(RunDirectory(options.run), options.svg):
        raise RunError(
            f"Nothing has been measured in {options.run} yet. That takes a run whose recipe names evaluate.prompts; "
            f"`{command_line('status', options.run)}` says where it is."
        )


def show_report(run: "RunDirectory", svg: str | None) -> bool:
    """Show the report, if there is anything to show, and write it into the run."""
    import io

    from rich.console import Console

    from crosspref.data.records import Agreement
    from crosspref.reports.report import agreement_report, measures_report
    from crosspref.reports.table import print_reports
    from crosspref.run.store import write_text

    iterations = run.iterations()
    measures = [row for iteration in iterations for row in iteration.evaluation.measured()]
    units = [unit for iteration in iterations for unit in iteration.agreement.stored()]
    reports = [measures_report(measures)] if measures else []
    if units:
        reports.append(agreement_report([row for unit in units for row in unit.rows(Agreement)]))
    if not reports:
        return False
    write_text(run.report, "\n".join(report.markdown() for report in reports))
    print_reports(reports)
    if svg:
        canvas = Console(record=True, width=80, file=io.StringIO())
        for report in reports:
            canvas.print(report.table())
        canvas.save_svg(svg, title="crosspref")
    return True
