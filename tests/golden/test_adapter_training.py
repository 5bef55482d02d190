"""Policies that are trained and stored as adapters: what they are worth, how they go on, and what is held in memory."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from safetensors.torch import load_file
from tiny import CONFIGS, SHAPE, make_adapter, make_model
from training import LORA, PAIRS, Models, make_trainer, train, train_until
from transformers import LlamaConfig

from crosspref.engines.training.trainer import TrlTrainer
from crosspref.engines.transformers import adapters
from crosspref.engines.transformers.adapters import load_files
from crosspref.engines.transformers.models import Loading
from crosspref.errors import ModelError
from crosspref.models.locate import locate_model

pytestmark = pytest.mark.slow

SAVED = LORA.model_copy(update={"save": "adapter"})
WHOLE_BATCH = {"batch_size": 16, "micro_batch_size": 8}


@pytest.fixture(scope="module")
def adapter(tiny_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of the rank of LORA, over pi_0."""
    return make_adapter(tiny_models["llama"][1], tmp_path_factory.mktemp("start") / "adapter", rank=4, size=0.06)


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_files(locate_model(str(directory)), Loading()).state_dict()


def mean_logprobs(directory: Path, tokenizer: Path) -> torch.Tensor:
    """Return the mean log-probability of the chosen and of the rejected responses, (2,), nats."""
    model = load_files(locate_model(str(directory)), Loading()).requires_grad_(False)
    rows = [
        [naive.sequence_logprob(model, naive.prompt_ids(tokenizer, pair.prompt[0]["content"]), ids) for ids in both]
        for pair in PAIRS
        for both in [(pair.chosen_token_ids, pair.rejected_token_ids)]
    ]
    return torch.tensor(rows).mean(0)


def log_ratios(entry: dict[str, Any]) -> list[float]:
    return [entry["chosen_log_ratio"], entry["rejected_log_ratio"]]


def test_a_stored_adapter_is_worth_the_merged_weights(tiny_models: Models, tmp_path: Path) -> None:
    base = tiny_models["llama"][1]
    logs = [
        train(make_trainer(base, lora=lora, learning_rate=1e-2, epochs=2, **WHOLE_BATCH), tmp_path / lora.save)["log"]
        for lora in (LORA, SAVED)
    ]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]
    stored = tmp_path / "adapter" / "out"
    assert sorted(file.name for file in stored.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert locate_model(str(stored)).directory == base
    merged, found, start = weights_of(tmp_path / "merged" / "out"), weights_of(stored), weights_of(base)
    for name, weight in merged.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)
    assert not torch.equal(merged["model.layers.0.mlp.up_proj.weight"], start["model.layers.0.mlp.up_proj.weight"])


def test_training_goes_on_with_the_policys_own_adapter(tiny_models: Models, adapter: Path, tmp_path: Path) -> None:
    """Against itself as it was, which is a frozen adapter beside it: log-ratios are 0, then those of the first step."""
    base, changes = tiny_models["llama"][1], {"lora": SAVED, "learning_rate": 3e-3, **WHOLE_BATCH}
    once = train(make_trainer(adapter, **changes), tmp_path / "once")
    twice = train(make_trainer(adapter, epochs=2, **changes), tmp_path / "twice")
    assert log_ratios(once["log"][0]) == pytest.approx([0, 0], abs=1e-3)
    start, after = (mean_logprobs(path, base) for path in (adapter, tmp_path / "once" / "out"))
    expected = (after - start).tolist()
    assert min(map(abs, expected)) > 0.05
    assert log_ratios(twice["log"][1]) == pytest.approx(expected, abs=1e-3)
    stored = tmp_path / "once" / "out"
    assert (
        load_file(stored / "adapter_model.safetensors").keys()
        == load_file(adapter / "adapter_model.safetensors").keys()
    )
    assert locate_model(str(stored)).directory == base


