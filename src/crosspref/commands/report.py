"""``crosspref report``: what was measured in a run."""

import argparse
from typing import TYPE_CHECKING

from crosspref.commands import Commands, command_line

if TYPE_CHECKING:
    from crosspref.run.store import RunDirectory


def add(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("report", help="show what was measured in a run")
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--svg", help="also write the table as a picture")
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> None:
    from crosspref.errors import RunError
    from crosspref.run.store import RunDirectory

    if not show_report(RunDirectory(options.run), options.svg):
        raise RunError(
            f"Nothing has been measured in {options.run} yet. That takes a run whose recipe names evaluate.prompts; "
            f"`{command_line('status', options.run)}` says where it is."
        )


def show_report(run: "RunDirectory", svg: str | None) -> bool:
    """Show the report, if there is anything to show, and write it into the run."""
    import io

    from rich.console import Console

    from crosspref.data.records import Agreement, Measure
    from crosspref.reports.report import agreement_report, measures_report
    from crosspref.reports.table import print_reports
    from crosspref.run.store import Unit, write_text

    kinds = (
        ("iteration_*/evaluation/measures.parquet", Measure, measures_report),
        ("iteration_*/agreement/*.parquet", Agreement, agreement_report),
    )
    reports = []
    for pattern, kind, make in kinds:
        rows = [row for path in sorted(run.root.glob(pattern)) for row in Unit(path).rows(kind)]
        reports += [make(rows)] if rows else []
    if not reports:
        return False
    write_text(run.root / "report.md", "\n".join(report.markdown() for report in reports))
    print_reports(reports)
    if svg:
        canvas = Console(record=True, width=80, file=io.StringIO())
        for report in reports:
            canvas.print(report.table())
        canvas.save_svg(svg, title="crosspref")
    return True
