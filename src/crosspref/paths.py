"""Paths that people name and files that are written: what can be wrong with them is one error, and not a traceback."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crosspref.errors import CrossprefError, FileError

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""The environment in which Python imports nothing from the working directory, such as a person's own ``select.py``."""

_NOT_WRITTEN = re.compile(r"os error \d+|inline_container\.cc|iostream error|PytorchStreamWriter")
"""What safetensors and torch say when a disk is full; neither raises an OSError."""


def expanded(name: str | Path) -> Path:
    """Return a path with a home directory in the place of ``~``; as it is where nobody has such a home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def existing(name: str | Path) -> Path | None:
    """Return the file or folder that a person named, or None if there is none, or if no file can have such a name.

    Raises:
        FileError: it may not be looked at.
    """
    try:
        path = expanded(name)
        return path if path.exists() else None
    except PermissionError as error:
        raise FileError(name, f"cannot be looked at: {error.strerror}") from error
    except (OSError, ValueError):  # it is too long, or has a zero byte
        return None


def require_writable(path: str | Path) -> Path:
    """Return the path of a file, if it can be written, with folders that are not there yet. Nothing is made of it.

    Commands ask before the work, so that nobody hears of it after hours.

    Raises:
        FileError: it cannot, or it is a folder.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise FileError(path, "cannot be written: it is a directory")
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror}") from error
    return path


@contextlib.contextmanager
def writing(path: str | Path, advice: str = "") -> Iterator[None]:
    """Turn what fails while a file, or a file in a folder, is written into one kind of error, with advice.

    Raises:
        FileError: no room, no permission, a broken disk.
    """
    try:
        yield
    except CrossprefError:
        raise
    except OSError as error:
        raise FileError(_within(path, error), f"cannot be written: {error.strerror or error}", advice) from error
    except Exception as error:
        if not _NOT_WRITTEN.search(str(error)):
            raise
        raise FileError(path, f"cannot be written: {_reason(Path(path), error)}", advice) from error


def _within(path: str | Path, error: OSError) -> str | Path:
    """Return the file that an error names if it lies in ``path``, else ``path``: temporary names help nobody."""
    named = error.filename
    return named if isinstance(named, str) and Path(path) in Path(named).parents else path


def _reason(path: Path, error: Exception) -> str:
    """Return why writing failed: torch does not say, so look at what is free."""
    first = str(error).strip().splitlines()[0]
    with contextlib.suppress(OSError):
        free = os.statvfs(path if path.exists() else path.parent)
        if free.f_bavail * free.f_frsize < 1 << 20:
            return f"no space left on device ({first})"
    return first
