"""Finding models, telling them apart by content, and comparing tokenizers; nothing here loads weights."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from crosspref.errors import ModelError
from crosspref.models import files
from crosspref.models.locate import cache_directory, locate_model
from crosspref.models.tokenizers import require_same_tokenizer, tokenizer_identity

Pair = tuple[Path, Path]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4)
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that cannot be imported, as one whose own dependencies are missing."""
    folder = tmp_path / "site" / "tiny_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('importing this would compile llama.cpp')")
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def error_of(name: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        locate_model(str(name))
    return str(caught.value)


def test_a_home_directory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert locate_model("~/model").directory == model


def test_a_file_in_a_package_is_found_without_importing_it(package: Path) -> None:
    found = locate_model("package:tiny_weights/tiny.gguf")
    assert (found.directory, found.gguf_file) == (package, "tiny.gguf")
    assert found.identity == locate_model(str(package / "tiny.gguf")).identity


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("package:no_such_package/x.gguf", "package 'no_such_package', which is not installed. Install it (pip's name"),
        ("package:tiny_weights/other.gguf", "is installed, but has no 'other.gguf'. It has: tiny.gguf."),
        ("package:tiny_weights", "must be package:NAME/path/inside"),
        ("package:tiny-weights/tiny.gguf", "must be package:NAME/path/inside"),
        ("package:tiny_weights/../x", "with a path that stays inside the package"),
        ("package:tiny_weights//etc/hostname", "with a path that stays inside the package"),
    ],
)
def test_what_is_not_in_a_package(package: Path, name: str, said: str) -> None:
    text = error_of(name)
    assert text.startswith(f"The model {name!r}")
    assert said in text


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    text = error_of(tmp_path / "none")
    assert f"The model {str(tmp_path / 'none')!r} was not found: it is no existing path, and no hub id" in text
    assert "Give a directory with config.json and safetensors, a .gguf file, a hub id, or package:NAME/file." in text


def test_directories_and_files_that_are_no_models(model: Path) -> None:
    (model / "config.json").rename(model / "configuration.json")
    text = error_of(model)
    assert "holds no config.json, so it is not a model. It holds: configuration.json, model.safetensors" in text
    empty = model / "empty"
    empty.mkdir()
    assert "It holds: none" in error_of(empty)
    assert "only .gguf files can be read alone; give its directory" in error_of(model / "model.safetensors")


def test_weights_that_could_run_code_are_not_read(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    text = error_of(model)
    assert (
        "holds no model.safetensors, and no model.safetensors.index.json. Weights in other formats can run code" in text
    )
    assert "save_pretrained" in text


@pytest.mark.parametrize("name", ["owner/na--me", "owner/name.git"])
def test_hub_ids_that_cannot_be(name: str) -> None:
    assert "as a hub id it cannot be fetched" in error_of(name)


def test_identity_is_that_of_the_content(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "config.json", (1, 1))
    (tmp_path / "copy" / ".cache").mkdir()
    copied = locate_model(str(tmp_path / "copy"))
    assert copied.identity == locate_model(str(model)).identity


def change_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: change_byte(folder / "model.safetensors", 0),
        lambda folder: change_byte(folder / "model.safetensors", 517),
        lambda folder: change_byte(folder / "model.safetensors", -1),
        lambda folder: (folder / "config.json").write_text("{ }"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "chat_template.jinja").write_text("x"),
        lambda folder: (folder / "modeling_own.py").write_text("x"),
        lambda folder: (folder / "own.words").write_text("x"),
    ],
)
def test_identity_changes_with_any_content(model: Path, change: Callable[[Path], object]) -> None:
    before = locate_model(str(model)).identity
    change(model)
    assert locate_model(str(model)).identity != before


