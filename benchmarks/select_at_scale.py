"""Time and memory of selecting, and of finding that a run's shards are done, on a made-up run of any size.

    python benchmarks/select_at_scale.py --prompts 1000000 --responses 10 --shard 1000

The run is written once into --out, with made-up texts, token ids and rewards; then `crosspref phase RUN select 1` runs
in a process of its own, and `crosspref status RUN` in another. Prints seconds and peak memory of each, with imports.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from crosspref.data.records import SCHEMAS, Prompt
from crosspref.recipe.files import dump_recipe, make_recipe
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Fingerprint, Unit, write_text

CHARACTERS, TOKENS = 200, 60


def main() -> None:
    """Make the run if it is not there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--responses", type=int, default=10)
    parser.add_argument("--shard", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not (options.out / "recipe.yaml").exists():
        started = time.monotonic()
        make_run(options.out, options.prompts, options.responses, options.shard)
        print(f"written in {time.monotonic() - started:.0f} s")
    for old in (options.out / "iteration_1" / "pairs").glob("*"):
        old.unlink()
    measure("select", "phase", str(options.out), "select", "1")
    measure("status", "status", str(options.out))


def measure(what: str, *arguments: str) -> None:
    """Run a command of crosspref and print what it took."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-P", "-m", "crosspref", *arguments], stdin=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{what} failed")
    print(f"{what}: {time.monotonic() - started:.1f} s, {usage.ru_maxrss / 2**20:.2f} GiB at most", flush=True)


def make_run(root: Path, prompts: int, n: int, shard: int) -> None:
    """Write the prompts, responses and scores of a run in one language."""
    random, run = np.random.default_rng(0), RunDirectory(root)
    ids = [f"prompt-{number:08d}" for number in range(prompts)]
    texts = [f"Explain in a few words what number {number} is good for, with one example." for number in range(prompts)]
    table = pa.Table.from_arrays([pa.array(ids), pa.repeat("en", prompts), pa.array(texts)], schema=SCHEMAS[Prompt])
    store(run.prompts.unit("en"), table)
    letters = np.frombuffer(b"etaoinshrdlu cmfwypvbgkjqxz  ", dtype=np.uint8)
    for start in range(0, prompts, shard):
        part = ids[start : start + shard]
        count = len(part) * n
        lengths = random.integers(CHARACTERS // 2, CHARACTERS * 3 // 2, count)
        tokens = random.integers(TOKENS // 2, TOKENS * 3 // 2, count)
        characters = pa.py_buffer(random.choice(letters, lengths.sum()).tobytes())
        text = pa.StringArray.from_buffers(count, pa.py_buffer(offsets(lengths).tobytes()), characters)
        token_ids = pa.ListArray.from_arrays(offsets(tokens), random.integers(0, 50_000, tokens.sum(), np.int32))
        samples = np.tile(np.arange(n, dtype=np.int32), len(part))
        key = [pa.array(np.repeat(part, n)), pa.repeat("en", count), pa.array(samples)]
        ends = pa.array(np.where(random.random(count) < 0.05, "length", "stop"))
        rewards = random.normal(size=count) + lengths / 500
        counts = [pa.array(values.astype(np.int32)) for values in (tokens, lengths)]
        logprobs = [pa.array(rewards)] * 2
        places = run.iteration(1)
        columns = {
            places.responses: [*key, text, token_ids, ends, pa.array(random.integers(0, 2**62, count))],
            places.scores("crosslingual"): [
                *key, pa.repeat("crosslingual", count), *logprobs, *counts, pa.array(rewards)
            ],
        }  # fmt: skip
        for place, arrays in columns.items():
            store(place.unit("en", start), pa.Table.from_arrays(arrays, schema=SCHEMAS[place.kind]))
    recipe = {
        "models": {"initial": "pi-I", "policy": "pi-0"},
        "languages": ["en"],
        "prompts": {"source": "made-up.jsonl"},
        "resources": {"shard_prompts": shard},
    }
    write_text(run.recipe, dump_recipe(make_recipe(recipe)))


def offsets(lengths: np.ndarray) -> np.ndarray:
    """Return the offsets of an Arrow array of texts or lists."""
    return np.concatenate([[0], lengths.cumsum()]).astype(np.int32)


def store(unit: Unit, table: pa.Table) -> None:
    """Write a finished unit."""
    unit.write_table(table)
    unit.finish(Fingerprint({"made": "up"}), len(table))


if __name__ == "__main__":
    main()
