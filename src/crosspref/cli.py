"""The entry of the command line. Of the commands only the given one is imported, and no heavy library is."""

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from crosspref import __version__
from crosspref.commands import COMMANDS
from crosspref.errors import CrossprefError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    given, options = list(sys.argv[1:] if arguments is None else arguments), argparse.Namespace()
    # Libraries' own warnings and bars would tear ours apart; errors still come through.
    warnings.filterwarnings("ignore")
    for name, value in (("TOKENIZERS_PARALLELISM", "false"), ("HF_HUB_DISABLE_TELEMETRY", "1")):
        os.environ.setdefault(name, value)
    try:
        _parser(given).parse_args(given, options)
        options.command(options)
    except CrossprefError as error:
        print(f"crosspref: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        kept = f" What was finished is kept.\nTo resume: {options.resume(options)}" if "resume" in options else ""
        print(f"\nStopped.{kept}", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
            command.set_defaults(command=module.execute)
    return parser
