"""``crosspref init``: a commented recipe and a few prompts to start from."""

import argparse
import json
from pathlib import Path

from crosspref import data
from crosspref.commands import command_line
from crosspref.errors import RecipeError
from crosspref.paths import require_named
from crosspref.run.store import write_text
from crosspref.run.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=require_named, metavar="DIR", help="where they go; made if it does not exist")


def execute(options: argparse.Namespace) -> None:
    source, directory = Path(data.__file__).parent / "start", options.directory
    recipe, prompts = directory / "recipe.yaml", directory / "prompts.jsonl"
    for path in (recipe, prompts):
        if path.exists():
            raise RecipeError(f"{path} exists already and is not overwritten. Name another directory.")
    write_text(prompts, (source / prompts.name).read_text(encoding="utf-8"))
    # The absolute path works from every directory; JSON's quotes are YAML's too.
    text = (source / recipe.name).read_text(encoding="utf-8").replace("RECIPE", str(recipe))
    write_text(recipe, text.replace("source: PROMPTS", f"source: {json.dumps(str(prompts.resolve()))}"))
    say(f"Written: {recipe} and {prompts}")
    say(f"Fill in the models, then: {command_line('check', str(recipe))}")
