"""The errors that crosspref raises on purpose.

Each message says what is wrong, where, and what to do next. The command line prints it without a traceback.
"""

from collections.abc import Sequence

from crosspref.escape import printable_lines
from crosspref.keys import without_what_looks_like_a_key


class CrossprefError(Exception):
    """Base class of all errors that crosspref raises on purpose.

    A message may repeat what a file, a server or a library said: what would act on a terminal is replaced in it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable_lines(message))


class RecipeError(CrossprefError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another one.

    ``keys`` has the dotted key of every faulty setting. The message does not repeat what looks like a server's key.
    """

    def __init__(self, message: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(without_what_looks_like_a_key(message))
        self.keys = keys


class DataError(CrossprefError):
    """The given prompts, responses, scores or preferences cannot be used."""


class ModelError(CrossprefError):
    """A model cannot be found or read, or two models do not fit together."""


class ServerError(CrossprefError):
    """A model server does not answer, does not serve the model, or gives an unusable answer."""


class RefusedError(ServerError):
    """A model server refused the request (HTTP 400, 413 or 422)."""


class UnusableError(ServerError):
    """A model answered, and after all retries still not so that the answer can be used."""


class BudgetError(CrossprefError):
    """To continue would exceed the budget."""


class RunError(CrossprefError):
    """A run directory belongs to other settings or inputs, or its files are damaged."""


class FileError(CrossprefError):
    """A file or folder cannot be written or looked at: ``path`` is which, and ``problem`` what is wrong with it."""

    def __init__(self, path: object, problem: str, advice: str = "") -> None:
        super().__init__(f"{path} {problem.rstrip('.')}.{advice and ' '}{advice}")
        self.path, self.problem, self.advice = str(path), problem, advice

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Make it picklable: by default, an exception is rebuilt from its message alone."""
        return type(self), (self.path, self.problem, self.advice)


class MissingLibraryError(CrossprefError):
    """An optional library is not installed."""

    def __init__(self, library: str, purpose: str, install: str) -> None:
        super().__init__(
            f"{purpose} needs the library {library!r}, which is not installed.\nInstall it with: {install}"
        )
        self.given = library, purpose, install

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Make it picklable: by default, an exception is rebuilt from its message alone."""
        return type(self), self.given


def shown(value: object, most: int = 200) -> str:
    """Return a value as Python writes it, for a message; of a long one, the beginning."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a {type(value).__name__} that is too long to be shown"
    return text if len(text) <= most else f"{text[:most]}..."


def raise_all(faults: Sequence[CrossprefError]) -> None:
    """Raise the error if there is one, and one error for several; what was found twice is said once."""
    faults = list({str(fault): fault for fault in faults}.values())
    if len(faults) == 1:
        raise faults[0]
    if faults:
        listed = "\n".join(f"- {fault}" for fault in faults)
        raise CrossprefError(f"{len(faults)} things would stop this run:\n{listed}")
