"""``crosspref settings``: every setting with its default and what it does."""

import argparse

from crosspref.recipe.files import describe_settings
from crosspref.recipe.schema import Recipe
from crosspref.run.terminal import say
from crosspref.suites.settings import EvaluationSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suites", action="store_true", help="those of `crosspref evaluate --suite`, not of a recipe")


def execute(options: argparse.Namespace) -> None:
    say("\n".join(describe_settings(EvaluationSettings if options.suites else Recipe)))
