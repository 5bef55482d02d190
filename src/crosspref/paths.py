"""Paths that people name, and files that are read and written: what can be wrong with them is one kind of error.

Files that may come from strangers are read through ``require_file``, which refuses what may never end.
"""

import contextlib
import errno
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crosspref.errors import CrossprefError, FileError, explained

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""The environment in which Python imports nothing from the working directory, such as a person's own ``select.py``."""

MOST_BYTES = 256 * 2**20
"""How large a file may be that is read whole and is no table: the largest tokenizers have some 40 MB."""


def expanded(name: str | Path) -> Path:
    """Return a path with a home directory in the place of ``~``; as it is where nobody has such a home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def working_directory() -> Path:
    """Return the working directory, or how the shell calls it where it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path(os.environ.get("PWD") or ".")


def require_named(name: str | Path) -> Path:
    """Return the path that a person named. Python takes no name at all, as of a variable that is not set, for ".".

    Raises:
        FileError: it is empty.
    """
    if not str(name):
        raise FileError("The given path", "is empty", "Name a file or a folder.")
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


def require_file(path: str | Path, most: float = math.inf) -> None:
    """Refuse what is no ordinary file, or a file of more than ``most`` bytes, before it is opened.

    Raises:
        OSError: a pipe, a device or a socket, which may never end; a directory; too many bytes; nothing.
    """
    try:
        status = Path(path).stat()
    except ValueError as error:  # the name has a zero byte
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "It is a pipe, a device or a socket, and only files are read", str(path))
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"It has {status.st_size:,} bytes, and at most {most:,} are read", str(path))


def read_text(path: str | Path, most: float = MOST_BYTES) -> str:
    """Return the text of a file in UTF-8 that may come from anybody.

    Raises:
        OSError: as ``require_file``, or it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    require_file(path, most)
    return Path(path).read_text(encoding="utf-8")


def require_writable(path: str | Path) -> Path:
    """Return the path of a file, if it can be written, with folders that are not there yet. Nothing is made of it.

    Commands ask before the work, so that nobody hears of it after hours.

    Raises:
        FileError: it cannot, or it is a folder.
    """
    path = Path(path)
    with writing(path):
        if path.is_dir():
            raise FileError(path, "cannot be written: it is a directory")
        if path.exists() and not path.is_file():
            raise FileError(path, "cannot be written: it is a device or a pipe")
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        try:
            # A name as long as the longest that is written beside it: of what is kept until the file is done.
            with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".part.json.tmp", dir=folder):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror) from error  # without that name
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file so that it is either whole or absent: yield a temporary name beside it, which it gets at the end.

    Folders that are not there yet are made. If the work fails, what was written goes.

    Raises:
        FileError: it cannot be written.
    """
    temporary = temporary_name(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush(temporary)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        flush(path.parent)


def temporary_name(path: Path) -> Path:
    """Return the name that a file or folder has while this process writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    except Exception as error:
        fault = explained(error, path)
        if not isinstance(fault, FileError):
            raise
        raise FileError(fault.path, fault.problem, f"{fault.advice} {advice}".strip()) from error
