"""Language identification by py3langid, whose model ships inside its package."""

import functools
from typing import Any

from crosspref.errors import MissingLibraryError


@functools.cache
def _library() -> Any:
    try:
        import py3langid
    except ModuleNotFoundError as error:
        raise MissingLibraryError("py3langid", "Identifying languages", "pip install py3langid") from error
    return py3langid


@functools.cache
def known_languages() -> frozenset[str]:
    """Return the tags that can be identified."""
    return frozenset(str(tag) for tag, _ in _library().rank("a"))


def identify(text: str) -> str:
    """Return the tag of the most likely language of a text."""
    return str(_library().classify(text)[0])
