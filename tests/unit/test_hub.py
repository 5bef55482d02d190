"""Models on the hub, which a fake stands in for, over a real socket; the hub's own library asks it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub
from test_model_files import add_adapter, index, tensors

pytestmark = pytest.mark.slow  # it starts processes, since the hub's library reads its settings once

FIND = """
import sys
from crosspref.errors import ModelError
from crosspref.models.locate import locate_model
try:
    found = locate_model(sys.argv[1], weights=len(sys.argv) < 3)
    print(found.directory, found.gguf_file, found.adapter, sep="|")
except ModelError as error:
    print("ModelError", error)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A model in two shards beside the same in its authors' format, adapters over it, and GGUF files."""
    folders = {name: tmp_path / "hub" / name for name in ("own/model", "own/adapter", "own/both", "own/gguf")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for name in ("own/model", "own/both"):
        (folders[name] / "config.json").write_text("{}")
    for number in (1, 2):
        tensors(folders["own/model"] / f"part-{number}.safetensors", **{f"layer_{number}": [4, 4]})
    index(folders["own/model"], "part-1.safetensors", "part-2.safetensors")
    for name in ("consolidated.safetensors", "pytorch_model.bin", "own.words", "README.md"):
        (folders["own/model"] / name).write_text("x")
    add_adapter(folders["own/adapter"], Path("own/model"))
    add_adapter(folders["own/both"], Path("own/model"))
    tensors(folders["own/both"] / "model.safetensors", layer=[4, 4])
    for name in ("small-q4.gguf", "small-q8.gguf"):
        (folders["own/gguf"] / name).write_bytes(b"GGUF")
    with FakeHub(folders) as fake:
        yield fake


def find(hub: FakeHub, tmp_path: Path, *arguments: str, token: str | None = None) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
    if token:
        environment["HF_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, "-c", FIND, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip().split("|")


def test_only_what_is_read_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    directory, *_ = find(hub, tmp_path, "hf://own/model@main", "small")
    assert Path(directory).name == hub.commit
    small = {"config.json", "model.safetensors.index.json", "own.words"}
    assert hub.sent == small
    find(hub, tmp_path, "own/model")
    assert hub.sent == {*small, "part-1.safetensors", "part-2.safetensors"}


def test_a_private_repository_is_opened_by_the_hubs_own_login_alone(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"  # noqa: S105
    assert find(hub, tmp_path, "own/model")[0].startswith("ModelError The model 'own/model' is no path")
    assert {token for _, token in hub.asked} == {None}
    hub.asked.clear()
    assert Path(find(hub, tmp_path, "own/model", token="hf_secret")[0]).name == hub.commit
    assert {token for _, token in hub.asked} == {"Bearer hf_secret"}


def test_a_token_that_the_hub_repeats_is_not_shown(hub: FakeHub, tmp_path: Path) -> None:
    hub.token, token = "hf_other", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
    said = "|".join(find(hub, tmp_path, "own/model", token=token))
    assert "Wrong token: Bearer ***" in said
    assert token not in said


def test_adapters_and_what_is_left_of_them(hub: FakeHub, tmp_path: Path) -> None:
    for arguments in (["own/adapter", "small"], ["own/adapter"]):
        assert "own--adapter" in find(hub, tmp_path, *arguments)[2]
    for arguments in (["own/both", "small"], ["own/both"]):
        directory, _, adapter = find(hub, tmp_path, *arguments)
        assert ("own--both" in directory, adapter) == (True, "None")


def test_one_of_several_gguf_files(hub: FakeHub, tmp_path: Path) -> None:
    assert "own/gguf:small-q4.gguf" in find(hub, tmp_path, "own/gguf")[0]
    assert find(hub, tmp_path, "own/gguf@main:small-q8.gguf")[1] == "small-q8.gguf"
    assert hub.sent == {"small-q8.gguf"}
    assert "It holds: small-q4.gguf, small-q8.gguf" in find(hub, tmp_path, "own/gguf:small-q5.gguf")[0]


def test_weights_that_are_not_read_are_noticed_before_they_are_wanted(hub: FakeHub, tmp_path: Path) -> None:
    places = {"layer": "part-3.safetensors"}
    index_file = hub.repositories["own/model"] / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": places}))
    assert "part-3.safetensors" in find(hub, tmp_path, "own/model", "small")[0]
