"""The entry of the command line. Of the commands only the given one is imported, and no heavy library is."""

import argparse
import importlib
import io
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from crosspref import __version__
from crosspref.commands import COMMANDS
from crosspref.errors import CrossprefError, FileError
from crosspref.escape import one_line, printable_lines
from crosspref.paths import SAFE_PATH
from crosspref.run.ranks import alone, is_launched

LAUNCHED = ("phase", "train")
"""The commands that torchrun and the like may start, each as one of several processes."""

DEBUG = "CROSSPREF_DEBUG"
"""The environment variable that shows the traceback of an error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    given, options = list(sys.argv[1:] if arguments is None else arguments), argparse.Namespace()
    _prepare_process()
    try:
        _execute(given, options)
    except BrokenPipeError:  # the reader, such as head, has enough
        _give_output_up()
    except KeyboardInterrupt:
        kept = f" What was finished is kept.\nTo resume: {options.resume(options)}" if "resume" in options else ""
        _say(f"\nStopped.{kept}")
        return 130
    except Exception as error:  # noqa: BLE001 - nobody is shown a traceback who has not asked for it
        _give_output_up()
        if os.environ.get(DEBUG):
            _say(traceback.format_exc().rstrip())
        _say(f"crosspref: {_sentence(error, options)}")
        return 1
    return 0


def _say(text: str) -> None:
    """Print on the standard error what ``run.terminal.say`` would, without its library."""
    print(printable_lines(text), file=sys.stderr)  # noqa: T201


def _execute(given: Sequence[str], options: argparse.Namespace) -> None:
    try:
        _parser(given).parse_args(given, options)
        with nullcontext() if options.may_be_launched and is_launched() else alone():
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
    # Libraries' own warnings and bars would tear ours apart; errors still come through.
    warnings.filterwarnings("ignore")
    logging.setLogRecordFactory(_LogRecord)
    for name, value in (("TOKENIZERS_PARALLELISM", "false"), ("HF_HUB_DISABLE_TELEMETRY", "1")):
        os.environ.setdefault(name, value)
    os.environ |= SAFE_PATH
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names and texts in an alphabet that a terminal or a pipe lacks
            stream.reconfigure(errors="backslashreplace")


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


def _sentence(error: Exception, options: argparse.Namespace) -> str:
    """Say what is wrong: in our own words, in the system's, or where to read what a library said."""
    if isinstance(error, CrossprefError):
        goes_on = isinstance(error, FileError) and "resume" in options
        return f"{error} What was finished is kept, and the same command goes on." if goes_on else str(error)
    if isinstance(error, OSError) and error.strerror:
        files = " and ".join(str(file) for file in (error.filename, error.filename2) if file is not None)
        where = f" {files}" if files else ""
        return f"The system refused to read or write{where}: {error.strerror}. What was finished is kept."
    said = one_line(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}{f': {said}' if said else ''} (in {last.filename}, line {last.lineno}). This is a "
        f"mistake in crosspref or a library. {_keep_traceback(error, options)} What was finished is kept."
    )


def _keep_traceback(error: Exception, options: argparse.Namespace) -> str:
    """Write the traceback where it can be found, in the run directory if there is one, and say where that is."""
    text = f"crosspref {__version__}\n" + "".join(traceback.format_exception(error))
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    given = [Path(str(folder)) for folder in (getattr(options, "run", None), getattr(options, "out", None)) if folder]
    for folder in [*(folder for folder in given if folder.is_dir()), Path(tempfile.gettempdir())]:
        file = folder / (name if folder in given else f"crosspref-{name}")
        try:
            file.write_text(printable_lines(text), encoding="utf-8")
        except OSError:
            continue
        return f"Please report it with the traceback, which is in {file}."
    return f"The traceback could not be written; to see it, set {DEBUG}=1."
