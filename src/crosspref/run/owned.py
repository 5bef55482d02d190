"""What belongs to crosspref in a folder that it works in, such as a run: nothing else is written to or removed.

A folder is crosspref's if it was empty when the first lock was made in it. Its files are known by their places. A run
may come from somebody else, so that links in it may lead anywhere: none is followed out of it.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from crosspref.errors import FileError, RunError
from crosspref.paths import writing
from crosspref.run.store import PART, Unit

LOCK = ".lock"
_LEFTOVER = re.compile(r"\.(?P<name>.+?)(?:\.done\.json|\.part\.json)?\.\d+\.tmp")
"""The name of what is written to be renamed, as ``run.store`` chooses it: of a file, its marker, or its part."""
_LOGS = ("*.log", "*.out", "*.err")
"""Files that may lie in a folder before crosspref works there: a scheduler's, or our own. They are left alone."""


@contextlib.contextmanager
def owned(root: Path, places: Iterable[str | PurePath]) -> Iterator[None]:
    """Work in a folder as the only process; what killed ones left half-written there is removed.

    Args:
        root: the folder, which is made if it is not there.
        places: where files and folders are that are written as a whole, relative to it; * stands for any name.

    Raises:
        RunError: the folder holds files, but none of crosspref's; a link leads out of it; another process holds it.
        FileError: it cannot be written.
    """
    known = [PurePath(place) for place in places]
    _require_ours(root, known)
    require_closed(root)
    with held(root):
        with writing(root):
            _remove_leftovers(root, known)
        yield


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if it is not there, so that a second process does not write into it.

    The system releases the lock when the process ends, however it ends: a file that is left locks nothing.

    Raises:
        RunError: another process holds it.
        FileError: it cannot be written, or its file system has no locks.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")  # file systems on a network lock only what is open for writing
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"Another process is working in {folder}. Wait for it, or stop it first.") from error
        except OSError as error:
            raise FileError(
                folder, f"cannot be locked: {error.strerror}", "Choose a directory on a file system that has locks."
            ) from error
        yield


def require_closed(root: Path) -> None:
    """Make sure that nothing outside of a folder is read or changed by what is done in it.

    Raises:
        RunError: a link in it leads out of it, or something in it is neither a file nor a folder, such as a pipe.
        FileError: a folder in it cannot be looked at.
    """

    def fail(error: OSError) -> None:
        raise FileError(error.filename, f"cannot be looked at: {error.strerror}") from error

    for entry in below(root, fail):
        if entry.is_symlink():
            if leads_out(entry.path, root):
                raise RunError(
                    f"{entry.path} is a link to {os.path.realpath(entry.path)}, outside of {root}. A run must hold all "
                    "of its own files, so that nothing else is changed: replace the link with a copy, or remove it."
                )
        elif not entry.is_file() and os.path.exists(entry.path):  # noqa: PTH110 - another process may have removed it
            raise RunError(f"{entry.path} is neither a file nor a folder, so it is no part of a run. Remove it.")


def leads_out(link: str, root: Path) -> bool:
    """Tell whether a link in a folder leads out of it."""
    inside = os.path.realpath(root)
    return os.path.commonpath([inside, os.path.realpath(link)]) != inside


def below(root: Path, failed: Callable[[OSError], None]) -> Iterator[os.DirEntry[str]]:
    """Yield what lies below a folder and is no folder; ``failed`` is told of folders that cannot be read.

    What another process removes meanwhile is left out.
    """
    folders = [str(root)]
    while folders:  # not by recursion: folders may be nested without end
        try:
            with os.scandir(folders.pop()) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            failed(error)
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                yield entry


def is_ours(root: Path, places: Iterable[PurePath]) -> bool:
    """Tell whether crosspref has worked in a folder; a copy may lack hidden files, but has the done-markers."""
    return (root / LOCK).exists() or any(any(root.glob(f"{place}.done.json")) for place in places)


def _require_ours(root: Path, places: Iterable[PurePath]) -> None:
    """Raise RunError if crosspref has not worked in a folder before, and it is not empty."""
    if is_ours(root, places) or not root.is_dir():
        return
    theirs = [path.name for path in root.iterdir() if not _is_log(path)]
    if theirs:
        raise RunError(
            f"{root} is not empty, and crosspref has not worked in it before: it holds {min(theirs)}. Nothing was "
            "touched. Name a new or an empty directory."
        )


def _is_log(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and any(fnmatchcase(path.name, name) for name in _LOGS)


def _remove_leftovers(root: Path, places: Iterable[PurePath]) -> None:
    """Remove what a killed process left half-written; nobody else is writing while the lock is held."""
    for place in places:
        for path in root.glob(str(place.with_name(f".{place.name}.*tmp"))):
            if (found := _LEFTOVER.fullmatch(path.name)) and fnmatchcase(found["name"], place.name):
                _remove(path)
        for part in root.glob(f"{place}{PART}"):
            if Unit(part.with_name(part.name.removesuffix(PART))).marker.exists():
                _remove(part)  # a kill may have come between the marker and this


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
