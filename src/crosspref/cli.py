"""The command line. Heavy libraries are imported only after the arguments are parsed."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crosspref import __version__
from crosspref.errors import CrossprefError

if TYPE_CHECKING:
    from crosspref.run.store import RunDirectory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # Libraries' own warnings and bars would tear ours apart; errors still come through.
    warnings.filterwarnings("ignore")
    for name, value in (("TOKENIZERS_PARALLELISM", "false"), ("HF_HUB_DISABLE_TELEMETRY", "1")):
        os.environ.setdefault(name, value)
    try:
        options.command(options)
    except CrossprefError as error:
        print(f"crosspref: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        going_on = options.command is _run
        kept = f" What was finished is kept.\nTo go on: {_resume_command(options)}" if going_on else ""
        print(f"\nStopped.{kept}", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crosspref",
        description="Carry a language model's English preference alignment into other languages.",
        epilog="Stages alone, on files of your own: crosspref STAGE --help",
    )
    parser.add_argument("--version", action="version", version=f"crosspref {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a recipe, or go on with a run that was stopped")
    run.add_argument("recipe", help="the recipe file (YAML)")
    run.add_argument("--out", required=True, metavar="RUN", help="the run directory")
    _add_set(run)
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="check a recipe, its models and its prompts, without running")
    check.add_argument("recipe", help="the recipe file (YAML)")
    _add_set(check)
    check.set_defaults(command=_check)

    status = commands.add_parser("status", help="show where a run is")
    status.add_argument("run", help="the run directory")
    status.set_defaults(command=_status)

    report = commands.add_parser("report", help="show what was measured in a run")
    report.add_argument("run", help="the run directory")
    report.add_argument("--svg", help="also write the table as a picture")
    report.set_defaults(command=_report)

    compare = commands.add_parser("compare", help="show several runs side by side")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="the run directories")
    compare.add_argument("--out", default="comparison", metavar="NAME", help="write NAME.md and NAME.csv")
    compare.set_defaults(command=_compare)

    settings = commands.add_parser("settings", help="list every setting with its default and what it does")
    settings.add_argument(
        "--suites", action="store_true", help="those of `crosspref evaluate --suite`, not of a recipe"
    )
    settings.set_defaults(command=_settings)

    from crosspref.commands import audit as cli_audit
    from crosspref.commands import canary as cli_canary
    from crosspref.commands import lab as cli_lab
    from crosspref.commands import leaderboard as cli_leaderboard
    from crosspref.commands import plan as cli_plan
    from crosspref.commands import stages as cli_stages

    cli_stages.add_commands(commands, _add_set)
    cli_plan.add_command(commands, _add_set)
    cli_leaderboard.add_command(commands)
    cli_audit.add_command(commands)
    cli_lab.add_command(commands)
    cli_canary.add_command(commands, _add_set)

    phase = commands.add_parser("phase")  # without help: `run` uses it for phases in a process of their own
    phase.add_argument("run")
    phase.add_argument("name")
    phase.add_argument("iteration", type=int)
    phase.set_defaults(command=_phase)
    return parser


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a setting, for example --set sample.n=4; may be given several times",
    )


def _run(options: argparse.Namespace) -> None:
    from crosspref import api
    from crosspref.recipe.files import load_recipe
    from crosspref.run.progress import Reporter
    from crosspref.run.store import RunDirectory

    recipe = load_recipe(options.recipe, options.overrides)
    reporter = Reporter()
    reporter.say(f"Run directory: {options.out}. To stop: Ctrl-C. To go on: {_resume_command(options)}")
    final = api.align(recipe, options.out, reporter=reporter)
    run = RunDirectory(options.out)
    _show_report(run, None)
    reporter.say(f"The aligned policy: {final}")
    reporter.say(f"Report, pairs, scores and responses: {run.root}")


def _check(options: argparse.Namespace) -> None:
    from crosspref.commands.checking import check_recipe
    from crosspref.recipe.files import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    print(f"ok    recipe {options.recipe}")  # noqa: T201
    for line in check_recipe(recipe):
        print(line)  # noqa: T201


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
    here = next((phase for phase in phases if not phase.is_done), None)
    console.print(f"Next: {here.phase} of iteration {here.iteration}." if here else "Everything is done.")


def _settings(options: argparse.Namespace) -> None:
    from crosspref.recipe.files import describe_settings
    from crosspref.recipe.schema import Recipe
    from crosspref.suites.settings import EvaluationSettings

    for line in describe_settings(EvaluationSettings if options.suites else Recipe):
        print(line)  # noqa: T201


def _report(options: argparse.Namespace) -> None:
    from crosspref.errors import RunError
    from crosspref.run.store import RunDirectory

    if not _show_report(RunDirectory(options.run), options.svg):
        raise RunError(
            f"Nothing has been measured in {options.run} yet. That takes a run whose recipe names evaluate.prompts; "
            f"`crosspref status {options.run}` says where it is."
        )


def _show_report(run: "RunDirectory", svg: str | None) -> bool:
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


def _compare(options: argparse.Namespace) -> None:
    from crosspref.errors import RunError
    from crosspref.reports.comparison import compare_runs
    from crosspref.reports.table import print_reports
    from crosspref.run.store import write_text

    comparison = compare_runs(options.runs)
    print_reports([comparison.report(by_language=False)])
    files = {"md": comparison.report(by_language=True).markdown(), "csv": comparison.csv()}
    for ending, text in files.items():
        try:
            write_text(Path(f"{options.out}.{ending}"), text)
        except OSError as error:
            raise RunError(f"{options.out}.{ending} cannot be written: {error}") from error
    print(f"Written: {' and '.join(f'{options.out}.{ending}' for ending in files)}")  # noqa: T201


def _phase(options: argparse.Namespace) -> None:
    from crosspref import api
    from crosspref.run.children import end_with_parent
    from crosspref.run.progress import Reporter

    end_with_parent()
    api.run_phase(options.run, options.name, options.iteration, Reporter())


def _resume_command(options: argparse.Namespace) -> str:
    import shlex

    extra = [part for override in options.overrides for part in ("--set", override)]
    return shlex.join(["crosspref", "run", options.recipe, "--out", str(Path(options.out)), *extra])


if __name__ == "__main__":
    sys.exit(main())
