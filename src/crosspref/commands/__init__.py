"""The command line, one file per command: each has ``add``, which describes the command to argparse, and its function.

Only ``cli`` imports these modules, all of them at once, so they import the other rooms inside their functions.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspref.data.records import Pair, Response
    from crosspref.engines import EngineFactory
    from crosspref.recipe.stages import StageSettings

Commands = Any
"""What ``argparse.ArgumentParser.add_subparsers`` returns; argparse keeps its type private."""

NAMES = (
    *("run", "check", "init", "plan", "status", "report", "compare", "settings"),
    *("sample", "translate", "score", "select", "train", "evaluate"),
    *("leaderboard", "audit", "lab", "canary", "phase"),
)
"""The commands, each a module of this package, in the order of ``crosspref --help``."""

TABLE = "(.parquet or .jsonl)"
PROMPTS = "parallel prompts: file, folder, package:NAME/path or hub id"
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


def table_name(name: str) -> str:
    """Return a table's file name, or stop here: after hours of sampling it is late to hear that it cannot be used."""
    if not name.endswith((".parquet", ".jsonl")):
        raise argparse.ArgumentTypeError(f"{name} must end with .parquet or .jsonl")
    return name


def command_line(*arguments: str) -> str:
    """Return a crosspref command as a person must type it here: with the program's path if it is not on the PATH."""
    beside = Path(sys.executable).with_name("crosspref")
    on_path = shutil.which("crosspref")
    if on_path is not None and Path(on_path).parent.resolve() == beside.parent.resolve():
        program = ["crosspref"]
    elif beside.is_file():
        program = [str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)]
    else:
        program = [sys.executable, "-m", "crosspref"]
    return shlex.join([*program, *arguments])


def languages_of(rows: "Sequence[Response | Pair]", path: str) -> list[str]:
    """Return the languages of a table's rows.

    Raises:
        DataError: it has none.
    """
    from crosspref.errors import DataError

    if not rows:
        raise DataError(f"{path} has no rows.")
    return sorted({row.language for row in rows})


def stage_engines(settings: "StageSettings", **models: str | None) -> "EngineFactory":
    """Return the engines of a stage that runs alone.

    Args:
        settings: the sections that the stage reads.
        models: the names of models by the roles in which a server knows them.
    """
    from dataclasses import fields

    from crosspref.engines import EngineFactory, EngineSettings

    sections = {field.name: getattr(settings, field.name, None) for field in fields(EngineSettings)}
    given = {name: section for name, section in sections.items() if section is not None}
    roles = {name: role for role, name in models.items() if name is not None}
    return EngineFactory(EngineSettings(**given, trust_remote_code=settings.models.trust_remote_code, roles=roles))
