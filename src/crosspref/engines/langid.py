"""Language identification by py3langid, whose model ships inside its package."""

import functools
import tempfile
from collections.abc import Callable

import py3langid

from crosspref.paths import writing

_WITHIN = {
    "ar": ("ary", "arz"),
    "ff": ("fuv",),
    "gn": ("gug",),
    "ku": ("sdh",),
    "lv": ("ltg",),
    "no": ("nb", "nn"),
    "tl": ("fil",),
    "uz": ("uzs",),
    "zh": ("wuu", "yue"),
}
"""Languages within a macro-language of ISO 639-3, as far as one of the two can be identified.

Filipino is the standard form of Tagalog.
"""


@functools.cache
def known_languages() -> frozenset[str]:
    """Return the tags that can be identified."""
    with writing(tempfile.gettempdir()):  # where py3langid unpacks its model
        return frozenset(str(tag) for tag, _ in py3langid.rank("a"))


def identify(text: str) -> str:
    """Return the tag of the most likely language of a text."""
    return str(py3langid.classify(text)[0])


def names_of(language: str) -> frozenset[str]:
    """Return the tags by which texts of a language are identified; none if they are not recognised.

    They are the language itself and those within it. One that cannot be identified, such as Norwegian Bokmål, goes by
    the name of its macro-language.
    """
    base, known = language.partition("-")[0], known_languages()
    names = known & {base, *_WITHIN.get(base, ())}
    return names or known & {macro for macro, within in _WITHIN.items() if base in within}


def identifier(language: str) -> Callable[[str], str] | None:
    """Return what tells a text's tag, or None if texts of this language are not recognised.

    All names of the language are told as its own tag, without script and region.
    """
    names = names_of(language)
    return functools.partial(_identify_as, language.partition("-")[0], names) if names else None


def _identify_as(own: str, names: frozenset[str], text: str) -> str:
    found = identify(text)
    return own if found in names else found
