"""``crosspref compare``: several runs side by side."""

import argparse
from pathlib import Path

from crosspref.paths import require_named, require_writable
from crosspref.reports.comparison import compare_runs
from crosspref.reports.table import print_reports
from crosspref.run.store import write_text
from crosspref.run.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the run directories")
    parser.add_argument(
        "--out", type=require_named, default="comparison", metavar="NAME", help="write NAME.md and NAME.csv"
    )


def execute(options: argparse.Namespace) -> None:
    for ending in ("md", "csv"):
        require_writable(f"{options.out}.{ending}")
    comparison = compare_runs(options.runs)
    print_reports([comparison.report(by_language=False)])
    files = {"md": comparison.report(by_language=True).markdown(), "csv": comparison.csv()}
    for ending, text in files.items():
        write_text(Path(f"{options.out}.{ending}"), text)
    say(f"Written: {' and '.join(f'{options.out}.{ending}' for ending in files)}")
