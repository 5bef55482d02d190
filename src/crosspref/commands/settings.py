"""``crosspref settings``: every setting with its default and what it does."""

import argparse

from crosspref.commands import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("settings", help="list every setting with its default and what it does")
    parser.add_argument("--suites", action="store_true", help="those of `crosspref evaluate --suite`, not of a recipe")
    parser.set_defaults(command=_settings)


def _settings(options: argparse.Namespace) -> None:
    from crosspref.recipe.files import describe_settings
    from crosspref.recipe.schema import Recipe
    from crosspref.suites.settings import EvaluationSettings

    for line in describe_settings(EvaluationSettings if options.suites else Recipe):
        print(line)  # noqa: T201
