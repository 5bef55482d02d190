"""What ties a phase in a process of its own to the run that started it."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back; a process that is started meanwhile never gets it.

    Ctrl-C reaches all processes of a terminal, but only the first one ends the others and says how to go on.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """End this process as soon as the parent, which holds the other end of the standard input, has ended."""

    def wait() -> None:
        os.read(0, 1)  # returns when the pipe closes; not sys.stdin, whose lock would outlive the interpreter
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
