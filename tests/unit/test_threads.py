"""Threads sleep at barriers beside busy processes, and only where nobody has chosen otherwise."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.slow  # processes of its own

BUSY = "while True: pass"
SHOW = """
import os, sys
from crosspref.engines import threads
threads.settle_waiting({threads})
print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def _busy_cores() -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    yield
    for process in processes:
        process.kill()
        process.wait()


def settled(threads: int | None, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    command = [sys.executable, "-c", SHOW.format(threads=threads)]
    done = subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has no threads that wait for one another")
@pytest.mark.usefixtures("_busy_cores")
def test_beside_busy_processes_threads_sleep() -> None:
    assert settled(None) == "0 False"
    assert settled(2) == "0 False"
    assert settled(1) == "None False"  # nobody to wait for
    assert settled(None, GOMP_SPINCOUNT="7") == "7 False"
    assert settled(None, OMP_WAIT_POLICY="active") == "None False"
