"""Models and small inputs for whole runs."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from running import ForkServer, Models, Run, ask_here, head, small_recipe, write_recipe
from transformers import AutoModelForSequenceClassification

from crosspref import api
from crosspref.cli import main


@pytest.fixture(scope="session", autouse=True)
def _frozen() -> None:
    """Closing an engine collects garbage, which takes long over the libraries' millions of objects."""
    gc.freeze()


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return head("prompts_heldout.jsonl", tmp_path_factory.mktemp("heldout") / "heldout.jsonl", 3)


@pytest.fixture(scope="session")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return head("english_preferences.jsonl", tmp_path_factory.mktemp("preferences") / "english.jsonl", 8)


@pytest.fixture(scope="session")
def reward_model(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with one output on the policy's body, with a chat template of its own."""
    folder = Path(shutil.copytree(models[1], tmp_path_factory.mktemp("reward") / "model"))
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    with torch.no_grad():
        model.score.weight.normal_(0, 1)
    model.save_pretrained(folder)
    template = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} {% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command here and returns its exit code, what it printed, and its errors."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(api, "ask_child", ask_here)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def content(models: Models, held_out: Path) -> dict[str, Any]:
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
    forks.run("run", recipe_file, "--out", run, log=run.with_name("log"))
    return run
