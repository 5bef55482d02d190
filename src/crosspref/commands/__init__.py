"""The command line, one file per command: each has ``add_arguments``, for argparse, and ``execute``, which does it.

Only ``cli`` imports these modules: the one of the command that is given. This file is imported for every command.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crosspref.errors import DataError
from crosspref.paths import require_writable, working_directory

if TYPE_CHECKING:
    from crosspref.data.records import Pair, Response

COMMANDS = {
    "run": "run a recipe, or resume a run that was stopped",
    "check": "find what would stop a run, without running",
    "init": "write a commented recipe and a few prompts to start from",
    "plan": "say what a recipe will take: tokens, FLOPs, memory, hours, price, disk",
    "status": "show where a run is",
    "verify": "read everything of a run, and say what is damaged",
    "report": "show what was measured in a run",
    "compare": "show several runs side by side",
    "settings": "list every setting with its default and what it does",
    "sample": "draw responses to prompts from a model (Eq. 7)",
    "translate": "translate responses into English, for the reward translated (Eq. 14)",
    "score": "score responses by a reward (Eq. 8, 9, 12, 13)",
    "select": "make preference pairs under the optimal length penalty (Eq. 10, 15)",
    "train": "train a model on preference pairs (Eq. 11, 16); if it was stopped, the same command resumes it",
    "evaluate": "measure a run or a model by a suite; or count what can be counted in responses",
    "leaderboard": "show what suites measured in several runs as one table, beside the paper's",
    "audit": "score some responses of a run again, exactly, and show the noise",
    "lab": "align a tiny model in a world whose true reward is known",
    "canary": "teach a real model a verifiable trait in English, and see whether it carries over",
    "phase": None,
    "examine": None,
}
"""What ``crosspref --help`` says of each command, a module of this package; nobody types ``phase`` and ``examine``."""

TABLE = "(.parquet or .jsonl)"
PROMPTS = "parallel prompts: files, folders, package:NAME/path or hub ids"
RECIPE = "the recipe file (YAML), or one that comes with crosspref: recipe:NAME"


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add ``--set KEY=VALUE``, which is stored as ``overrides``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a setting, for example --set sample.n=4; may be given several times",
    )


def output_table(name: str) -> Path:
    """Return where a table goes, or stop here: after hours of sampling it is late to hear that it cannot be written."""
    if not name.endswith((".parquet", ".jsonl")):
        raise argparse.ArgumentTypeError(f"{name} must end with .parquet or .jsonl")
    return require_writable(name)


def command_line(*arguments: str) -> str:
    """Return a crosspref command as a person must type it here: with the program's path if it is not on the PATH."""
    beside = Path(sys.executable).with_name("crosspref")
    on_path = shutil.which("crosspref")
    if on_path is not None and Path(on_path).parent.resolve() == beside.parent.resolve():
        program = ["crosspref"]
    elif beside.is_file():
        here = working_directory()
        program = [str(beside.relative_to(here) if beside.is_relative_to(here) else beside)]
    else:
        program = [sys.executable, "-P", "-m", "crosspref"]
    return shlex.join([*program, *arguments])


def languages_of(rows: "Sequence[Response | Pair]", path: str) -> list[str]:
    """Return the languages of a table's rows.

    Raises:
        DataError: it has none.
    """
    if not rows:
        raise DataError(f"{path} has no rows.")
    return sorted({row.language for row in rows})
