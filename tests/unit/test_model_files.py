"""Which files of a directory make a model; nothing here loads weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_models import error_of

from crosspref.errors import ModelError
from crosspref.models.files import kept_files, require_no_other_weights, weight_names
from crosspref.models.locate import ModelFiles, locate_model
from crosspref.plan.shapes import read_shape

CONFIG = {"hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 6, "intermediate_size": 8}


def tensors(path: Path, **shapes: list[int]) -> None:
    """Write a safetensors file without data: its header alone says what it holds."""
    header = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    )
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())


def index(folder: Path, *names: Any) -> None:
    places = {f"weight_{number}": name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in two shards."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors(folder / "model-00001-of-00002.safetensors", embed=[6, 4])
    tensors(folder / "model-00002-of-00002.safetensors", layer=[4, 4])
    index(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    return folder


def parameters(files: ModelFiles) -> int:
    return read_shape(files).parameters


def test_the_same_weights_in_another_form_are_neither_read_nor_counted(folder: Path) -> None:
    alone = locate_model(str(folder))
    assert parameters(alone) == 6 * 4 + 4 * 4
    tensors(folder / "consolidated.safetensors", embed_of_its_own=[6, 4], layer_of_its_own=[4, 4])
    tensors(folder / "adapter_model.safetensors", lora=[4, 2])
    beside = locate_model(str(folder))
    assert beside.identity == alone.identity
    assert parameters(beside) == 40


def test_what_reads_every_file_is_kept_from_others(folder: Path) -> None:
    tensors(folder / "consolidated.safetensors", other=[6, 4])
    require_no_other_weights(folder, "It")  # which the index leaves out
    tensors(folder / "model.safetensors", embed=[6, 4])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        require_no_other_weights(folder, "It")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"consolidated\.safetensors, model-00001"):
        require_no_other_weights(folder, "It")
    for name in ("consolidated", "model-00001-of-00002", "model-00002-of-00002"):
        (folder / f"{name}.safetensors").unlink()
    require_no_other_weights(folder, "It")


def test_one_file_goes_before_several(folder: Path) -> None:
    tensors(folder / "model.safetensors", embed=[6, 4], layer=[4, 4])
    assert weight_names(folder, {entry.name for entry in folder.iterdir()}) == ["model.safetensors"]
    both = locate_model(str(folder))
    assert parameters(both) == 40
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"other")
    assert locate_model(str(folder)).identity == both.identity


def test_a_shard_is_part_of_the_identity(folder: Path) -> None:
    before = locate_model(str(folder)).identity
    tensors(folder / "model-00002-of-00002.safetensors", layer=[5, 4])
    assert locate_model(str(folder)).identity != before


@pytest.mark.parametrize("named", ["../model.safetensors", "/etc/model.safetensors", "sub/a.safetensors", "a.bin", 7])
def test_an_index_names_safetensors_beside_it(folder: Path, named: Any) -> None:
    index(folder, "model-00001-of-00002.safetensors", named)
    text = error_of(folder)
    assert "model.safetensors.index.json" in text
    assert str(named) in text


def test_an_index_that_names_nothing_or_what_is_not_there(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    assert "index.json" in error_of(folder)
    index(folder, "model-00001-of-00002.safetensors", "model-00003-of-00003.safetensors")
    text = error_of(folder)
    assert "lacks 1 of the 2 files" in text
    assert "model-00003-of-00003.safetensors" in text


def test_weights_that_a_configuration_names_are_those_that_are_read(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "transformers_weights": "other.safetensors"}))
    assert "model.safetensors" in error_of(folder)
    tensors(folder / "other.safetensors", embed=[9, 4])
    assert parameters(locate_model(str(folder))) == 36


def test_shards_without_an_index_are_no_weights(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    assert "holds no model.safetensors, and no model.safetensors.index.json" in error_of(folder)


def add_adapter(folder: Path, base: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors(folder / "adapter_model.safetensors", lora=[4, 2])


def test_an_adapter_left_beside_whole_weights_changes_nothing(folder: Path, tmp_path: Path) -> None:
    alone = locate_model(str(folder))
    add_adapter(folder, tmp_path / "gone")
    beside = locate_model(str(folder))
    assert (beside.adapter, beside.identity) == (None, alone.identity)


def test_an_adapter_with_a_copy_of_its_bases_configuration_is_an_adapter(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(folder / "config.json", adapter)
    add_adapter(adapter, folder)
    found = locate_model(str(adapter))
    assert (found.directory, found.adapter) == (folder, adapter)
    (adapter / "pytorch_model.bin").write_bytes(b"merged, or what else?")
    assert "pytorch_model.bin" in error_of(adapter)


def test_one_of_several_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "small-q4.gguf").write_bytes(b"GGUF")
    found = locate_model(str(tmp_path))
    assert (found.directory, found.gguf_file) == (tmp_path, "small-q4.gguf")
    assert found.identity == locate_model(str(tmp_path / "small-q4.gguf")).identity
    (tmp_path / "small-q8.gguf").write_bytes(b"GGUF")
    text = error_of(tmp_path)
    assert f"{tmp_path}/small-q4.gguf" in text
    assert "small-q4.gguf, small-q8.gguf" in text


@pytest.mark.parametrize("name", ["", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf"])
def test_a_gguf_file_in_parts_must_be_joined(tmp_path: Path, name: str) -> None:
    for part in (1, 2):
        (tmp_path / f"big-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    assert "llama-gguf-split --merge big-00001-of-00002.gguf big.gguf" in error_of(tmp_path / name)


def test_what_is_kept_is_every_small_file_but_weights_state_and_papers(folder: Path) -> None:
    kept = {
        *("tokenizer_config.json", "generation_config.json", "chat_template.json", "preprocessor_config.json"),
        *(
            "own.words",
            "qwen.tiktoken",
            "tokenizer.model.v3",
            "tokenization_own.py",
            "additional_chat_templates/a.jinja",
        ),
    }
    left = {
        *("README.md", "LICENSE", ".gitattributes", "optimizer.pt", "training_args.bin", "trainer_state.json"),
        *("adapter_config.json", "model.gguf", "checkpoint-5/tokenizer.json", ".git/config", "mergekit_config.yml"),
    }
    for name in {*kept, *left}:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    assert {path.relative_to(folder).as_posix() for path in kept_files(folder)} == kept


def test_a_big_file_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosspref.models.files._SMALL_BYTES", 3)
    (folder / "own.words").write_text("four")
    assert kept_files(folder) == []


def test_the_identity_of_an_ordinary_directory_is_what_it_was(tmp_path: Path) -> None:
    # sha256 over name, NUL, size, NUL and content of each file in the order of their names, by hand in a shell.
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    (tmp_path / "tokenizer.json").write_text("[]")
    (tmp_path / "README.md").write_text("of no account")
    assert locate_model(str(tmp_path)).identity == "1856e3b39bd127b74696aee824da86c314c494ff03043d917d28b95ab92ceb4b"


def test_an_error_is_a_model_error() -> None:
    with pytest.raises(ModelError):
        weight_names(Path("none"), {"model.safetensors.index.json"})


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json", "adapter_config.json"])
def test_files_that_git_did_not_fetch_are_named(name: str, folder: Path) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 17\n")
    assert all(word in error_of(str(folder)) for word in (name, "git lfs pull"))


def test_a_folder_around_models_shows_what_it_holds(folder: Path) -> None:
    (folder.parent / "checkpoint-500").mkdir()
    assert "checkpoint-500/, model/" in error_of(str(folder.parent))
