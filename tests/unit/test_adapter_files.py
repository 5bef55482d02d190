"""Finding models that are adapters over a base; nothing here loads weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from test_models import error_of

from crosspref.api import check_models
from crosspref.errors import ModelError, RecipeError
from crosspref.models.locate import locate_model, require_one_output, require_whole
from crosspref.recipe.files import make_recipe
from crosspref.recipe.sections import LoraSettings, TrainSettings
from crosspref.run.job import settings_of

TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}}
Write = Callable[..., Path]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "chat_template.jinja").write_text("template")
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, base: Any, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": base, **changes}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "adapter_model.safetensors").write_bytes(b"low rank")
        return folder

    return write


def test_an_adapter_is_a_model_over_its_base(base: Path, write: Write) -> None:
    adapter = write("adapter", str(base))
    found, alone = locate_model(str(adapter)), locate_model(str(base))
    assert (found.name, found.directory, found.gguf_file, found.adapter) == (str(adapter), base, None, adapter)
    assert found.base == alone.base
    assert (found.own, alone.own) == (adapter, base)
    assert alone.adapter is None
    assert found.identity != alone.identity


def test_the_base_may_be_a_gguf_file(tmp_path: Path, write: Write) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    found = locate_model(str(write("adapter", str(tmp_path / "small.gguf"))))
    assert (found.directory, found.gguf_file) == (tmp_path, "small.gguf")


def test_a_relative_base_lies_beside_the_adapter_so_both_may_move(base: Path, write: Write, tmp_path: Path) -> None:
    write("policies/adapter", "../../base")
    moved = tmp_path / "moved"
    moved.mkdir()
    before = locate_model(str(tmp_path / "policies" / "adapter"))
    for name in ("policies", "base"):
        shutil.move(tmp_path / name, moved / name)
    found = locate_model(str(moved / "policies" / "adapter"))
    assert found.directory == moved / "base"
    assert found.identity == before.identity


def test_the_identity_covers_base_weights_and_settings_but_no_place(base: Path, write: Write, tmp_path: Path) -> None:
    first = locate_model(str(write("first", str(base)))).identity
    elsewhere = Path(shutil.copytree(base, tmp_path / "elsewhere"))
    same = write("same", str(elsewhere))
    assert locate_model(str(same)).identity == first
    assert locate_model(str(write("louder", str(base), lora_alpha=16))).identity != first
    (same / "adapter_model.safetensors").write_bytes(b"LOW RANK")
    assert locate_model(str(same)).identity != first
    (same / "adapter_model.safetensors").write_bytes(b"low rank")
    (elsewhere / "model.safetensors").write_bytes(b"another base")
    assert locate_model(str(same)).identity != first


def test_a_base_that_is_not_there(write: Write, tmp_path: Path) -> None:
    adapter = write("adapter", str(tmp_path / "gone"))
    text = error_of(adapter)
    assert f"The adapter {str(adapter)!r} is made for the base model {str(tmp_path / 'gone')!r}" in text
    assert f"put its path or hub id into base_model_name_or_path in {adapter / 'adapter_config.json'}" in text
    assert "was not found: it is no existing path" in text


@pytest.mark.parametrize("named", [None, "", 7])
def test_an_adapter_that_names_no_base(write: Write, named: Any) -> None:
    assert "names no base model. Put its path or hub id into" in error_of(write("adapter", named))


def test_adapters_over_adapters_and_over_themselves(base: Path, write: Write) -> None:
    lower = write("lower", str(base))
    assert "which is an adapter itself" in error_of(write("upper", str(lower)))
    assert "which is an adapter itself" in error_of(write("own", "."))
    assert "which is an adapter itself" in error_of(write("sibling", "../upper"))


def test_only_lora_in_safetensors_is_read(base: Path, write: Write) -> None:
    assert "is of the kind 'PROMPT_TUNING'; only LORA" in error_of(write("p", str(base), peft_type="PROMPT_TUNING"))
    pickled = write("pickled", str(base))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert "holds no adapter_model.safetensors. Weights in other formats can run code" in error_of(pickled)


def test_whole_weights_beside_an_adapter_are_the_model(base: Path, write: Write) -> None:
    adapter = write("adapter", str(base))
    shutil.copytree(base, adapter, dirs_exist_ok=True)
    assert locate_model(str(adapter)).adapter is None


def test_a_tokenizer_of_its_own_must_be_the_bases(base: Path, write: Write) -> None:
    adapter = write("adapter", str(base))
    (adapter / "tokenizer.json").write_text(json.dumps(TOKENIZER, indent=1))
    assert locate_model(str(adapter)).adapter == adapter
    (adapter / "chat_template.jinja").write_text("another template")
    assert "has another chat template than its base" in error_of(adapter)
    (adapter / "chat_template.jinja").unlink()
    (adapter / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"b": 0, "a": 1}}}))
    assert "has another tokenizer than its base" in error_of(adapter)


def test_an_adapter_from_the_hub(base: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub cannot be had here: a function stands in for its download, as for other models from there."""
    adapter = write("0a1b2c", "owner/base", revision="v2")
    asked = []

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, "adapter_model.safetensors" in allow_patterns))
        return str({"owner/adapter": adapter, "owner/base": base}[repository])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = locate_model("owner/adapter", weights=False)
    assert asked == [
        *(("owner/adapter", None, False), ("owner/adapter", "0a1b2c", False)),
        *(("owner/base", "v2", False), ("owner/base", "base", False)),
    ]
    assert (found.directory, found.adapter) == (base, adapter)
    assert found.identity == locate_model("owner/adapter").identity


