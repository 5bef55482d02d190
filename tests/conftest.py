"""Tiny models for all tests, one thread for each process, and a mark for each folder's tests."""

import logging
import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may wait for a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and sums must not depend on how many cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)  # else its notice would follow pytest's summary
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what it puts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the programs that tests start inherit it

import pytest  # noqa: E402 - after what it and peft read when they are imported
from tiny import CONFIGS, make_model, nudge, talker  # noqa: E402

HERE = Path(__file__).parent
MARKS = {"e2e": "slow", "lab": "slow", "nightly": "nightly", "with_vllm": "nightly"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the folder in which they lie."""
    for item in items:
        for folder in item.path.relative_to(HERE).parts[:-1]:
            if folder in MARKS:
                item.add_marker(MARKS[folder])


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """For each architecture (pi_I, pi_0): two directories with one tokenizer."""
    root = tmp_path_factory.mktemp("models")
    models = {}
    for kind in CONFIGS:
        initial = make_model(root / kind, kind)
        models[kind] = (initial, nudge(initial, root / f"{kind}-aligned"))
    return models


@pytest.fixture(scope="session")
def models(tiny_models: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(pi_I, pi_0) that end their turn now and then."""
    root = tmp_path_factory.mktemp("talkers")
    initial, aligned = tiny_models["llama"]
    return talker(initial, root / "initial"), talker(aligned, root / "aligned")
