"""What lies beside the weights of a trained policy: the small files of its start, to the letter."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import make_adapter
from training import LORA, PAIRS, Models, make_trainer, train

from crosspref.models.files import kept_files
from crosspref.recipe.sections import LoraSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def start(tiny_models: Models, tmp_path: Path) -> Path:
    """A model as some are published: settings that transformers does not save, and files with names of their own."""
    folder = Path(shutil.copytree(tiny_models["llama"][1], tmp_path / "start"))
    generation = {"eos_token_id": [1, 2], "temperature": 0.7, "top_k": 9, "early_stopping": True, "pad_token_id": -1}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=5))
    config = json.loads((folder / "config.json").read_text())
    ids = {"pad_token_id": 7, "bos_token_id": 8, "eos_token_id": 9}
    (folder / "config.json").write_text(json.dumps({**config, **ids, "temperature": 0.3, "num_beams": 4}))
    (folder / "additional_chat_templates").mkdir()
    names = (
        "own.words",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "additional_chat_templates/tools.jinja",
    )
    for name in names:
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("Of the start.")
    return folder


def small(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept_files(folder)}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_all_small_files_are_those_of_the_start(lora: LoraSettings | None, start: Path, tmp_path: Path) -> None:
    changes = {"lora": lora, "checkpoint_every": 1, "epochs": 1}
    figures = train(make_trainer(start, **changes), tmp_path, PAIRS[:4])
    assert figures["steps"]
    out = tmp_path / "out"
    assert small(out) == small(start)
    assert len(small(out)) >= 8
    assert {path.name for path in out.iterdir()} == {
        *(path.name for path in start.iterdir() if path.name != "README.md"),
    }
    written, before = (json.loads((folder / "config.json").read_text()) for folder in (out, start))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert written[name] == before[name], name


def test_a_start_without_generation_settings_leaves_the_policy_without(start: Path, tmp_path: Path) -> None:
    (start / "generation_config.json").unlink()
    train(make_trainer(start), tmp_path, PAIRS[:4])
    assert not (tmp_path / "out" / "generation_config.json").exists()


def test_an_adapter_left_beside_the_start_is_not_applied_and_not_copied(
    start: Path, tiny_models: Models, tmp_path: Path
) -> None:
    train(make_trainer(start), tmp_path / "alone", PAIRS[:4])
    adapter = make_adapter(tiny_models["llama"][0], tmp_path / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, start)
    train(make_trainer(start), tmp_path / "beside", PAIRS[:4])
    alone, beside = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "out").glob("*") if path.is_file()}
        for name in ("alone", "beside")
    )
    assert beside == alone
