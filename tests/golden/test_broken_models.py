"""Models that cannot be used: weights that are not numbers, and files that libraries cannot read."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_engines import Models, copy_with, copy_with_weights, make_sampler, make_scorer

from crosspref.api import ImplicitReward
from crosspref.engines.packed.decoding import can_decode
from crosspref.engines.transformers import sampler as sampling
from crosspref.engines.transformers.faults import find_device, reading
from crosspref.engines.transformers.models import Loading, load_model, load_tokenizer
from crosspref.engines.transformers.sampler import draw
from crosspref.engines.transformers.scorer import ModelScorer
from crosspref.errors import MissingLibraryError, ModelError, RecipeError
from crosspref.maths.reward import finite
from crosspref.recipe.sections import RewardSettings

NOT_FINITE = "not finite"


@pytest.fixture(scope="module")
def nan_model(tiny_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def break_one(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.self_attn.v_proj.weight"][3, 5] = math.nan

    return copy_with_weights(tiny_models["llama"][1], tmp_path_factory.mktemp("nan") / "model", break_one)


@pytest.mark.parametrize(("tokens", "bad"), [(7, math.nan), (7, math.inf), (slice(None), -math.inf)])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_nothing_is_drawn_from_logits_that_are_not_finite(tokens: int | slice, bad: float, top_p: float) -> None:
    logits = torch.zeros(2, 300)
    draw(logits, np.full(2, 0.5), 1.0, top_p)
    logits[1, tokens] = bad
    with pytest.raises(ModelError, match=NOT_FINITE):
        draw(logits, np.full(2, 0.5), 1.0, top_p)


def test_a_model_of_nan_cannot_be_loaded_to_sample_or_to_score(nan_model: Path, tiny_models: Models) -> None:
    with pytest.raises(ModelError, match=NOT_FINITE):
        make_sampler(nan_model)
    for pair in ((nan_model, tiny_models["llama"][0]), (tiny_models["llama"][0], nan_model)):
        with pytest.raises(ModelError, match=NOT_FINITE):
            make_scorer(*pair)
    with pytest.raises(ModelError, match=NOT_FINITE):
        ImplicitReward(str(nan_model), str(tiny_models["llama"][0]), device="cpu", dtype="float32")


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("decodes", [True, False])
def test_numbers_that_overflow_later_stop_sampling(
    temperature: float, decodes: bool, tiny_models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first tests go well, as where only long prompts overflow; afterwards a weight breaks."""
    monkeypatch.setattr(sampling, "can_decode", lambda model: can_decode(model) and decodes)
    sampler = make_sampler(tiny_models["llama"][1], max_new_tokens=4)
    sampler.sample([("Hi!", [1, 2])], lambda *_: None, temperature)
    sampler.model.lm_head.weight.data[:, 0] = math.nan
    with pytest.raises(ModelError, match=NOT_FINITE):
        sampler.sample([("Hi!", [1, 2])], lambda *_: None, temperature)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("tiled", "packed"), [(True, True), (True, False), (False, False)])
def test_numbers_that_overflow_later_stop_scoring(bad: float, tiled: bool, packed: bool, tiny_models: Models) -> None:
    """Beside an infinite logit the others have the log-probability -inf, as tokens that a model rules out."""
    scorer = ModelScorer(load_model(tiny_models["llama"][1], Loading()), RewardSettings())
    scorer.tiled, scorer.packed = tiled, packed
    head = scorer.model.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)))
    assert math.isfinite(scorer.logprobs([3, 4], [[5, 6]])[0])
    head.bias.data[9] = bad
    with pytest.raises(ModelError, match=NOT_FINITE):
        scorer.logprobs([3, 4], [[5, 6]])


