"""Processes of their own: for what a process holds in memory, and for trainers that take turns step by step."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["crosspref.engines.transformers.scorer", "crosspref.engines.training.trainer"])
"""Importing the libraries takes ten seconds: the processes are forked from one that has imported them and done nothing
else, and share only that."""

Pause = Callable[[], None]
"""Called by a training at the end of each optimizer step: waits until the next one is asked for."""


def in_child(work: Callable[..., Any], *given: Any) -> Any:
    """Return what work returns in a fresh process; all of it picklable."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        return pool.submit(work, *given).result()


class Stepper:
    """A training of which each ``step`` runs one optimizer step; its end is awaited on leaving the context."""

    def __init__(self, training: Callable[..., Any], *given: Any) -> None:
        """Start a process that calls ``training(pause, *given)``, both picklable; ``result`` is what that returns."""
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_run, args=(theirs, training, given))
        self.process.start()
        theirs.close()
        self.result: Any = None
        self.first = True

    def step(self) -> tuple[float, None]:
        """Run the next step and return its seconds; the first one's include loading and whatever is done once."""
        if not self.first:
            self.connection.send("go on")
        self.first = False
        kind, value = self.connection.recv()  # EOFError if it has failed: it has said why
        assert kind == "step", "the training ended before all of its steps were asked for"
        return value, None

    def __enter__(self) -> "Stepper":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the training end, or end it."""
        if kind is None:
            self.connection.send("go on")
            _, self.result = self.connection.recv()
        else:
            self.process.terminate()
        self.process.join()


def _run(connection: Connection, training: Callable[..., Any], given: tuple[Any, ...]) -> None:
    started = time.perf_counter()

    def pause() -> None:
        nonlocal started
        connection.send(("step", time.perf_counter() - started))
        connection.recv()
        started = time.perf_counter()

    connection.send(("end", training(pause, *given)))
