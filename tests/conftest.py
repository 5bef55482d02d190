"""Tiny models for all tests."""

import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may wait for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what it puts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the programs that tests start inherit it

import pytest
from tiny import CONFIGS, make_model, nudge


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """For each architecture (pi_I, pi_0): two directories with one tokenizer."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for kind in CONFIGS:
        initial = make_model(root / kind, kind)
        found[kind] = (initial, nudge(initial, root / f"{kind}-aligned"))
    return found
