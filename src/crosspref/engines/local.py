"""Shards worked on in this process, one after the other."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from crosspref.engines import EngineSettings
from crosspref.protocols import Advance, Done, Results, Work


def do_shard(engine: Any, work: Work, shard: Any, advance: Advance) -> Done:
    """Work on one shard, here or on a worker of Ray, and say what that took."""
    started, counts = time.monotonic(), [0, 0]

    def count(units: int, tokens: int) -> None:
        counts[0] += units
        counts[1] += tokens
        advance(units, tokens)

    result = work(engine, shard, count)
    return Done(shard, result, time.monotonic() - started, *counts)


class LocalExecutor:
    """Works on shards with one engine; a run on this machine needs nothing else. See ``protocols.Executor``."""

    def __init__(self, _: EngineSettings) -> None:
        self.cluster = contextlib.nullcontext

    @contextlib.contextmanager
    def map_shards(
        self, build: Callable[[], Any], work: Work, shards: Sequence[Any], _: Callable[[str], None]
    ) -> Iterator[Results]:
        """Hold the engine, which works on one shard after the other."""
        engine = build()
        try:
            yield lambda advance: (do_shard(engine, work, shard, advance) for shard in shards)
        finally:
            engine.close()