def test_identity_of_very_large_files_is_taken_from_samples(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if 32 MB were 512 bytes and 1 MB were 32: the file's 1024 bytes are hashed at 0-31, 992-1023, and 2 bytes at
    # each of 64, 128 ... 960. A change of a single weight between them is not seen; a trained model differs everywhere.
    monkeypatch.setattr(files, "_WHOLE_FILE_BYTES", 512)
    monkeypatch.setattr(files, "_EDGE_BYTES", 32)
    file = model / "model.safetensors"
    assert file.stat().st_size == 1024
    before = locate_model(str(model)).identity
    tried = [0, 31, 32, 63, 64, 65, 66, 127, 128, 130, 512, 513, 514, 960, 961, 962, 991, 992, 1023]
    seen = []
    for position in tried:
        change_byte(file, position)
        if locate_model(str(model)).identity != before:
            seen.append(position)
        change_byte(file, position)
    assert seen == [0, 31, 64, 65, 128, 512, 513, 960, 961, 992, 1023]
    file.write_bytes(file.read_bytes()[:-1])
    assert locate_model(str(model)).identity != before


@pytest.fixture
def tokenizer(tiny_models: dict[str, Pair], tmp_path: Path) -> Path:
    """A tokenizer's files as transformers writes them."""
    folder = tmp_path / "saved"
    AutoTokenizer.from_pretrained(tiny_models["llama"][0]).save_pretrained(folder)
    return folder


def test_tokenizers_saved_anew_are_equal(tokenizer: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(again)
    (again / "tokenizer.json").write_text(json.dumps(json.loads((again / "tokenizer.json").read_text()), indent=7))
    assert tokenizer_identity(again) == tokenizer_identity(tokenizer)
    require_same_tokenizer(tokenizer, again, ("a", "b"))


def test_copied_files_are_equal_whatever_they_say(tokenizer: Path, tmp_path: Path) -> None:
    (tokenizer / "tokenizer.json").write_text("{")
    shutil.copytree(tokenizer, tmp_path / "copied")
    require_same_tokenizer(tokenizer, tmp_path / "copied", ("a", "b"))
    (tmp_path / "copied" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        require_same_tokenizer(tokenizer, tmp_path / "copied", ("a", "b"))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def as_older_library(folder: Path) -> None:
    """Write what older libraries wrote: joined merges, no options that are off, the template in the config."""
    template = folder / "chat_template.jinja"

    def older(content: Any) -> None:
        content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
        content["padding"] = {"strategy": "BatchLongest"}
        for name in ("ignore_merges", "byte_fallback", "fuse_unk", "dropout"):
            content["model"].pop(name, None)

    edit(folder / "tokenizer.json", older)
    edit(
        folder / "tokenizer_config.json",
        lambda content: content.update(eos_token={"content": content["eos_token"]}, chat_template=template.read_text()),
    )
    template.unlink()


def test_tokenizers_of_older_libraries_are_equal(tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer, tmp_path / "older")
    as_older_library(tmp_path / "older")
    assert tokenizer_identity(tmp_path / "older") == tokenizer_identity(tokenizer)
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": json.loads(json.dumps("y"))}]
    edit(tmp_path / "older" / "tokenizer_config.json", lambda content: content.update(chat_template=named))
    (tokenizer / "chat_template.jinja").write_text("y")
    assert tokenizer_identity(tmp_path / "older") == tokenizer_identity(tokenizer)


@pytest.mark.parametrize(
    ("file", "change", "part"),
    [
        ("tokenizer.json", lambda content: content["model"]["vocab"].update(zzz=383), "tokenizer"),
        ("tokenizer.json", lambda content: content["model"]["merges"].reverse(), "tokenizer"),
        ("tokenizer.json", lambda content: content["added_tokens"][0].update(content="<bos>"), "tokenizer"),
        ("tokenizer.json", lambda content: content.update(normalizer={"type": "Lowercase"}), "tokenizer"),
        ("tokenizer_config.json", lambda content: content.update(eos_token="<|end|>"), "end-of-sequence token"),
        ("tokenizer_config.json", lambda content: content.update(bos_token="<|end|>"), "beginning-of-sequence token"),
        ("chat_template.jinja", None, "chat template"),
    ],
)
def test_what_differs_is_named(
    tokenizer: Path, tmp_path: Path, file: str, change: Callable[[Any], None] | None, part: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tokenizer, other)
    if change is None:
        (other / file).write_text((other / file).read_text() + " ")
    else:
        edit(other / file, change)
    with pytest.raises(ModelError) as caught:
        require_same_tokenizer(tokenizer, other, ("pi_0", "pi_I"))
    assert str(caught.value).startswith(f"The models 'pi_0' and 'pi_I' differ in: {part}. The implicit reward compares")
    assert "copy the tokenizer files and chat_template.jinja of one to the other" in str(caught.value)


def test_all_that_differs_is_named(tokenizer: Path, tmp_path: Path) -> None:
    every = "differ in: tokenizer, end-of-sequence token, beginning-of-sequence token, chat template"
    with pytest.raises(ModelError, match=every):
        require_same_tokenizer(tokenizer, tmp_path / "nothing", ("a", "b"))


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt", "own.tiktoken", "added_tokens.json"])
def test_every_file_that_an_older_tokenizer_reads_counts(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"{}")
    before = tokenizer_identity(tmp_path)
    (tmp_path / name).write_bytes(b"{ }")
    assert tokenizer_identity(tmp_path)["tokenizer"] != before["tokenizer"]


def test_a_tokenizer_with_code_of_its_own_may_read_any_file(tokenizer: Path, tmp_path: Path) -> None:
    edit(
        tokenizer / "tokenizer_config.json", lambda content: content.update(auto_map={"AutoTokenizer": ["own.A", None]})
    )
    for name in ("own.words", "own.py"):
        (tokenizer / name).write_text("x")
        other = Path(shutil.copytree(tokenizer, tmp_path / f"other-{name}"))
        (other / name).write_text("y")
        with pytest.raises(ModelError, match="differ in: tokenizer"):
            require_same_tokenizer(tokenizer, other, ("a", "b"))
    (other / "own.py").write_text("x")
    (other / "generation_config.json").write_text("of the model")
    require_same_tokenizer(tokenizer, other, ("a", "b"))


def test_special_tokens_may_be_named_in_a_file_of_their_own(tokenizer: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tokenizer, tmp_path / "other"))
    edit(other / "tokenizer_config.json", lambda content: content.pop("eos_token"))
    with pytest.raises(ModelError, match="end-of-sequence"):
        require_same_tokenizer(tokenizer, other, ("a", "b"))
    (other / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|eos|>"}}))
    require_same_tokenizer(tokenizer, other, ("a", "b"))


def test_where_converted_models_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSPREF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "crosspref"
    monkeypatch.setenv("CROSSPREF_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
