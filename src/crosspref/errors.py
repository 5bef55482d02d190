"""The errors that crosspref raises on purpose, and what becomes of those of the system and of libraries.

Each message says what is wrong, where, and what to do next. The command line prints it without a traceback.
"""

import contextlib
import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosspref.escape import one_line, printable_lines
from crosspref.keys import without_what_looks_like_a_key

AGAIN = "What was finished is kept: give the same command again"
NEEDS_LESS = (
    "Smaller batches need less memory (sample.batch_tokens, reward.batch_tokens, train.micro_batch_size), and so do "
    f"train.gradient_checkpointing: true, a smaller model, and fewer processes beside this one. {AGAIN}."
)
"""What to do where the memory does not suffice. These settings may change in the middle of a run."""

ADVICE = {
    errno.ENOSPC: f"Free some room there. {AGAIN}.",
    errno.EDQUOT: f"Free some room there, or have the quota raised. {AGAIN}.",
    errno.EFBIG: f"The file system, or `ulimit -f`, allows no file of that size: raise the limit. {AGAIN}.",
    errno.EROFS: "That file system may only be read: name another place.",
    errno.EIO: f"The disk, or the network to it, fails: see what the system says (`dmesg`). {AGAIN} once it works.",
    errno.ESTALE: f"The file system on the network was lost: mount it again. {AGAIN}.",
}
"""What to do about an error of the system, by its number, where it is not the fault of what was asked for."""

_NO_MEMORY = re.compile(r"out ?of ?memory|can(no|')t allocate|malloc of size|alloc_failed|bad_?alloc", re.IGNORECASE)
"""What torch, its devices, Arrow and C++ say when there is too little memory."""

_NOT_WRITTEN = re.compile(r"inline_container\.cc|iostream error|PytorchStreamWriter")
"""What torch says when it cannot write. It does not say why."""


class CrossprefError(Exception):
    """Base class of all errors that crosspref raises on purpose.

    A message may repeat what a file, a server or a library said: what would act on a terminal is replaced in it.
    ``advice`` says what to do where the machine is at fault, and not what was asked for; elsewhere it is empty.
    ``given`` are the arguments of a subclass that makes its message of several.
    """

    advice = ""
    given: tuple[str, ...] = ()

    def __init__(self, message: str = "") -> None:
        super().__init__(printable_lines(message))

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Make it picklable: by default, an exception is rebuilt from its message alone."""
        return (type(self), self.given) if self.given else super().__reduce__()


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
        self.path, self.problem, self.advice = self.given = str(path), problem, advice


class LimitError(CrossprefError):
    """The machine has no more of what the work needs: memory, open files, or threads."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem.rstrip('.')}. {advice}")
        self.problem, self.advice = self.given = problem, advice


class MissingLibraryError(CrossprefError):
    """An optional library is not installed."""

    def __init__(self, library: str, purpose: str, install: str) -> None:
        super().__init__(
            f"{purpose} needs the library {library!r}, which is not installed.\nInstall it with: {install}"
        )
        self.given = library, purpose, install


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


def explained(error: BaseException, place: str | Path | None = None) -> CrossprefError | None:
    """Return an error of the system or of a library as one of crosspref's, or None if nothing is known of it.

    Known are errors of files, such as a full disk, and too little of what the machine has. What a library raised
    because the machine was at fault counts as that.

    Args:
        error: what was raised.
        place: the file or folder that was being written, if one was.
    """
    fault, cause = _explained(error, place), error.__cause__
    while fault is None and cause is not None:
        found = _explained(cause, place)
        fault, cause = (found if found is not None and found.advice else None), cause.__cause__
    return fault


def raise_if_machine_failed(error: BaseException) -> None:
    """Raise what ``explained`` returns if the machine is at fault, as a broken disk is; then the files may be whole."""
    fault = explained(error)
    if fault is not None and fault.advice:
        raise fault from error


def is_failure(error: BaseException) -> bool:
    """Tell whether a program failed, and was not stopped, as by Ctrl-C."""
    # A library in Rust that stumbles over its own mistake raises what is no Exception.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _explained(error: BaseException, place: str | Path | None) -> CrossprefError | None:
    if isinstance(error, CrossprefError):
        return error
    said = one_line(error, 300)
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os error (\d+)", said)):  # as libraries in Rust say it
        number = int(found[1])
    if number == errno.ENOMEM or isinstance(error, MemoryError) or _NO_MEMORY.search(f"{type(error).__name__}: {said}"):
        return LimitError(f"The memory does not suffice ({said or type(error).__name__})", NEEDS_LESS)
    if number in (errno.EMFILE, errno.ENFILE):
        return LimitError("Too many files are open", f"Raise the limit, as with `ulimit -n 4096`. {AGAIN}.")
    if "can't start new thread" in said:
        advice = f"Raise the limit (`ulimit -u`), or set resources.threads. {AGAIN}."
        return LimitError("The system starts no more threads", advice)
    if number is not None or (isinstance(error, OSError) and place is not None) or _NOT_WRITTEN.search(said):
        return _file_error(error, number, place)
    return None


def _file_error(error: BaseException, number: int | None, place: str | Path | None) -> FileError:
    """Return the error of a file, named as a person knows it."""
    given = (getattr(error, "filename", None), getattr(error, "filename2", None))
    files = [Path(os.fsdecode(name)) for name in given if isinstance(name, str | bytes)]
    verb = "read or written"
    if place is not None:
        there, meant = (Path(file).absolute() for file in (files[0] if files else place, place))
        is_beside = there.parent == meant.parent or there in meant.parents
        if is_beside:  # a temporary name beside the file helps nobody; one in the folder does
            files = [Path(place)]
        if is_beside or meant in there.parents:
            verb = "written"
    if number is None and files and _is_full(files[0]):
        number = errno.ENOSPC
    reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error, 300)
    if number is not None and not isinstance(error, OSError):
        reason = os.strerror(number)
    if number in (errno.ENOSPC, errno.EDQUOT) and files:
        reason += f" (the file system {_mount(files[0])})"
    what = " and ".join(map(str, files)) or "A file or a connection"
    is_read = number == errno.EFBIG and verb != "written"  # it is larger than what is read, as ``paths`` says
    return FileError(what, f"cannot be {verb}: {reason}", "" if is_read else ADVICE.get(number or 0, ""))


def _mount(path: Path) -> Path:
    """Return where the file system is mounted that a path is on, whether the path is there or not."""
    place = Path(os.path.realpath(path))
    return next(folder for folder in (place, *place.parents) if os.path.ismount(folder))


def _is_full(path: Path) -> bool:
    """Tell whether less than 1 MB is free there."""
    with contextlib.suppress(OSError):
        free = os.statvfs(_mount(path))
        return free.f_bavail * free.f_frsize < 1 << 20
    return False
