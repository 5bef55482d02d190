"""The campaign as tests, one for each kind; the seed is another one each night, and is printed."""

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from . import KINDS

TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_ends_in_a_traceback_or_loses_anything(kind: str, tmp_path: Path) -> None:
    seed, scale = os.environ.get("SEED", f"{date.today():%Y%m%d}"), os.environ.get("SCALE", "1")
    paths = [str(TESTS), str(TESTS / "e2e"), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
    options = ["--seed", seed, "--scale", scale, "--only", kind, "--jobs", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "nightly.campaign", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
