"""Runs `crosspref` commands in children forked from a process that has imported the heavy libraries.

What runs, and is killed, is a real process that runs the real code; it only is spared the seconds of importing torch.
One JSON list per line comes in, one JSON value per line goes out: ``["spawn", arguments, log]`` answers with a process
id, ``["poll", id]`` with an exit code (negative: killed by that signal) or null while the process runs.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import crosspref.engines.training.trainer  # noqa: F401
from crosspref.cli import main
from crosspref.engines import langid


def run(work: Callable[[], int], log: str) -> None:
    """Do some work in a process that has just been forked, and end it with the work's exit code."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # What pytest put in their place writes elsewhere.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))
        code = work()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:  # noqa: BLE001 - a child must never go on as a second server
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def serve() -> None:
    # A forked child cannot use a pool of threads that its parent has started.
    torch.set_num_threads(1)
    langid.known_languages()
    # Closing an engine collects garbage, which takes long over the libraries' millions of objects.
    gc.freeze()
    answer("ready")
    for line in sys.stdin:
        command, *rest = json.loads(line)
        if command == "spawn":
            child = os.fork()
            if child == 0:
                arguments, log = rest
                run(partial(main, arguments), log)
            answer(child)
        else:
            ended, status = os.waitpid(rest[0], os.WNOHANG)
            answer(os.waitstatus_to_exitcode(status) if ended else None)


if __name__ == "__main__":
    serve()
