"""What ``crosspref check`` finds before a run: missing libraries, silent servers, absent devices, models too large."""

import importlib.util
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_server import JsonHandler, LocalServer
from test_plan import write_header

from crosspref.commands.check import check_recipe
from crosspref.errors import CrossprefError, MissingLibraryError, ModelError, RecipeError, ServerError
from crosspref.recipe.files import load_recipe

Models = dict[str, tuple[Path, Path]]


class ListOfModels(JsonHandler):
    """Answers as a model server that is asked for its models."""

    def get(self) -> None:
        self.send_json(200, {"object": "list", "data": [{"id": "pi_0", "object": "model"}]})


@pytest.fixture
def server() -> Iterator[str]:
    with LocalServer(ListOfModels) as local:
        yield local.url


@pytest.fixture
def recipe_file(tiny_models: Models, tmp_path: Path) -> str:
    initial, policy = tiny_models["llama"]
    (tmp_path / "prompts.jsonl").write_text('{"prompt_id": "a", "en": "Why?", "es": "¿Por qué?"}\n', encoding="utf-8")
    content = {
        "models": {"initial": str(initial), "policy": str(policy)},
        "languages": ["en", "es"],
        "prompts": {"source": str(tmp_path / "prompts.jsonl")},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(content), encoding="utf-8")
    return str(tmp_path / "recipe.yaml")


def check(recipe: str, *overrides: str) -> list[str]:
    return list(check_recipe(load_recipe(recipe, list(overrides))))


def test_a_recipe_without_faults_is_ready(recipe_file: str) -> None:
    *lines, last = check(recipe_file)
    assert last == "ok    ready"
    assert all(line.startswith(("ok    ", "note  ")) for line in lines)


@pytest.mark.parametrize(
    ("library", "override"),
    [
        ("vllm", "sample.engine=vllm"),
        ("openai", "sample.engine=server"),
        ("openai", "reward.engine=server"),
        ("ray", "resources.executor=ray"),
        ("bitsandbytes", "train.lora={bits: 4}"),
    ],
)
def test_the_library_of_a_chosen_engine_is_missing(
    recipe_file: str, library: str, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else find_spec(name))
    with pytest.raises(MissingLibraryError) as caught:
        check(recipe_file, override)
    assert caught.value.given[0] == library


def test_a_gguf_model_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    with pytest.raises(MissingLibraryError) as caught:
        check("recipe:quickstart")
    assert caught.value.given[0] == "gguf"


def test_a_server_that_does_not_answer(recipe_file: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match=f"127.0.0.1:{port}"):
        check(recipe_file, "sample.engine=server", f"server.url=http://127.0.0.1:{port}/v1")


def test_a_server_that_lacks_a_model(recipe_file: str, server: str) -> None:
    lines = check(recipe_file, "sample.engine=server", f"server.url={server}")
    assert f"ok    pi_0 is served at {server}" in lines
    with pytest.raises(ServerError, match="pi_I"):
        check(recipe_file, "sample.engine=server", "reward.engine=server", f"server.url={server}")


def test_a_server_need_not_hold_yet_what_stage_0_makes(recipe_file: str, server: str, tmp_path: Path) -> None:
    preferences = tmp_path / "preferences.jsonl"
    preferences.write_text('{"prompt": "Why?", "chosen": "So.", "rejected": "No."}\n', encoding="utf-8")
    stage_0 = ("models.policy=null", f"align_english.preferences={preferences}", "server.names={pi_0: later}")
    assert check(recipe_file, *stage_0, "sample.engine=server", f"server.url={server}")[-1] == "ok    ready"


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there(recipe_file: str, device: str) -> None:
    with pytest.raises(RecipeError, match=f"resources.device: {device}"):
        check(recipe_file, f"resources.device={device}")


def test_a_model_whose_weights_do_not_fit(recipe_file: str, tiny_models: Models, tmp_path: Path) -> None:
    """Sixteen million gigabytes, of which only the header is here."""
    large = tmp_path / "large"
    large.mkdir()
    for file in tiny_models["llama"][1].iterdir():
        if file.suffix != ".safetensors":
            (large / file.name).write_bytes(file.read_bytes())
    write_header(large / "model.safetensors", {"model.embed_tokens.weight": [1 << 22, 1 << 31]})
    with pytest.raises(ModelError, match="weights alone"):
        check(recipe_file, f"models.policy={large}", "resources.device=cpu")
    served = ("sample.engine=server", "reward.engine=server", "resources.launch=torchrun")
    with pytest.raises(ServerError):  # here the model is on no single device, so its size is no fault
        check(recipe_file, f"models.policy={large}", *served, "server.url=http://127.0.0.1:9/v1")


def test_several_faults_are_reported_together(recipe_file: str) -> None:
    with pytest.raises(CrossprefError) as caught:
        check(recipe_file, "resources.device=nonsense", "prompts.source=nowhere.jsonl", "sample.engine=vllm")
    message = str(caught.value)
    assert all(part in message for part in ("resources.device", "nowhere.jsonl", "'vllm'"))
