"""Shards mapped over Ray's actors, each of which holds the engine.

Ray places the actors, tells when one dies, and carries what they return. Here is only who works on which shard: a
worker gets one when it has a place, holds its engine and is free, so that nothing waits for a worker that never comes,
and at most one result per worker lies in Ray's object store. The shard of a worker that died goes back to the others,
and a fresh worker is asked for. Results are yielded to the one process that writes.
"""

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from crosspref.engines import EngineSettings
from crosspref.engines.local import do_shard
from crosspref.engines.ray.cluster import DEATHS, connect, living_nodes, needs_of
from crosspref.errors import AGAIN, CrossprefError, RunError
from crosspref.protocols import Advance, Done, Results, Work
from crosspref.recipe.sections import RaySettings
from crosspref.run.ranks import forget_launchers

LOST = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)
"""Errors that say that a worker or its node is gone, and not that its work is wrong."""

NOTICE_SECONDS = 10.0
"""When to say that workers have no place; after twice as long, the run stops if no node could hold one."""


class RayExecutor:
    """Holds a connection to Ray for a run, and maps work over its workers; see ``protocols.Executor``."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings.ray

    @contextlib.contextmanager
    def cluster(self) -> Iterator[None]:
        """Hold a connection to Ray, or a cluster on this machine, for the phases and the processes they run in."""
        before = os.environ.get("RAY_ADDRESS")
        mine = not ray.is_initialized()
        connect(self.settings)
        # Phases in processes of their own find it there.
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        try:
            yield
        finally:
            if mine:
                ray.shutdown()
            if before is None:
                del os.environ["RAY_ADDRESS"]
            else:
                os.environ["RAY_ADDRESS"] = before

    @contextlib.contextmanager
    def map_shards(
        self, build: Callable[[], Any], work: Work, shards: Sequence[Any], say: Callable[[str], None]
    ) -> Iterator[Results]:
        """Hold the engine on each of Ray's workers."""
        connect(self.settings)
        workers = _Workers(self.settings, build, work, shards, say)
        try:
            workers.wait()
            yield workers.results
        finally:
            workers.close()

    def train_together(self, phase: Callable[[], None], folder: Path) -> None:
        """Run a phase on all workers at once."""
        from crosspref.engines.ray.trainer import train_together

        connect(self.settings)
        train_together(self.settings, phase, folder)


class Worker:
    """An actor: one process that holds the engine."""

    def __init__(self, build: Callable[[], Any], work: Work, folder: str, gpus: float) -> None:
        forget_launchers()  # of Ray's own node, perhaps
        if gpus == 0:  # a device that Ray did not give belongs to somebody else
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if Path(folder).is_dir():  # the recipe's paths may be relative to it
            os.chdir(folder)
        self.build, self.work = build, work
        self.engine: Any = None

    def place(self) -> int:
        """Return the process id, as soon as there is a process."""
        return os.getpid()

    def load(self) -> None:
        """Build the engine."""
        self.engine = self.build()

    def do(self, shard: Any) -> Done:
        """Work on one shard; what was counted travels with the result, so that work that is lost is not counted."""
        done = do_shard(self.engine, self.work, shard, lambda _units, _tokens: None)
        return Done(None, done.result, done.seconds, done.units, done.tokens)


@dataclass(frozen=True, slots=True)
class _Call:
    """What an actor is doing: ``place``, ``load`` or ``do`` a shard by its number."""

    actor: Any
    what: str
    number: int = -1