def test_a_token_that_a_model_rules_out_has_no_reward(tiny_models: Models) -> None:
    """Its log-probability is -inf, which is no fault, but compares with nothing."""
    assert [finite(value) for value in (-math.inf, math.inf, math.nan, None, 0.5)] == [None, None, None, None, 0.5]
    initial, policy = map(str, tiny_models["llama"])
    reward = ImplicitReward(policy, initial, device="cpu", dtype="float32")
    head = reward._scorer.reference.model.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)))
    head.bias.data[9] = -math.inf
    ruled_out, other = reward.score("Hi!", [[9, 2], [8, 2]], language="es")
    assert (ruled_out.reference_logprob, ruled_out.reward) == (-math.inf, None)
    assert other.reward is not None


QUANTISED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
}


def unreadable(kind: str, source: Path, target: Path) -> Path:
    """Write a model that a library refuses."""
    match kind:
        case "gptq" | "awq":
            return copy_with(source, target, "config.json", quantization_config=QUANTISED[kind])
        case "flash attention":
            return copy_with(source, target, "config.json", _attn_implementation="flash_attention_2")
        case "architecture":
            return copy_with(source, target, "config.json", model_type="of_tomorrow")
        case "layers":
            return copy_with(source, target, "config.json", num_hidden_layers="two")
        case "code":
            maps = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
            copy_with(source, target, "config.json", model_type="own", auto_map=maps)
            (target / "own.py").write_text("import not_installed_here\nConfig = Model = 1 / 0\n", encoding="utf-8")
        case "cut off":
            shutil.copytree(source, target)
            weights = target / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-64])
        case "shape":
            copy_with_weights(source, target, lambda weights: weights.update({"model.norm.weight": torch.ones(5)}))
    return target


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("gptq", "optimum"),
        ("awq", "gptqmodel"),
        ("flash attention", "FlashAttention2"),
        ("architecture", "of_tomorrow"),
        ("layers", "num_hidden_layers"),
        ("code", "not_installed_here"),
        ("cut off", "SafetensorError"),
        ("shape", r"model\.norm\.weight has the shape \(5,\) instead of \(32,\)"),
    ],
)
def test_a_model_that_a_library_refuses(
    kind: str, word: str, tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    broken = unreadable(kind, tiny_models["llama"][0], tmp_path / "broken")
    with pytest.raises(ModelError, match=word) as caught:
        load_model(broken, Loading(trust_remote_code=True))
    assert str(broken) in str(caught.value)


def test_code_that_nobody_trusts_is_not_run(tiny_models: Models, tmp_path: Path) -> None:
    broken = unreadable("code", tiny_models["llama"][0], tmp_path / "broken")
    with pytest.raises(ModelError, match="set trust_remote_code: true"):
        load_model(broken, Loading())


def test_a_tokenizer_that_its_library_cannot_read(tiny_models: Models, tmp_path: Path) -> None:
    """tokenizers raises a bare Exception."""
    broken = shutil.copytree(tiny_models["llama"][0], tmp_path / "broken")
    (broken / "tokenizer.json").write_text('{"model": {"type": "Future"}}', encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        load_tokenizer(broken)
    assert str(broken) in str(caught.value)


def test_a_library_that_an_extra_installs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingLibraryError) as caught, reading("The tokenizer", "somewhere"):
        raise ValueError("install SentencePiece to read it")
    assert caught.value.given[0] == "sentencepiece"


class PanicException(BaseException):
    """As a library in Rust raises it where it stumbles over its own mistake; it is no Exception."""


def test_a_panic_of_a_library_is_a_model_error_and_ctrl_c_is_not() -> None:
    with pytest.raises(ModelError, match="index out of bounds"), reading("The tokenizer", "somewhere"):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), reading("The tokenizer", "somewhere"):
        raise KeyboardInterrupt


def test_our_own_errors_stay_what_they_are() -> None:
    error = RecipeError("known", ("a.b",))
    with pytest.raises(RecipeError) as caught, reading("The tokenizer", "somewhere"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:99999999999999999999", "mps", "meta"])
def test_a_device_that_is_not_here(device: str) -> None:
    with pytest.raises(RecipeError, match=device) as caught:
        find_device(device)
    assert caught.value.keys == ("resources.device",)
