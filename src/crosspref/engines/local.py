"""Shards worked on in this process, one after the other."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from crosspref.engines import EngineSettings
from crosspref.protocols import Advance, Done, Results, Work


def do_shard(engine: Any, work: Work, shard: Any, advance: Advance) -> Done:
    """Work on one shard, here or on a worker of Ray, and say what that took."""
    started, counted = time.monotonic(), [0, 0]

    def count(units: int, tokens: int) -> None:
        counted[0] += units
        counted[1] += tokens
        advance(units, tokens)

    result = work(engine, shard, count)
    return Done(shard, result, time.monotonic() - started, *counted)


@contextlib.contextmanager
def cluster(_: EngineSettings) -> Iterator[None]:
    """Nothing is needed for a run on this machine."""
    yield


@contextlib.contextmanager
def map_shards(
    _: EngineSettings, build: Callable[[], Any], work: Work, shards: Sequence[Any], __: Callable[[str], None]
) -> Iterator[Results]:
    """Build one engine; see ``Engines.map_shards``."""
    engine = build()
    try:
        yield partial(_each, engine, work, shards)
    finally:
        engine.close()


def _each(engine: Any, work: Work, shards: Sequence[Any], advance: Advance) -> Iterator[Done]:
    for shard in shards:
        yield do_shard(engine, work, shard, advance)
