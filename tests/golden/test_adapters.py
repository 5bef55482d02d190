"""Models that are adapters over a base: the same numbers as their merged weights, and one base in memory."""

import gc
import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, SHAPE, make_adapter, make_model
from tiny_engines import KINDS, NATS, RESOURCES, Models, change_json, make_sampler
from tiny_engines import make_scorer as make_any_scorer
from transformers import LlamaConfig

from crosspref.data.records import Response
from crosspref.engines import EngineSettings
from crosspref.engines.transformers.adapters import load_files, load_views
from crosspref.engines.transformers.models import Loading
from crosspref.engines.transformers.scorer import ReleasedScorer, TransformersScorer
from crosspref.errors import ModelError
from crosspref.models.locate import locate_model
from crosspref.recipe.sections import RewardSettings

QUESTION = "¿Por qué el cielo es azul? " * 3
ROWS = [[(31 * row + 17 * column * column) % 378 + 6 for column in range(7 * row + 1)] for row in range(5)]

Four = tuple[Path, Path, Path, Path]


def merge_by_hand(base: Path, adapter: Path, directory: Path) -> Path:
    """Write W + alpha / r B A, without peft."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights, low_rank = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in low_rank if "lora_A" in name]:
        product = low_rank[name.replace("lora_A", "lora_B")].double() @ low_rank[name].double()
        target = name.removeprefix("base_model.model.").replace(".lora_A", "")
        weights[target] = (weights[target].double() + config["lora_alpha"] / config["r"] * product).float()
    shutil.copytree(base, directory)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def four(tiny_models: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Four]:
    """Two adapters of different ranks over pi_I, and both merged by hand, of every architecture."""
    found = {}
    for kind in KINDS:
        root, base = tmp_path_factory.mktemp(kind), tiny_models[kind][0]
        adapters = [make_adapter(base, root / f"adapter-{rank}", seed=rank, rank=rank) for rank in (4, 2)]
        merged = [merge_by_hand(base, adapter, root / f"merged-{adapter.name}") for adapter in adapters]
        found[kind] = (*adapters, *merged)
    return found


def make_scorer(policy: Path, reference: Path | None) -> TransformersScorer:
    return make_any_scorer(policy, reference, batch_tokens=128)


def score(scorer: TransformersScorer) -> list[float]:
    """Return the policy's and the reference's values, in nats, of two prompts in turn."""
    found = []
    for instruction in (QUESTION, "Hi!"):
        for row in scorer.logprobs(scorer.tokenizer.prompt_ids(instruction), ROWS):
            found += [row.policy, row.reference or 0.0]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_merged_weights(kind: str, four: dict[str, Four], tiny_models: Models) -> None:
    base, (first, second, merged_first, merged_second) = tiny_models[kind][0], four[kind]
    for models, merged in (
        ((first, base), (merged_first, base)),
        ((base, first), (base, merged_first)),
        ((first, second), (merged_first, merged_second)),
        ((first, None), (merged_first, None)),
    ):
        scorer, expected = make_scorer(*models), score(make_scorer(*merged))
        assert scorer.policy.packed
        assert models[1] is None or scorer.reference.packed
        assert score(scorer) == pytest.approx(expected, abs=NATS)
        for part in filter(None, (scorer.policy, scorer.reference)):
            part.packed = part.tiled = False  # the model's own forward pass, which is without tiles and caches
        assert score(scorer) == pytest.approx(expected, abs=NATS)
    policy, reference = expected[::2], score(make_scorer(base, None))[::2]
    assert statistics.median(abs(one - other) for one, other in zip(policy, reference, strict=True)) > 1000 * NATS


@pytest.mark.parametrize("with_base", [False, True])
def test_an_adapter_of_the_output_layer_counts(
    tiny_models: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture, with_base: bool
) -> None:
    base, folder = tiny_models["llama"][0], tmp_path / "adapter"
    adapter = make_adapter(base, folder, size=0.003, modules=["lm_head", "q_proj"], with_base=with_base)
    assert any("base_layer" in key for key in load_file(folder / "adapter_model.safetensors")) == with_base
    merged = merge_by_hand(base, adapter, tmp_path / "merged")
    scorer = make_scorer(adapter, base)
    assert "an adapter changes its output layer" in caplog.text
    assert (scorer.policy.tiled, scorer.reference.packed) == (False, True)
    assert score(scorer) == pytest.approx(score(make_scorer(merged, base)), abs=NATS)
    if with_base:
        weights = load_file(folder / "adapter_model.safetensors")
        changed = {key: weight + 1 if "base_layer" in key else weight for key, weight in weights.items()}
        save_file(changed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match="is not one of its base"):
            make_scorer(adapter, base)


def embeddings() -> set[int]:
    """Return where the input embeddings of all living models lie in memory."""
    gc.collect()
    alive = [thing for thing in gc.get_objects() if isinstance(thing, torch.nn.Embedding)]
    return {module.weight.untyped_storage().data_ptr() for module in alive}


@pytest.mark.slow
def test_models_over_one_base_hold_it_once(four: dict[str, Four], tiny_models: Models) -> None:
    base, (first, second, merged, _) = tiny_models["llama"][0], four["llama"]
    for policy, reference, expected in ((first, base, 1), (base, first, 1), (first, second, 1), (merged, base, 2)):
        before = embeddings()
        scorer = make_scorer(policy, reference)
        assert len(embeddings() - before) == expected
        parts = (scorer.policy.model, scorer.reference.model)
        held = {
            parameter.untyped_storage().data_ptr(): name
            for part in parts
            for name, parameter in part.named_parameters()
        }
        whole = len(load_file(base / "model.safetensors"))
        assert sum("lora_" not in name for name in held.values()) == expected * whole
        scorer.close()


def test_a_base_that_was_copied_is_another(four: dict[str, Four], tiny_models: Models, tmp_path: Path) -> None:
    """It gives the same numbers, from two models in memory."""
    copied = shutil.copytree(tiny_models["llama"][0], tmp_path / "copy")
    scorer = make_scorer(four["llama"][0], copied)
    assert scorer.policy.model is not scorer.reference.model
    assert score(scorer) == pytest.approx(score(make_scorer(four["llama"][0], tiny_models["llama"][0])), abs=NATS)


def test_the_released_counting_reads_adapters(four: dict[str, Four], tiny_models: Models) -> None:
    base, (adapter, _, merged, _) = tiny_models["qwen"][0], four["qwen"]
    responses = [Response("p", "es", index, text, None, "stop", None) for index, text in enumerate(("Sí.", "No, no."))]
    found = []
    for policy in (adapter, merged):
        settings = EngineSettings(reward=RewardSettings(counting="znlp", beta=1.0), resources=RESOURCES)
        models = (locate_model(str(policy)), locate_model(str(base)))
        [rows] = ReleasedScorer(settings, *models).score_each([(QUESTION, responses)])
        found.append([value for row in rows for value in (row.policy, row.reference)])
    assert found[0] == pytest.approx(found[1], abs=NATS)


def test_samples_are_those_of_merged_weights(four: dict[str, Four]) -> None:
    adapter, _, merged, _ = four["llama"]
    requests = [(QUESTION, [1, 2, 3]), ("Hi!", [4])]
    samplers = [make_sampler(path, max_new_tokens=12) for path in (adapter, merged)]
    assert not [name for name, _ in samplers[0].model.named_parameters() if "lora_" in name]
    answers = [sampler.sample(requests, lambda *_: None) for sampler in samplers]
    assert answers[0] == answers[1]


def test_merging_is_done_in_float32(four: dict[str, Four]) -> None:
    adapter, _, merged, _ = four["gemma"]
    found = load_files(locate_model(str(adapter)), Loading(dtype=torch.bfloat16)).state_dict()
    for name, weight in load_file(merged / "model.safetensors").items():
        assert found[name].dtype is torch.bfloat16
        # Float32 sums may fall on the other side of where bfloat16 rounds, but rarely, and by one step.
        assert float((found[name] != weight.to(torch.bfloat16)).float().mean()) < 1e-3, name


def test_adapters_of_another_model(four: dict[str, Four], tiny_models: Models, tmp_path: Path) -> None:
    def load(adapter: Path, base: Path) -> None:
        change_json(adapter / "adapter_config.json", base_model_name_or_path=str(base))
        load_files(locate_model(str(adapter)), Loading())

    base = tiny_models["llama"][0]
    adapter = Path(shutil.copytree(four["llama"][0], tmp_path / "adapter"))
    weights = load_file(adapter / "adapter_model.safetensors")
    name = min(weights)
    save_file({key: weight for key, weight in weights.items() if key != name}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=rf"lacks 1, such as {name}\. Name the base it was trained on"):
        load(adapter, base)
    save_file({**weights, name: weights[name][:, :-1].contiguous()}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"The adapter in .* cannot be loaded: .*size mismatch"):
        load(adapter, base)
    save_file({**weights, f"{name}.more": weights[name].clone()}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="it has 1 weights that have no place there and lacks 0"):
        load(adapter, base)
    (adapter / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match=r"The adapter in .* cannot be loaded: .*SafetensorError"):
        load(adapter, base)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_an_adapter_on_one_of_two_tied_layers_is_refused(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged it would change both layers, and apart only one of them: two models by one name."""
    tied = LlamaConfig(vocab_size=384, tie_word_embeddings=True, **SHAPE)
    monkeypatch.setitem(CONFIGS, "tied", lambda _: tied)
    base = make_model(tmp_path / "base", "tied")
    adapter = locate_model(str(make_adapter(base, tmp_path / "adapter", modules=[module], with_base=False)))
    for load in (lambda: load_files(adapter, Loading()), lambda: load_views([adapter], Loading())):
        with pytest.raises(ModelError, match="which are one weight in its base"):
            load()
    other = locate_model(str(make_adapter(base, tmp_path / "other", modules=["q_proj"])))
    load_files(other, Loading())
