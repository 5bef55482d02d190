"""``crosspref init``: a commented recipe and a few prompts to start from."""

import argparse
from pathlib import Path

from crosspref.commands import Commands, command_line


def add(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("init", help="write a commented recipe and a few prompts to start from")
    parser.add_argument("directory", metavar="DIR", help="where they go; made if it does not exist")
    parser.set_defaults(command=_init)


def _init(options: argparse.Namespace) -> None:
    import json

    from crosspref import data
    from crosspref.errors import RecipeError
    from crosspref.run.store import write_text

    source, directory = Path(data.__file__).parent / "start", Path(options.directory)
    recipe, prompts = directory / "recipe.yaml", directory / "prompts.jsonl"
    for path in (recipe, prompts):
        if path.exists():
            raise RecipeError(f"{path} exists already and is not overwritten. Name another directory.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(prompts, (source / prompts.name).read_text(encoding="utf-8"))
        # The absolute path works from every directory; JSON's quotes are YAML's too.
        text = (source / recipe.name).read_text(encoding="utf-8").replace("RECIPE", str(recipe))
        write_text(recipe, text.replace("source: PROMPTS", f"source: {json.dumps(str(prompts.resolve()))}"))
    except OSError as error:
        raise RecipeError(f"{directory} cannot be written: {error}") from error
    print(f"Written: {recipe} and {prompts}")  # noqa: T201
    print(f"Fill in the models, then: {command_line('check', str(recipe))}")  # noqa: T201