def test_what_is_read_whole_refuses_an_adapter(base: Path, write: Write) -> None:
    found = locate_model(str(write("adapter", str(base))))
    with pytest.raises(ModelError, match=r"The reward model .* is an adapter over .*merge it into its base"):
        require_one_output(found)
    require_whole(locate_model(str(base)), "reward model")


@pytest.mark.parametrize(("section", "role"), [("train", "policy"), ("align_english", "initial")])
def test_a_recipe_that_asks_for_another_adapter_than_its_model_has(
    base: Path, write: Write, section: str, role: str
) -> None:
    adapter = str(write("adapter", str(base)))
    models = {"initial": str(base), "policy": adapter} if role == "policy" else {"initial": adapter}
    stage_0 = {} if role == "policy" else {"align_english": {"preferences": "p"}}
    content: dict[str, Any] = {"models": models, "languages": ["en"], "prompts": {"source": "p"}, **stage_0}

    def check(**lora: Any) -> None:
        check_models(make_recipe({**content, section: {**content.get(section, {}), "lora": lora}}))

    check(rank=4, alpha=8, save="adapter")
    check(rank=16)
    with pytest.raises(ModelError, match=r"has rank 4, but lora\.rank is 16\."):
        check(alpha=8, save="adapter")
    with pytest.raises(ModelError, match=r"has alpha 8, but lora\.alpha is 32\.0\."):
        check(rank=4, save="adapter")
    check(rank=4, alpha=8, save="adapter", bits=4)
    with pytest.raises(ModelError, match=r"lora\.bits: 4"):  # an adapter is merged into whole weights
        check(bits=4)


def test_both_trainings_of_one_adapter_must_ask_for_the_same() -> None:
    content = {"models": {"initial": "base"}, "languages": ["en"], "prompts": {"source": "p"}}
    lora = {"rank": 4, "save": "adapter"}
    english = {"align_english": {"preferences": "p", "lora": lora}}
    make_recipe({**content, **english, "train": {"lora": lora}})
    make_recipe({**content, **english, "train": {"lora": {"rank": 8}}})
    with pytest.raises(RecipeError, match=r"align_english\.lora"):
        make_recipe({**content, **english, "train": {"lora": {**lora, "rank": 8}}})


def test_settings_that_are_off_leave_the_fingerprint_of_runs_that_were_begun_without_them() -> None:
    kept = {"rank": 4, "alpha": 32.0, "target_modules": "all-linear"}
    assert settings_of("train", TrainSettings(lora=LoraSettings(rank=4)))["train.lora"] == kept
    stored = settings_of("train", TrainSettings(lora=LoraSettings(rank=4, save="adapter")))["train.lora"]
    assert stored == {**kept, "save": "adapter"}
