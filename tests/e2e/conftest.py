"""Models and small inputs for whole runs."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import ForkServer, Run, head, small_recipe, write_recipe
from tiny import talker

from crosspref.cli import main


@pytest.fixture(scope="session", autouse=True)
def _frozen() -> None:
    """Closing an engine collects garbage, which takes long over the libraries' millions of objects."""
    gc.freeze()


@pytest.fixture(scope="session")
def models(tiny_models: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(pi_I, pi_0) that end their turn now and then."""
    root = tmp_path_factory.mktemp("talkers")
    initial, aligned = tiny_models["llama"]
    return talker(initial, root / "initial"), talker(aligned, root / "aligned")


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return head("prompts_heldout.jsonl", tmp_path_factory.mktemp("heldout") / "heldout.jsonl", 3)


@pytest.fixture(scope="session")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return head("english_preferences.jsonl", tmp_path_factory.mktemp("preferences") / "english.jsonl", 8)


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command here and returns its exit code, what it printed, and its errors."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def content(models: tuple[Path, Path], held_out: Path) -> dict[str, Any]:
    """A recipe of one iteration, with everything but stage 0."""
    evaluation = {"prompts": str(held_out), "n": 2, "resamples": 100}
    return small_recipe(*models, iterations=1, evaluate=evaluation)


@pytest.fixture(scope="session")
def recipe_file(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", content)


@pytest.fixture(scope="session")
def done(recipe_file: Path, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of it; tests that change something do so in a copy."""
    run = tmp_path_factory.mktemp("done") / "run"
    process = forks.spawn("run", recipe_file, "--out", run, log=run.with_name("log"))
    assert process.wait() == 0, process.output()
    return run
