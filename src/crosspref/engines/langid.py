"""Language identification by py3langid, whose model ships inside its package."""

import functools
from collections.abc import Callable

import py3langid


@functools.cache
def known_languages() -> frozenset[str]:
    """Return the tags that can be identified."""
    return frozenset(str(tag) for tag, _ in py3langid.rank("a"))


def identify(text: str) -> str:
    """Return the tag of the most likely language of a text."""
    return str(py3langid.classify(text)[0])


def identifier(language: str) -> Callable[[str], str] | None:
    """Return ``identify``, or None if texts of this language are not recognised."""
    return identify if language.partition("-")[0] in known_languages() else None
