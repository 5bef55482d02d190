"""Which path a model is scored by, that every path gives the same values, and what stops a scorer before it starts."""

import copy
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import naive
import peft
import pytest
import torch
from tiny_engines import KINDS, NATS, Models, make_scorer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CohereConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    Phi3Config,
    Qwen2_5_VLConfig,
)

from crosspref.engines.transformers import adapters
from crosspref.engines.transformers.adapters import POLICY, lora_config, require_untied
from crosspref.engines.transformers.models import Loading, load_model
from crosspref.engines.transformers.scorer import ModelScorer
from crosspref.errors import DataError, ModelError
from crosspref.recipe.sections import LoraSettings, RewardSettings

PROMPT = [0, *range(20, 50)]
RESPONSES = [[(31 * row + 17 * column * column) % 384 for column in range(5 * row + 1)] for row in range(9)]


def naive_values(model: Any) -> list[float]:
    with torch.no_grad():
        return [float(naive.sequence_logprob(model, PROMPT, response)) for response in RESPONSES]


def score_by_all_paths(scorer: ModelScorer) -> Iterator[tuple[str, list[float]]]:
    for packed, tiled in ((True, True), (False, True), (False, False)):
        scorer.packed, scorer.tiled = packed, tiled
        yield f"packed {packed}, tiled {tiled}", scorer.logprobs(PROMPT, RESPONSES)


@pytest.mark.parametrize("kind", KINDS)
def test_all_paths_give_the_naive_values(kind: str, tiny_models: Models, caplog: pytest.LogCaptureFixture) -> None:
    model = naive.load(tiny_models[kind][1])
    scorer = ModelScorer(model, RewardSettings(batch_tokens=64))
    assert scorer.packed
    assert not caplog.records
    expected = naive_values(model)
    for path, values in score_by_all_paths(scorer):
        assert values == pytest.approx(expected, abs=NATS), path
    scorer.packed = scorer.tiled = False
    assert scorer.logprobs(PROMPT, [[], RESPONSES[3], []]) == pytest.approx([0, expected[3], 0], abs=NATS)


