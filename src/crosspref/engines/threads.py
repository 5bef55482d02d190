"""How the threads of this process wait for one another, on a processor that it may share.

OpenMP's threads spin at the end of each parallel region. That is fastest on idle cores, and slowest beside a busy
process: whoever waits keeps the core from the thread that is waited for. Measured by sampling from SmolLM2-135M in
bfloat16 with two threads on two cores: idle, spinning 330 tokens/s and sleeping 205; beside one busy process, spinning
80 and sleeping 215. OpenMP reads its settings when torch is loaded, so the choice is made once, just before.
"""

import os
import sys

import psutil

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Where a person may have chosen already."""

LOOK_SECONDS = 0.2
ENOUGH = 0.8
"""Threads spin if at least this share of the cores that they want is idle."""


def settle_waiting(threads: int | None) -> None:
    """Let threads sleep at barriers if other processes are busy, unless a person has chosen or torch is loaded.

    It changes no result: there are as many threads as before. None is for one per core.
    """
    cores = os.cpu_count() or 1
    wanted = min(threads or cores, cores)
    if wanted == 1 or "torch" in sys.modules or any(name in os.environ for name in VARIABLES):
        return
    idle = cores * (1 - psutil.cpu_percent(LOOK_SECONDS) / 100)
    if idle < ENOUGH * wanted:
        os.environ["GOMP_SPINCOUNT"] = "0"
