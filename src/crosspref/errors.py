"""The errors that crosspref raises on purpose.

Each message says what is wrong, where, and what to do next; the command line prints it without a traceback.
"""


class CrossprefError(Exception):
    """Base class: catch this to catch every error that crosspref raises on purpose."""


class RecipeError(CrossprefError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another one."""


class DataError(CrossprefError):
    """Prompts, responses, scores or preferences that were given cannot be used as they are."""


class ModelError(CrossprefError):
    """A model cannot be found or read, or two models do not belong together."""


class ServerError(CrossprefError):
    """A model server does not answer, does not serve the model, or gives no answer that can be used."""


class RefusedError(ServerError):
    """A model server answered that it will not do what it was asked (HTTP 400, 413 or 422)."""


class BudgetError(CrossprefError):
    """Going on would cost more than was allowed."""


class RunError(CrossprefError):
    """A run directory belongs to other settings or inputs, or its files are damaged."""


class MissingLibraryError(CrossprefError):
    """An optional library is not installed."""

    def __init__(self, library: str, purpose: str, install: str) -> None:
        super().__init__(
            f"{purpose} needs the library {library!r}, which is not installed.\nInstall it with: {install}"
        )
        self.given = library, purpose, install

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Let it come back from another process: by itself, an exception is made anew from its message alone."""
        return type(self), self.given
