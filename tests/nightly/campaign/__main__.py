"""Runs the campaign, or a part of it: ``python -P -m nightly.campaign --seed 7 --scale 0.05 --only data:417``."""

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "120"}

import datasets  # noqa: F401 - what children would import again and again
import openai  # noqa: F401
import torch
import transformers.models.gemma2.modeling_gemma2
import transformers.models.llama.modeling_llama
import transformers.models.qwen3.modeling_qwen3  # noqa: F401

import crosspref.engines.examination  # noqa: F401
from crosspref.commands import COMMANDS

from . import KINDS
from .cases import Case, in_child, look, signature
from .data import Data
from .models import Models
from .readers import Readers
from .recipes import Recipes
from .servers import Servers
from .strikes import Disks, Kills, Odd
from .world import World, make_world

PREPARED = dict(zip(KINDS, (Recipes, Data, Readers, Models, Servers, Kills, Disks, Odd), strict=True))
SHOWN = 30
"""Faults of a kind that are shown, of which each stands for all that are alike."""

Verdict = tuple[int, list[str], Counter[str]]
"""A case's number, its faults, and what happened in it."""


def main() -> int:
    """Run the cases that the options name, and return 0 if none had a fault."""
    options = _options()
    begun = time.monotonic()
    say(f"The campaign with SEED={options.seed} SCALE={options.scale:g}, {options.jobs} processes.")
    torch.set_num_threads(1)
    for name in COMMANDS:
        __import__(f"crosspref.commands.{name}")
    options.out.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f"seed-{options.seed}-", dir=options.out.resolve()))
    world = World(root / "world")
    world.root.mkdir()
    in_child(partial(make_world, world.root), world.root)
    say(f"What all cases share took {time.monotonic() - begun:.0f} s and lies in {world.root}.")
    faults = 0
    for kind in KINDS:
        numbers = _numbers(options, kind)
        if numbers:
            faults += _run_kind(kind, numbers, options, world)
    say(f"{faults} faults in {(time.monotonic() - begun) / 60:.1f} minutes.")
    if not faults:
        shutil.rmtree(root)
    return min(faults, 1)


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="what everything is drawn from")
    parser.add_argument("--scale", type=float, default=1.0, help="which share of the cases is run")
    parser.add_argument("--only", default="", help="kinds, or cases as KIND:NUMBER, with commas between them")
    parser.add_argument("--jobs", type=int, default=2, help="how many cases are run at once")
    parser.add_argument("--out", type=Path, default=Path("runs/campaign"), help="where the cases with faults are kept")
    return parser.parse_args()


def _numbers(options: argparse.Namespace, kind: str) -> list[int]:
    """Return the numbers of the cases of a kind that are run, spread evenly over all of them."""
    count = PREPARED[kind].COUNT
    named = [one.partition(":") for one in options.only.split(",") if one]
    if unknown := [name for name, _, _ in named if name not in KINDS]:
        raise SystemExit(f"There is no kind {unknown[0]!r}. Known: {', '.join(KINDS)}")
    single = [int(number) for name, _, number in named if name == kind and number]
    if single or (named and kind not in [name for name, _, _ in named]):
        return single
    wanted = max(1, round(count * min(options.scale, 1.0)))
    return [number * count // wanted for number in range(wanted)]


def _run_kind(kind: str, numbers: list[int], options: argparse.Namespace, world: World) -> int:
    """Run cases of a kind, say what happened, and return how many had a fault."""
    begun, act = time.monotonic(), PREPARED[kind](world)
    before = look(world.root, world.root)
    counts, faulty = Counter[str](), list[Verdict]()
    for verdict in _verdicts(kind, act, numbers, options, world.root.parent):
        counts.update(verdict[2])
        if verdict[1]:
            faulty.append(verdict)
    happened = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    seconds = time.monotonic() - begun
    say(f"{kind:8} {len(numbers):5} cases, {len(faulty)} with faults, {seconds:4.0f} s; commands: {happened}")
    _show(kind, faulty, options)
    if look(world.root, world.root) != before:
        say(f"FAULT {kind}: files that all cases share were touched")
        return len(faulty) + 1
    return len(faulty)


def _verdicts(
    kind: str, act: Callable[[Case], None], numbers: list[int], options: argparse.Namespace, root: Path
) -> Iterator[Verdict]:
    """Yield what came of each case, in the order of their numbers."""
    one = partial(_run_case, kind, options.seed, root)
    with ProcessPoolExecutor(options.jobs, get_context("fork"), _take, (act,)) as pool:
        yield from pool.map(one, numbers)


_acting: Callable[[Case], None]
"""What a worker does with a case."""


def _take(act: Callable[[Case], None]) -> None:
    global _acting
    _acting = act


def _run_case(kind: str, seed: int, root: Path, number: int) -> Verdict:
    """Run one case, and remove its folder unless it has a fault."""
    case = Case(kind, number, seed, root / f"{kind}-{number}")
    try:
        _acting(case)
    except Exception:  # noqa: BLE001 - one case that cannot be run says nothing of the others
        case.faults.append(f"the campaign itself failed: {traceback.format_exc()[-500:]}")
    if not case.faults:
        shutil.rmtree(case.folder, ignore_errors=True)
    return number, case.faults, case.counts


def _show(kind: str, faulty: list[Verdict], options: argparse.Namespace) -> None:
    """Show one fault for all that are alike, with the command that has it again."""
    alike: dict[str, list[tuple[int, str]]] = {}
    for number, faults, _ in faulty:
        for fault in faults:
            alike.setdefault(signature(fault), []).append((number, fault))
    for same in sorted(alike.values(), key=len, reverse=True)[:SHOWN]:
        number, fault = same[0]
        others = f" ({len(same)} alike: {', '.join(str(other) for other, _ in same[:8])})" if len(same) > 1 else ""
        say(f"FAULT {kind}:{number}{others}: {ascii(fault)[1:-1]}")
        say(f"  again: make campaign SEED={options.seed} ONLY={kind}:{number}")
    if len(alike) > SHOWN:
        say(f"... and {len(alike) - SHOWN} more kinds of faults")


if __name__ == "__main__":
    sys.exit(main())
