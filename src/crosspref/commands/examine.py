"""``crosspref examine``: examine the recipe on the standard input, in a process of its own; nobody types it.

It prints one line of JSON: what was found, and the errors by type and arguments.
"""

import argparse
import json
import sys
from typing import Any

from crosspref import api, errors
from crosspref.errors import CrossprefError
from crosspref.recipe.files import make_recipe, parse_yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--convert", action="store_true")


def execute(options: argparse.Namespace) -> None:
    recipe = make_recipe(parse_yaml(sys.stdin.read(), "The recipe"))
    lines, faults = api.examine(recipe, apart=False, convert=options.convert)
    print(json.dumps([lines, [_told(fault) for fault in faults]], default=str))  # noqa: T201 - all is ASCII


def _told(fault: CrossprefError) -> tuple[str, Any]:
    """Return an error's type, or the nearest one that ``errors`` has, and the arguments that make it again."""
    kind = next(base for base in type(fault).__mro__ if base.__module__ == errors.__name__)
    return kind.__name__, fault.__reduce__()[1] if kind is type(fault) else [str(fault)]
