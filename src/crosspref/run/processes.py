"""A phase in a process of its own: how it is started, on several devices too, and what ties it to the run."""

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from crosspref.errors import AGAIN, NEEDS_LESS, MissingLibraryError, RecipeError, RunError
from crosspref.paths import SAFE_PATH, existing, working_directory
from crosspref.recipe.files import FOLDER
from crosspref.recipe.sections import ResourceSettings

CONFIG_OPTIONS = ("--config_file", "--config-file")


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back; a process that is started meanwhile never gets it.

    Ctrl-C reaches all processes of a terminal, but only the first one ends the others and says how to resume.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_in_child(command: Sequence[str]) -> tuple[int, int]:
    """Run a command that ends when this process ends; return its exit code and its peak memory in KiB."""
    with interrupts_held():
        # The open pipe tells the child that we live: when we are killed it closes, and the child ends too. Launchers
        # hand it on to the processes that they start, which read it, too.
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command, stdin=subprocess.PIPE, env={**os.environ, **SAFE_PATH}
        )
    with process as child:
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage.ru_maxrss


def ask_child(arguments: Sequence[str], text: str) -> str:
    """Run a crosspref command in a child process, with a text as its input, and return the last line that it prints.

    Raises:
        RunError: it failed.
    """
    command = [sys.executable, "-m", "crosspref", *arguments]
    environment = {**os.environ, **SAFE_PATH, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        command, input=text, capture_output=True, text=True, encoding="utf-8", check=False, env=environment
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = f"\n{done.stderr}".partition("\ncrosspref: ")[2].strip()
        raise RunError(said or f"The process that was to {arguments[0]} the recipe {ending(done.returncode)}")
    return lines[-1]


def ending(code: int) -> str:
    """Say how a process ended, by its exit code: one that ended badly, by itself or by a signal."""
    number = -code if code < 0 else code - 128  # as shells tell of a signal
    if number not in set(signal.Signals):
        return f"failed with exit code {code}; its message stands above."
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return f"was killed ({name}), as the system does when memory runs out. {NEEDS_LESS}"
    if number == signal.SIGBUS:
        return f"was ended by {name}: a disk or /dev/shm is full, or a file was cut short while it was read. {AGAIN}."
    return f"was ended by {name}. {AGAIN}."


def end_with_parent() -> None:
    """End this process as soon as the parent, which holds the other end of the standard input, has ended."""

    def wait() -> None:
        os.read(0, 1)  # returns when the pipe closes; not sys.stdin, whose lock would outlive the interpreter
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def launch_command(resources: ResourceSettings) -> list[str]:
    """Return what is put in front of ``-m crosspref phase ...``: this interpreter, or the launcher of the recipe.

    Raises:
        RecipeError: the launcher is not found, or its configuration file is not there.
        MissingLibraryError: the launcher is one of a library that is not installed.
    """
    if resources.launch is None:
        return [sys.executable]
    try:
        program, *options = shlex.split(resources.launch) or [""]
    except ValueError as error:
        raise RecipeError(f"resources.launch cannot be read as a command ({error}): {resources.launch!r}") from error
    for option, value in itertools.pairwise([*options, ""]):
        name, _, joined = option.partition("=")
        if name in CONFIG_OPTIONS and existing(joined or value) is None:
            raise RecipeError(
                f"resources.launch names {joined or value!r}, but there is no such file here "
                f"({working_directory()}). An absolute path works from every directory. Files to start from are in "
                f"{FOLDER / 'distributed'}."
            )
    # The launcher of this environment comes first: another one would start other versions of the libraries.
    beside = Path(sys.executable).parent / program
    launcher = str(beside) if beside.is_file() else shutil.which(program)
    if launcher is None:
        library = {"torchrun": "torch", "accelerate": "accelerate"}.get(program)
        if library:
            raise MissingLibraryError(library, f"resources.launch: {program}", f"pip install {library}")
        raise RecipeError(f"resources.launch starts with {program!r}, but there is no such command here.")
    return [launcher, *options]