class _Workers:
    """The actors of one step, and what each was asked to do."""

    def __init__(
        self,
        settings: RaySettings,
        build: Callable[[], Any],
        work: Work,
        shards: Sequence[Any],
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.shards, self.say = settings, shards, say
        self.todo = deque(range(len(shards)))
        self.calls: dict[Any, _Call] = {}
        self.idle: list[Any] = []
        self.deaths: Counter[int] = Counter()
        self.noticed, self.notices, self.told = time.monotonic(), 0, ""
        # One copy in the object store, whatever its size and however many workers take it.
        self.arguments = [ray.put(build), ray.put(work), str(Path.cwd()), settings.gpus_per_worker]
        for _ in range(min(settings.workers, len(shards))):
            self._start()

    def wait(self) -> None:
        """Wait until a worker holds its engine."""
        while not self.idle:
            self._step()

    def results(self, advance: Advance) -> Iterator[Done]:
        """Yield each shard as it is done."""
        left = len(self.shards)
        while left:
            while self.idle and self.todo:
                self._ask(self.idle.pop(), "do", self.todo.popleft())
            done = self._step()
            if done is not None:
                left -= 1
                advance(done.units, done.tokens)
                yield done

    def close(self) -> None:
        """End the workers; their engines' memory goes with them."""
        for actor in [*self.idle, *(call.actor for call in self.calls.values())]:
            ray.kill(actor)

    def _start(self) -> None:
        needs = needs_of(self.settings)
        options = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "scheduling_strategy": "SPREAD"}
        self._ask(ray.remote(Worker).options(**options).remote(*self.arguments), "place")

    def _ask(self, actor: Any, what: str, number: int = -1) -> None:
        arguments = [self.shards[number]] if what == "do" else []
        self.calls[getattr(actor, what).remote(*arguments)] = _Call(actor, what, number)

    def _step(self) -> Done | None:
        """Take the next answer of any worker, and return the shard if it is one."""
        answered, _ = ray.wait(list(self.calls), timeout=1.0)
        if time.monotonic() - self.noticed > NOTICE_SECONDS:
            self._look_for_room()
        if not answered:
            return None
        call = self.calls.pop(answered[0])
        try:
            answer = ray.get(answered[0])
        except RayTaskError as error:
            self.idle.append(call.actor)
            if isinstance(error.cause, CrossprefError):
                raise error.cause from None
            raise error.cause from error  # as it would be raised here; the other has the worker's traceback as text
        except LOST as error:
            self._bury(call, error)
            return None
        except RayError as error:
            self.idle.append(call.actor)
            raise RunError(f"Ray failed ({type(error).__name__}): {_brief(error)} {AGAIN}.") from error
        if call.what == "place":
            self._ask(call.actor, "load")
            return None
        self.idle.append(call.actor)
        if call.what == "load":
            self.deaths[-1] = 0
            return None
        return Done(self.shards[call.number], answer.result, answer.seconds, answer.units, answer.tokens)

    def _bury(self, call: _Call, error: Exception) -> None:
        """Put back the shard of a worker that died, and ask for another worker."""
        with contextlib.suppress(RayError):
            ray.kill(call.actor)  # it may only be out of reach
        self.deaths[call.number] += 1
        at_start = call.what != "do"
        what = "at its start" if at_start else f"at {self.shards[call.number].unit.path}"
        # A node takes all its workers with it.
        if self.deaths[call.number] >= DEATHS * (self.settings.workers if at_start else 1):
            raise RunError(
                f"A worker of Ray died {what}, for the {self.deaths[call.number]}. time: {_brief(error)}\n"
                "Too little memory is the usual reason: fewer workers on a node (a larger ray.cpus_per_worker) or "
                "smaller batches need less. What was finished is kept."
            ) from error
        again = "another is asked for" if at_start else "the shard is done again"
        self.say(f"A worker of Ray died {what}; {again}: {_brief(error)}")
        if not at_start:
            self.todo.appendleft(call.number)
        self._start()

    def _look_for_room(self) -> None:
        """Say that workers have no place; stop where there is none and no node that is there could give one."""
        self.noticed, self.notices = time.monotonic(), self.notices + 1
        waiting = sum(call.what == "place" for call in self.calls.values())
        placed = len(self.calls) + len(self.idle) - waiting
        if not waiting:
            self.notices, self.told = 0, ""
            return
        needs, nodes = needs_of(self.settings), living_nodes()
        has = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        text = (
            f"{waiting} of {waiting + placed} workers have no place in Ray's cluster: each needs {needs['CPU']:g} CPUs "
            f"and {needs['GPU']:g} GPUs (ray.cpus_per_worker, ray.gpus_per_worker), its {len(nodes)} nodes have {has}"
        )
        fits = any(all(node.get(name, 0) >= amount for name, amount in needs.items()) for node in nodes)
        if not placed and not fits and self.notices > 1:
            raise RunError(f"{text}. Ask for less, or add nodes. What was finished is kept.")
        outlook = "The others go on without them." if placed else "Waiting."
        if outlook != self.told:
            self.told = outlook
            self.say(f"{text}. {outlook}")


def _brief(error: Exception) -> str:
    """Return the first line of what Ray says of a death; the rest are ids and addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("The actor died", "Worker exit", "The actor is dead"))]
    return (told or lines or [type(error).__name__])[-1][:300]
