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
import workload
from lines import LINES, unit
from timing import machine

MEASURES = {
    "measure_alpha:measure_alpha": ("alpha",),
    "measure_scoring:measure_rescoring": ("rescoring",),
    "measure_exactness:measure_exactness": ("noise", "flips"),
    "measure_memory:measure_memory": ("memory", "memory-workload"),
    "measure_scoring:measure_adapter": ("adapter-memory", "adapter-time"),
    "measure_iteration:measure_sampling": ("sampling",),
    "measure_scoring:measure_one_model": ("released", "trl-reference", "limit"),
    "measure_training:measure_training": ("training",),
    "measure_iteration:measure_iteration": ("iteration",),
}
"""What measures which lines, the quick ones first."""

REPOSITORY = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    given = parse(arguments)
    docs, wanted = given.pop("docs"), given.pop("only")
    os.environ.update({"OMP_NUM_THREADS": str(given["threads"]), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"})
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # of names that TRL still uses
    from prepared import Options, facts, prepare

    work = prepare(Options(**given))
    where = facts(work)
    for measure, keys in MEASURES.items():
        if not set(keys) & wanted:
            continue
        started = time.monotonic()
        print(f"{', '.join(keys)}:", flush=True)
        module, _, name = measure.partition(":")
        found = getattr(importlib.import_module(module), name)(work)
        gc.collect()
        seconds = round(time.monotonic() - started)
        store(docs / "performance.json", found, {**where, "seconds": round(seconds / len(found))})
        for key, line in found.items():
            print(f"  {told(key, line)}; {seconds} s", flush=True)
    everything = page.load(docs / "performance.json")
    page.write(docs, everything)
    print("\n".join([*(told(key, everything[key]) for key in LINES if key in everything), *page.places(everything)]))


def parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(LINES), help="lines, with commas: " + ", ".join(LINES))
    parser.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "development", help="where the results go")
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "runs" / "bench", help="models and responses")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default=workload.MODEL)
    parser.add_argument("--prompts-from", default=workload.source())
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--responses", type=int, default=10, help="per prompt; an even number, for TRL's pairs")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--sample-prompts", type=int, default=4, help="prompts of the line on sampling")
    parser.add_argument("--iteration-prompts", type=int, default=6, help="prompts of the line on a whole iteration")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a training step; 8 is TRL's default")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    given = vars(parser.parse_args(arguments))
    given["only"] = set(given["only"].split(","))
    if not given["only"] <= set(LINES):
        parser.error(f"--only: there is no line {min(given['only'] - set(LINES))}; known: {', '.join(LINES)}")
    if given["responses"] % 2 or min(given["prompts"], given["rounds"]) < 1:
        parser.error("--responses must be even, --prompts and --rounds at least 1")
    if given["dtype"] == "auto":
        given["dtype"] = "bfloat16" if machine(given["threads"])["bfloat16"] else "float32"
    return given


def store(path: Path, found: dict[str, dict[str, Any]], where: dict[str, Any]) -> None:
    """Write lines into the JSON, in the place of earlier ones; each says on what it was measured."""
    everything = {**page.load(path), **{key: {**line, **where} for key, line in found.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = {key: everything[key] for key in LINES if key in everything}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def told(key: str, line: dict[str, Any]) -> str:
    """Return a line for the screen."""
    kind = LINES[key].kind
    median, low, high, target = (
        unit(value, kind) for value in (line["median"], line["low"], line["high"], LINES[key].target)
    )
    return f"{key:16} {median:>10} ({low} to {high}), target {target}: {'met' if line['met'] else 'NOT met'}"


if __name__ == "__main__":
    main()
