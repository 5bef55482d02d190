"""Killing runs: when to strike, which stage was hit, and resuming until the run is done."""

import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from running import CLI, Forked, ForkServer, assert_same_run, environment, small_recipe, times, write_recipe
from safetensors.torch import load_file

from crosspref import api
from crosspref.errors import RunError

POLL_SECONDS = 0.0005


def full_recipe(file: Path, initial: Path, held_out: Path, preferences: Path, iterations: int) -> Path:
    """Write a recipe with everything: full training in stage 0, adapters later, measures of every policy."""
    training = {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 2, "checkpoint_every": 1}
    content = small_recipe(
        initial,
        iterations=iterations,
        align_english={"preferences": str(preferences), **training},
        train={"lora": {"rank": 4}, "epochs": 2},
        evaluate={"prompts": str(held_out), "n": 2, "resamples": 100},
    )
    return write_recipe(file, content)


def run_undisturbed(recipe: Path, run: Path) -> Path:
    """Run a recipe in a plain process, with another order of sets than the forked ones have."""
    command = [*CLI, "run", str(recipe), "--out", str(run)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(PYTHONHASHSEED="1"), timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return run


@dataclass(frozen=True)
class Strike:
    """Kill when so many paths fit the pattern, and up to so many random seconds later."""

    pattern: str
    count: int = 1
    within: float = 0.0

    def is_due(self, run: Path, begun: int) -> bool:
        return sum(1 for _ in run.glob(self.pattern)) >= self.count


@dataclass(frozen=True)
class Moment:
    """Kill at a random moment of the phase of that number, counted from 0, which takes about so many seconds."""

    phase: int
    within: float

    def is_due(self, run: Path, begun: int) -> bool:
        return _lines(run) - begun >= self.phase


@dataclass
class History:
    """What happened to one run."""

    run: Path
    hits: list[str] = field(default_factory=list)
    finished: dict[str, int] = field(default_factory=dict)
    """The modification time of every unit that was finished when a kill came."""
    output: str = ""

    def assert_as_undisturbed(self, reference: Path) -> None:
        """The run equals one that was never killed, and what was finished before a kill was not made once more."""
        assert self.hits
        assert_same_run(self.run, reference)
        assert api.verify(self.run).damages == []
        now = times(self.run)
        assert [name for name, when in self.finished.items() if now.get(name, when) != when] == []


def run_with_kills(
    server: ForkServer, command: Sequence[str | Path], run: Path, strikes: Sequence[Strike | Moment], seed: int
) -> History:
    """Run a command, kill it at each strike, start it again, and at last let it end."""
    chance, history, log = random.Random(seed), History(run), run.with_name(run.name + ".log")
    for strike in strikes:
        process = server.spawn(*command, log=log)
        _await(strike, process, run, chance)
        process.signal(signal.SIGKILL)
        code = process.wait()
        assert code in (0, -signal.SIGKILL), process.output()
        if code == 0:
            break
        history.hits.append(_stage(run))
        history.finished |= _finished(run)
        if len(history.hits) == 1 and (run / "phases.jsonl").exists():
            _leave_half_a_line(run / "phases.jsonl")
    last = server.spawn(*command, log=log)
    assert last.wait() == 0, last.output()
    history.output = last.output()
    return history


def assert_same_policy(run: Path, reference: Path) -> None:
    """Two ranks that add up their gradients come to the weights of one process, up to rounding."""
    ours, theirs = (load_file(root / "iteration_1" / "policy" / "model.safetensors") for root in (run, reference))
    assert ours.keys() == theirs.keys()
    for name, weights in theirs.items():
        torch.testing.assert_close(ours[name], weights, rtol=0, atol=1e-5)


def assert_all_end(processes: list[psutil.Process], seconds: float) -> None:
    """They end by themselves; those that are only waiting to be asked for their exit code have ended."""
    end = time.monotonic() + seconds
    left = processes
    while left and time.monotonic() < end:
        time.sleep(0.1)
        left = [process for process in left if _is_alive(process)]
    names = [" ".join(command_of(process)) for process in left]
    for process in left:
        process.kill()
    assert not left, f"these outlived the run: {names}"


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _await(strike: Strike | Moment, process: Forked, run: Path, chance: random.Random) -> None:
    begun, polls = _lines(run), 0
    while not strike.is_due(run, begun):
        polls += 1
        if polls % 20 == 0 and process.poll() is not None:
            return
        time.sleep(POLL_SECONDS)
    time.sleep(chance.uniform(0, strike.within))


def _lines(run: Path) -> int:
    log = run / "phases.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _stage(run: Path) -> str:
    """The first phase that is not done, as `iteration stage`."""
    try:
        status = next((status for status in api.status(run) if not status.is_done), None)
    except RunError:
        return "0 start"
    return f"{status.phase.iteration} {status.phase.name}" if status else "2 end"


def _finished(run: Path) -> dict[str, int]:
    def stamps() -> Iterator[tuple[str, int]]:
        for marker in run.rglob("*.done.json"):
            unit = marker.with_name(marker.name.removesuffix(".done.json"))
            for path in (marker, unit, *(unit.iterdir() if unit.is_dir() else ())):
                yield path.relative_to(run).as_posix(), path.stat().st_mtime_ns

    return dict(stamps())


def _leave_half_a_line(log: Path) -> None:
    text = log.read_bytes()
    log.write_bytes(text[: text.rstrip(b"\n").rfind(b"\n") + 1] + text.rstrip(b"\n")[-20:-5])