def tiny(config: type, **settings: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 384}
    heads = {} if config is MambaConfig else {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(config(**{**shape, **heads, **settings}), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()


def test_a_model_that_also_sees_images_is_a_language_model_like_any_other(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    text = {**shape, "num_hidden_layers": 2, "vocab_size": 384, "rope_parameters": rotary}
    image = {"hidden_size": 16, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=image, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, Loading())
    assert ModelScorer(model, RewardSettings()).logprobs(PROMPT, RESPONSES) == pytest.approx(
        naive_values(model), abs=NATS
    )
    adapted = peft.get_peft_model(model, lora_config(LoraSettings()), adapter_name=POLICY)
    require_untied(adapted, "It")  # which the configuration of its text does not say


def test_more_tokens_than_a_model_has_positions_for_is_an_error() -> None:
    config = GPT2Config(vocab_size=64, n_positions=48, n_embd=16, n_layer=2, n_head=2)
    scorer = ModelScorer(GPT2LMHeadModel(config).eval(), RewardSettings())
    [value] = scorer.logprobs([1] * 20, [[2] * 28])
    assert value < 0
    with pytest.raises(DataError, match=r"50 tokens together.*48"):
        scorer.logprobs([1] * 20, [[2] * 30])


class BiasedHead(LlamaForCausalLM):
    """Its output layer has a bias, which a projection by the weight alone would leave out."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        torch.nn.init.normal_(self.lm_head.bias, std=2.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny(CohereConfig, logit_scale=0.2),
        lambda: tiny(GraniteConfig, logits_scaling=5.0),
        lambda: BiasedHead(tiny(LlamaConfig).config).eval(),
    ],
    ids=["multiplied", "divided", "bias"],
)
def test_output_layers_that_the_tiles_know(make: Callable[[], Any]) -> None:
    model = make()
    scorer = ModelScorer(model, RewardSettings())
    assert scorer.packed
    assert scorer.logprobs(PROMPT, RESPONSES) == pytest.approx(naive_values(model), abs=NATS)


class Deaf(LlamaForCausalLM):
    """Attends by itself, whatever its configuration says."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.config = copy.copy(config)


class LouderHead(LlamaForCausalLM):
    """Does something to its logits that no setting tells."""

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        output.logits = output.logits * 1.5
        return output


def forget(model: Any) -> Any:
    """Let a model take what it is not told of, and leave it out of account."""
    original = model.model.forward

    def forward(input_ids: Any, **_: Any) -> Any:
        return original(input_ids=input_ids, use_cache=False)

    model.model.forward = forward
    return model


@pytest.mark.parametrize(
    ("make", "tiled", "reason"),
    [
        (lambda: LouderHead(tiny(LlamaConfig).config).eval(), False, "its output layer does more than a projection"),
        (lambda: forget(tiny(LlamaConfig)), True, "a prompt cannot be shared by its responses ("),
        (lambda: tiny(MambaConfig), True, "a prompt cannot be shared by its responses ("),
        (lambda: Deaf(tiny(LlamaConfig).config).eval(), True, "a prompt cannot be shared by its responses ("),
    ],
    ids=["head", "forgetful", "mamba", "deaf"],
)
def test_other_models_fall_back_and_say_so(
    make: Callable[[], Any], tiled: bool, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make()
    with caplog.at_level(logging.WARNING, "crosspref"):
        scorer = ModelScorer(model, RewardSettings())
    assert (scorer.tiled, scorer.packed) == (tiled, False)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "is scored by its own full forward pass" in record.getMessage()
    assert reason in record.getMessage()
    assert scorer.logprobs(PROMPT, RESPONSES) == pytest.approx(naive_values(model), abs=NATS)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0},
    ],
    ids=lambda settings: settings["rope_type"],
)
def test_positions_that_depend_on_the_length_of_the_row(settings: dict[str, Any]) -> None:
    """Such models embed all positions in another way once a row is longer than this; no other row may cause that."""
    config = Phi3Config if settings["rope_type"] == "longrope" else LlamaConfig
    rope = {"rope_theta": 10000.0, "original_max_position_embeddings": 48, **settings}
    limit = {"longrope": 1024, "yarn": 192, "dynamic": 48}[settings["rope_type"]]
    model = tiny(config, max_position_embeddings=limit, original_max_position_embeddings=48, rope_parameters=rope)
    assert len(PROMPT) < 48 < len(PROMPT) + len(RESPONSES[-1])
    scorer = ModelScorer(model, RewardSettings(batch_tokens=10_000))
    together = scorer.logprobs(PROMPT, RESPONSES)
    assert [scorer.logprobs(PROMPT, [response])[0] for response in RESPONSES] == pytest.approx(together, abs=NATS)
    assert together == pytest.approx(naive_values(model), abs=NATS)
    assert scorer.logprobs(PROMPT, RESPONSES[:3]) == pytest.approx(together[:3], abs=NATS)
    # Nor may a longer row that was there before.
    assert scorer.logprobs(PROMPT, RESPONSES[::-1]) == pytest.approx(together[::-1], abs=NATS)


def test_models_that_read_a_prompt_differently_are_refused_before_they_are_loaded(
    tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial, aligned = tiny_models["llama"]
    other = shutil.copytree(aligned, tmp_path / "other")
    with (other / "chat_template.jinja").open("a") as template:
        template.write(" ")
    loaded: list[Path] = []
    monkeypatch.setattr(adapters, "load_model", lambda directory, *_: loaded.append(directory))
    with pytest.raises(ModelError) as caught:
        make_scorer(other, initial)
    assert "differ in: chat template." in str(caught.value)
    assert repr(str(other)) in str(caught.value)
    assert repr(str(initial)) in str(caught.value)
    assert not loaded


def test_bfloat16_takes_the_fast_path_and_stays_near(tiny_models: Models) -> None:
    """Rounding is some hundredths of a nat per token; a wrong mask or position is above one."""
    expected = naive_values(naive.load(tiny_models["gemma"][1]))
    scorer = ModelScorer(naive.load(tiny_models["gemma"][1]).bfloat16(), RewardSettings())
    assert scorer.packed
    for found, value, response in zip(scorer.logprobs(PROMPT, RESPONSES), expected, RESPONSES, strict=True):
        assert math.isclose(found, value, abs_tol=0.2 * len(response) ** 0.5)