@pytest.mark.parametrize("kind", ["base", "other adapter", "other model"])
def test_another_training_reference(kind: str, tiny_models: Models, adapter: Path, tmp_path: Path) -> None:
    base = tiny_models["llama"][1]
    reference = {"base": base, "other model": tiny_models["llama"][0], "other adapter": tmp_path / "other"}[kind]
    if kind == "other adapter":
        make_adapter(base, reference, seed=5, rank=2)
    trainer = make_trainer(adapter, lora=SAVED, reference=reference, **WHOLE_BATCH)
    [entry] = train(trainer, tmp_path)["log"]
    expected = (mean_logprobs(adapter, base) - mean_logprobs(reference, base)).tolist()
    assert max(map(abs, expected)) > 0.05
    assert log_ratios(entry) == pytest.approx(expected, abs=1e-3)


def test_one_base_is_held(tiny_models: Models, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, loaded, held = tiny_models["llama"][1], [], []
    original, build = adapters.load_model, TrlTrainer._trainer

    def look(self: TrlTrainer, *arguments: Any) -> Any:
        trainer = build(self, *arguments)
        held.append((list(trainer.model.peft_config), trainer.ref_model))
        return trainer

    monkeypatch.setattr(adapters, "load_model", lambda *given: loaded.append(given[0]) or original(*given))
    monkeypatch.setattr(TrlTrainer, "_trainer", look)
    other = make_adapter(base, tmp_path / "other", rank=2)
    for number, (start, method, reference, names) in enumerate(
        [
            (adapter, "dpo", None, ["default", "reference"]),
            (adapter, "kto", base, ["default"]),
            (adapter, "dpo", other, ["default", "reference"]),
            (adapter, "simpo", None, ["default"]),
            (base, "dpo", None, ["default"]),
        ]
    ):
        trainer = make_trainer(start, lora=SAVED, method=method, reference=reference)
        train(trainer, tmp_path / str(number), PAIRS[:2])
        assert (loaded, held) == ([base], [(names, None)])
        loaded.clear()
        held.clear()


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_killed_training_goes_on_to_the_same_adapter(method: str, adapter: Path, tmp_path: Path) -> None:
    changes = {
        "lora": SAVED,
        "epochs": 3,
        "checkpoint_every": 2,
        "method": method,
        "learning_rate": 3e-3,
        **WHOLE_BATCH,
    }
    whole = train(make_trainer(adapter, **changes), tmp_path / "whole")
    assert whole["steps"] > 2
    folder = tmp_path / "killed"
    train_until(make_trainer(adapter, **changes), folder, 3)
    resumed = train(make_trainer(adapter, **changes), folder)
    assert [entry["loss"] for entry in resumed["log"]] == pytest.approx([entry["loss"] for entry in whole["log"]])
    expected = load_file(tmp_path / "whole" / "out" / "adapter_model.safetensors")
    for name, weight in load_file(folder / "out" / "adapter_model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("lora", [None, LORA.model_copy(update={"rank": 2})], ids=["full", "merged"])
def test_other_training_starts_from_the_merged_adapter(
    lora: Any, tiny_models: Models, adapter: Path, tmp_path: Path
) -> None:
    """With all weights, or with a new adapter of any rank; what is stored is whole."""
    base = tiny_models["llama"][1]
    [entry] = train(make_trainer(adapter, lora=lora, **WHOLE_BATCH), tmp_path / "own")["log"]
    assert log_ratios(entry) == pytest.approx([0, 0], abs=1e-3)
    [entry] = train(make_trainer(adapter, lora=lora, reference=base, **WHOLE_BATCH), tmp_path / "base")["log"]
    expected = (mean_logprobs(adapter, base) - mean_logprobs(base, base)).tolist()
    assert log_ratios(entry) == pytest.approx(expected, abs=1e-3)
    stored = locate_model(str(tmp_path / "own" / "out"))
    assert stored.adapter is None
    assert (stored.directory / "tokenizer.json").is_file()
    start, found = weights_of(adapter), weights_of(stored.directory)
    change = max(float((found[name] - weight).abs().max()) for name, weight in start.items())
    assert 1e-4 < change < 2e-2  # a few steps from the merged weights, and not from the base's


def test_settings_of_another_adapter_are_refused(adapter: Path, tmp_path: Path) -> None:
    for changes, said in (
        ({"rank": 8}, r"has rank 4, but lora\.rank is 8\. .* set lora\.rank to 4, or lora\.save: merged"),
        ({"alpha": 16}, r"has alpha 8, but lora\.alpha is 16"),
        ({"target_modules": ".*q_proj"}, r"in other modules than lora\.target_modules asks for \(\.\*q_proj\)"),
    ):
        with pytest.raises(ModelError, match=said):
            train(make_trainer(adapter, lora=SAVED.model_copy(update=changes)), tmp_path)
    train(make_trainer(adapter, lora=SAVED), tmp_path, PAIRS[:2])


def test_bfloat16_training_and_files(adapter: Path, tmp_path: Path) -> None:
    """The adapters are float32 over a base in bfloat16, and policy and reference still are one model at first."""
    trainer = make_trainer(adapter, dtype="bfloat16", lora=SAVED, save_dtype="bfloat16", **WHOLE_BATCH)
    [entry] = train(trainer, tmp_path)["log"]
    assert log_ratios(entry) == pytest.approx([0, 0], abs=0.1)
    stored, start = (load_file(path / "adapter_model.safetensors") for path in (tmp_path / "out", adapter))
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert max(float((stored[name].float() - weight).abs().max()) for name, weight in start.items()) > 5e-4


def test_how_a_trained_adapter_names_its_base(tiny_models: Models, adapter: Path, tmp_path: Path) -> None:
    """By the recipe's name, or inside a run by the way from one policy to the other."""

    def stored(name: str, start: Path) -> str:
        output = tmp_path / "run" / name / "policy"
        files = locate_model(str(start))
        found = adapters.name_of_base(files, output)
        assert found[1] is None
        return found[0]

    base = tiny_models["llama"][1]
    assert stored("iteration_1", base) == str(base)
    assert stored("iteration_1", adapter) == str(base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    moved = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    shutil.copytree(base, tmp_path / "base")
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))
    assert stored("iteration_1", moved) == str(tmp_path / "base")  # from outside a run
    output = tmp_path / "run" / "iteration_1" / "policy"
    for start in (locate_model(str(moved)), locate_model(str(tmp_path / "base"))):
        assert adapters.name_of_base(replace(start, name="pi_0"), output) == ("../../../base", None)
    hub = replace(locate_model(str(base)), name="owner/base@v2")
    assert adapters.name_of_base(hub, output) == ("owner/base", "v2")
    package = replace(hub, name="package:some_weights/tiny.gguf")
    assert adapters.name_of_base(package, output) == ("package:some_weights/tiny.gguf", None)


def test_modules_that_a_model_has_not_are_named(tiny_models: Models, tmp_path: Path) -> None:
    lora = LORA.model_copy(update={"target_modules": ["nothing"]})
    trainer = make_trainer(tiny_models["llama"][1], lora=lora)
    with pytest.raises(ModelError, match="'nothing'"):
        train(trainer, tmp_path)


def test_an_adapter_on_a_tied_embedding_is_refused_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = LlamaConfig(vocab_size=384, tie_word_embeddings=True, **SHAPE)
    monkeypatch.setitem(CONFIGS, "tied", lambda _: tied)
    start = make_model(tmp_path / "start", "tied")
    lora = LORA.model_copy(update={"target_modules": ".*embed_tokens"})
    with pytest.raises(ModelError, match="which are one weight in its base"):
        train(make_trainer(start, lora=lora), tmp_path)
