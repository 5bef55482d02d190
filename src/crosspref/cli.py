"""The entry of the command line. Of the commands only the given one is imported, and no heavy library is."""

import argparse
import contextlib
import importlib
import io
import logging
import os
import shlex
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from crosspref import __version__
from crosspref.commands import COMMANDS
from crosspref.errors import explained, is_failure
from crosspref.escape import one_line, printable_lines
from crosspref.paths import SAFE_PATH
from crosspref.run.log import LOGGER, RunLog, recording
from crosspref.run.ranks import alone, is_launched

LAUNCHED = ("phase", "train")
"""The commands that torchrun and the like may start, each as one of several processes."""

DEBUG = "CROSSPREF_DEBUG"
"""The environment variable that shows the traceback of an error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    given, options = list(sys.argv[1:] if arguments is None else arguments), argparse.Namespace()
    with recording() as log, warnings.catch_warnings():
        _prepare_process()
        LOGGER.info("crosspref %s", shlex.join(given))
        code = _attempt(given, options, log)
        LOGGER.info("Ended with exit code %d.", code)
    return code


def _attempt(given: Sequence[str], options: argparse.Namespace, log: RunLog) -> int:
    try:
        _execute(given, options)
    except BrokenPipeError:  # the reader, such as head, has enough
        _give_output_up()
    except KeyboardInterrupt:
        kept = f" What was finished is kept.\nTo resume: {options.resume(options)}" if "resume" in options else ""
        _say(f"\nStopped.{kept}")
        return 130
    except BaseException as error:  # nobody is shown a traceback who has not asked for it
        if not is_failure(error):
            raise
        _give_output_up()
        if os.environ.get(DEBUG):
            _say(traceback.format_exc().rstrip())
        LOGGER.info("Stopped by an error.", exc_info=error)
        _say(f"crosspref: {explained(error) or _mistake(error, log)}")
        return 1
    return 0


def _say(text: str) -> None:
    """Print on the standard error what ``run.terminal.say`` would, without its library, and log it."""
    print(printable_lines(text), file=sys.stderr)  # noqa: T201
    LOGGER.info("%s", text)


def _execute(given: Sequence[str], options: argparse.Namespace) -> None:
    try:
        _parser(given).parse_args(given, options)
        with contextlib.nullcontext() if options.may_be_launched and is_launched() else alone():
            options.command(options)
    except SystemExit:  # with a help text
        _flush_output()
        raise
    _flush_output()


def _flush_output() -> None:
    if sys.stdout is not None:  # a shell can close it
        sys.stdout.flush()


def _prepare_process() -> None:
    """Set what holds for this process and for those that it starts."""
    # Libraries' own warnings and bars would tear ours apart: the log gets them. Errors still come through.
    warnings.simplefilter("default")
    for category in (DeprecationWarning, ImportWarning, PendingDeprecationWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)  # as Python does; they are for a library's authors
    warnings.showwarning = partial(_log_warning, set())
    logging.setLogRecordFactory(_LogRecord)
    for name, value in (("TOKENIZERS_PARALLELISM", "false"), ("HF_HUB_DISABLE_TELEMETRY", "1")):
        os.environ.setdefault(name, value)
    os.environ |= SAFE_PATH
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names and texts in an alphabet that a terminal or a pipe lacks
            stream.reconfigure(errors="backslashreplace")


def _log_warning(
    logged: set[tuple[str, int]], message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
) -> None:
    """Log the first warning of a place in the code; a library may give one for each of a model's weights."""
    if (filename, lineno) not in logged:
        logged.add((filename, lineno))
        LOGGER.info("%s, line %d: %s: %s", filename, lineno, category.__name__, message)


class _LogRecord(logging.LogRecord):
    """A line of a library's log, in which nothing acts on a terminal."""

    def getMessage(self) -> str:  # noqa: N802 - as the library calls it
        return printable_lines(super().getMessage())


class _Parser(argparse.ArgumentParser):
    """A parser of arguments, among which there may be file names that somebody else gave."""

    def error(self, message: str) -> NoReturn:
        super().error(printable_lines(message))


def _give_output_up() -> None:
    """Throw away what the output still holds, if it cannot be written: Python would try again at its end."""
    try:
        _flush_output()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="crosspref",
        description="Carry a language model's English preference alignment into other languages.",
        epilog="Each stage also runs alone, on files of your own: crosspref STAGE --help",
    )
    parser.add_argument("--version", action="version", version=f"crosspref {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        listed: dict[str, Any] = {"help": text} if text else {}  # without help it is not listed
        command = commands.add_parser(name, description=text, **listed)
        if name in given:
            module = importlib.import_module(f"crosspref.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(command=module.execute, may_be_launched=name in LAUNCHED)
    return parser


def _mistake(error: BaseException, log: RunLog) -> str:
    """Say what nobody foresaw, and where its traceback is: in the log of the run, or in one of its own."""
    if log.path is None:
        with contextlib.suppress(OSError):
            descriptor, name = tempfile.mkstemp(prefix="crosspref-", suffix=".log")
            os.close(descriptor)
            log.begin(Path(name))
    said = one_line(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"with {log.path}, which has the traceback" if log.path else f"with the traceback, which {DEBUG}=1 shows"
    return (
        f"{type(error).__name__}{f': {said}' if said else ''} (in {last.filename}, line {last.lineno}). This is a "
        f"mistake in crosspref or a library. Please report it to the project, {where}. What was finished is kept."
    )
