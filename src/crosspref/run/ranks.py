"""Which process of a training on several devices this is. torchrun, accelerate and Ray Train say so in the environment.

Every rank runs the same code on the same input; rank 0 alone writes files and shows progress. In a process that nobody
launched to train, such variables are left over from something else, such as the platform that started the container.
Libraries would heed them all the same, so ``alone`` takes them out of the environment.
"""

import contextlib
import os
import re
from collections.abc import Iterator

from crosspref.errors import RunError

SET_BY_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launched process has, all of it."""

HEEDED = re.compile(r"(LOCAL_)?(RANK|WORLD_SIZE)|(PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_(RANK|SIZE)|ACCELERATE_.*")
"""Variables by which torch, transformers and accelerate decide how to train."""


def processes() -> int:
    """Return how many processes train together; 1 where nothing launched them."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Return this process's number among them, from 0."""
    return _number("RANK", 0) if processes() > 1 else 0


def local_rank() -> int:
    """Return this process's number among those on this machine, from 0."""
    return _number("LOCAL_RANK", 0) if processes() > 1 else 0


def is_main() -> bool:
    """Tell whether this process is the one that writes."""
    return rank() == 0


def is_launched() -> bool:
    """Tell whether something launched this process to train, alone or with others."""
    return all(os.environ.get(name) for name in SET_BY_LAUNCHERS)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Be rank 0 of 1 meanwhile, as are the processes that are started."""
    hidden = forget_launchers()
    try:
        yield
    finally:
        os.environ.update(hidden)


def forget_launchers() -> dict[str, str]:
    """Take out of the environment what launchers set, and return it."""
    return {name: os.environ.pop(name) for name in [*os.environ] if HEEDED.fullmatch(name)}


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise RunError(
            f"The environment variable {name} is {text!r}, and must be a number: launchers such as torchrun set it. "
            "If none started this process, unset it."
        )
    return int(text) if text else default
