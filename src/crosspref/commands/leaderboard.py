"""The command ``crosspref leaderboard``: models of several runs by language, in one table."""

import argparse
from dataclasses import replace

from crosspref.paths import require_writable
from crosspref.run.store import write_text
from crosspref.run.terminal import Terminal, say
from crosspref.suites.leaderboard import leaderboard

SUITES = ("xalpaca", "mtbench")
FORMATS = ("terminal", "markdown", "csv", "latex")
ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex"}
"""The formats that a file's ending stands for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "One table of models by language: LC, WR and length from X-AlpacaEval, or MT-Bench's score."
    parser.add_argument("places", nargs="+", metavar="RUN", help="run directories, or folders of `evaluate --out`")
    parser.add_argument("--suite", choices=SUITES, default="xalpaca", help="whose results are shown (xalpaca)")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="how it is written; if left out, by FILE's ending (.md, .csv, .tex), else for the terminal",
    )
    parser.add_argument("--out", type=require_writable, metavar="FILE", help="write it there instead of showing it")
    parser.add_argument("--quoted", action="store_true", help="add the paper's Table 2 (mtbench: 3), marked as quoted")
    parser.add_argument("--intervals", action="store_true", help="add 95%% intervals (CSV always has them)")


def execute(options: argparse.Namespace) -> None:
    board = leaderboard(options.places, options.suite, quoted=options.quoted)
    ending = options.out.suffix.lower() if options.out else ""
    form = options.format or ENDINGS.get(ending, "terminal")
    report = board.report(intervals=options.intervals)
    if form == "csv":
        text = board.csv()
        for note in board.notes:  # which would be no CSV
            say(note, Terminal(stderr=True))
    elif form == "latex":
        text = report.latex()
    elif form == "markdown":
        text = replace(report, title="").markdown()
    else:
        text = report.screen(max(Terminal().width, 80))
    if options.out is None:
        print(text, end="")  # noqa: T201 - as a file would hold it: escaped, and not wrapped
        return
    write_text(options.out, text)
    say(f"Written: {options.out}")
