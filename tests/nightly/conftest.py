"""What the end-to-end tests share is there for the nightly ones too."""

from e2e.conftest import (  # noqa: F401 - pytest finds fixtures by their names here
    _frozen,
    command,
    content,
    done,
    forks,
    held_out,
    preferences,
    recipe_file,
)
