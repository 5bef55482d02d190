"""The command in front of a training phase that starts it on several devices, checked before anything runs."""

import itertools
import shlex
import shutil
import sys
from pathlib import Path

from crosspref.errors import MissingLibraryError, RecipeError
from crosspref.recipe.files import FOLDER
from crosspref.recipe.sections import ResourceSettings

CONFIG_OPTIONS = ("--config_file", "--config-file")


def launch_command(resources: ResourceSettings) -> list[str]:
    """Return what is put in front of ``-m crosspref phase ...``: this interpreter, or the launcher of the recipe.

    Raises:
        RecipeError: the launcher is not found, or its configuration file is not there.
        MissingLibraryError: the launcher is one of a library that is not installed.
    """
    if resources.launch is None:
        return [sys.executable]
    try:
        program, *options = shlex.split(resources.launch)
    except ValueError as error:
        raise RecipeError(f"resources.launch cannot be read as a command ({error}): {resources.launch!r}") from error
    for option, value in itertools.pairwise([*options, ""]):
        name, _, joined = option.partition("=")
        if name in CONFIG_OPTIONS and not Path(joined or value).is_file():
            raise RecipeError(
                f"resources.launch names {joined or value!r}, but there is no such file here ({Path.cwd()}). An "
                f"absolute path works from every directory. Files to start from are in {FOLDER / 'distributed'}."
            )
    # The launcher of this environment comes first: another one would start other versions of the libraries.
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.is_file() else shutil.which(program)
    if found is None:
        library = {"torchrun": "torch", "accelerate": "accelerate"}.get(program)
        if library:
            raise MissingLibraryError(library, f"resources.launch: {program}", f"pip install {library}")
        raise RecipeError(f"resources.launch starts with {program!r}, but there is no such command here.")
    return [found, *options]
