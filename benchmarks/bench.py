"""The comparisons of docs/development/performance.md: crosspref against what people use now, alternating, as ratios.

    make bench                                    # all lines, into docs/development/
    python benchmarks/bench.py --only sampling,alpha --rounds 3 --docs runs/performance

Prints a table and writes performance.json, .md and .svg into --docs. After each line the JSON is written; --only
replaces the lines it measures in the JSON that is there.
"""

import argparse
import gc
import importlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import page
from lines import LINES, shown
from timing import machine

MEASURES = {
    "alpha:measure": ("alpha",),
    "scoring:measure_rescoring": ("rescoring",),
    "exactness:measure": ("noise", "flips"),
    "memory:measure": ("memory", "memory-workload"),
    "scoring:measure_adapter": ("adapter-memory", "adapter-time"),
    "iteration:measure_sampling": ("sampling",),
    "scoring:measure_one_model": ("released", "trl-reference", "limit"),
    "training:measure": ("training",),
    "iteration:measure_iteration": ("iteration",),
}
"""What in measures/ measures which lines, the quick ones first."""

REPOSITORY = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse(arguments)
    os.environ.update({"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"})
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # of names that TRL still uses
    from workload import MODEL, facts, prepare, source

    options.model, options.prompts_from = options.model or MODEL, options.prompts_from or source()
    work = prepare(options)
    results_file, where = options.docs / "performance.json", facts(work)
    for measure, keys in MEASURES.items():
        if not set(keys) & options.only:
            continue
        started = time.monotonic()
        print(f"{', '.join(keys)}:", flush=True)
        module, _, name = measure.partition(":")
        results = getattr(importlib.import_module(f"measures.{module}"), name)(work)
        gc.collect()
        seconds = round(time.monotonic() - started)
        store(results_file, results, {**where, "seconds": round(seconds / len(results))})
        for key, result in results.items():
            print(f"  {summary(key, result)}; {seconds} s", flush=True)
    everything = page.load(results_file)
    page.write(options.docs, everything)
    print("\n".join([*(summary(key, everything[key]) for key in LINES if key in everything), *page.places(everything)]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(LINES), help="lines, with commas: " + ", ".join(LINES))
    parser.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "development", help="where the results go")
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "runs" / "bench", help="models and responses")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", help="pi_I (SmolLM2-135M-Instruct)")
    parser.add_argument("--prompts-from", help="prompts (those of shared/ or of the package)")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--responses", type=int, default=10, help="per prompt; an even number, for TRL's pairs")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--sample-prompts", type=int, default=4, help="prompts of the line on sampling")
    parser.add_argument("--iteration-prompts", type=int, default=6, help="prompts of the line on a whole iteration")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a training step; 8 is TRL's default")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    options = parser.parse_args(arguments)
    options.only = set(options.only.split(","))
    if not options.only <= set(LINES):
        parser.error(f"--only: there is no line {min(options.only - set(LINES))}; known: {', '.join(LINES)}")
    if options.responses % 2 or min(options.prompts, options.rounds) < 1:
        parser.error("--responses must be even, --prompts and --rounds at least 1")
    if options.dtype == "auto":
        options.dtype = "bfloat16" if machine(options.threads)["bfloat16"] else "float32"
    return options


def store(path: Path, results: dict[str, dict[str, Any]], where: dict[str, Any]) -> None:
    """Write lines into the JSON, in the place of earlier ones; each says what it was measured on."""
    everything = {**page.load(path), **{key: {**result, **where} for key, result in results.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = {key: everything[key] for key in LINES if key in everything}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def summary(key: str, result: dict[str, Any]) -> str:
    """Return a line for the screen."""
    kind = LINES[key].kind
    median, low, high = (shown(result[name], kind) for name in ("median", "low", "high"))
    met = "met" if result["met"] else "NOT met"
    return f"{key:16} {median:>10} ({low} to {high}), target {shown(LINES[key].target, kind)}: {met}"


if __name__ == "__main__":
    main()
