"""The reward model against a naive forward pass over ids of its own template, and models that are none."""

import math
from pathlib import Path

import pytest
import torch
from tiny import SHAPE, make_tokenizer
from tiny_engines import EOS, Models, copy_with, copy_with_weights
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from crosspref.engines import EngineSettings
from crosspref.engines.transformers.reward_model import TransformersRewardModel
from crosspref.errors import ModelError
from crosspref.models.locate import locate_model
from crosspref.recipe.sections import ResourceSettings

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
INSTRUCTION = "¿Qué es un volcán?"
RESPONSES = ["Una montaña.", "", "Una montaña que arroja lava, ceniza y gases, y que a veces duerme siglos.", "No."]


def make_model(directory: Path, labels: int = 1, pad: int | None = None) -> Path:
    """Write a random classifier with conftest's tokenizer and a chat template of its own."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=labels, pad_token_id=pad, **SHAPE)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("reward"))


def rater(directory: Path, dtype: str = "float32") -> TransformersRewardModel:
    settings = EngineSettings(resources=ResourceSettings(device="cpu", dtype=dtype))
    return TransformersRewardModel(settings, locate_model(str(directory)))


def ids_of(directory: Path, response: str) -> list[int]:
    """Return the ids of the model's own template, written out, with its one BOS."""
    text = f"<|bos|>[user] {INSTRUCTION}<|eos|>[assistant] {response}<|eos|>"
    return AutoTokenizer.from_pretrained(directory)(text, add_special_tokens=False)["input_ids"]


def naive_reward(directory: Path, ids: list[int], position: int) -> float:
    """Return the head's product with the hidden state at one position, in float32 and plain torch."""
    model = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, position]
        return float(hidden @ model.score.weight[0])


def test_equals_a_naive_forward_pass(directory: Path) -> None:
    found = rater(directory).rate(INSTRUCTION, RESPONSES)
    expected = []
    for response in RESPONSES:
        ids = ids_of(directory, response)
        assert ids.count(0) == 1
        assert ids[-1] == EOS
        expected.append(naive_reward(directory, ids, -1))
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(found) - min(found) > 0.1


def test_a_conversation_is_rated_whole(directory: Path) -> None:
    turns = [
        {"role": "system", "content": "Sé breve."},
        {"role": "user", "content": "Hola."},
        {"role": "assistant", "content": "¿Sí?"},
        {"role": "user", "content": INSTRUCTION},
    ]
    text = "".join(f"[{turn['role']}] {turn['content']}<|eos|>" for turn in turns)
    ids = AutoTokenizer.from_pretrained(directory)(
        f"<|bos|>{text}[assistant] {RESPONSES[0]}<|eos|>", add_special_tokens=False
    )["input_ids"]
    [found] = rater(directory).rate(turns, RESPONSES[:1])
    assert found == pytest.approx(naive_reward(directory, ids, -1), abs=1e-5)


def test_a_response_is_rated_alone(directory: Path) -> None:
    model = rater(directory)
    found = model.rate(INSTRUCTION, RESPONSES)
    assert model.rate(INSTRUCTION, RESPONSES[::-1]) == found[::-1]
    assert [model.rate(INSTRUCTION, [response])[0] for response in RESPONSES] == found
    assert model.rate(INSTRUCTION, []) == []
    assert model.rate("Otra pregunta.", RESPONSES) != found
    model.close()
    assert model.model is None


def test_where_the_padding_is_the_end_of_turn_the_model_reads_before_it(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "pad", pad=EOS)
    found = rater(directory).rate(INSTRUCTION, RESPONSES)
    expected = [naive_reward(directory, ids_of(directory, response), -2) for response in RESPONSES]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_reward_has_more_digits_than_bfloat16(directory: Path) -> None:
    found, exact = (rater(directory, dtype).rate(INSTRUCTION, RESPONSES) for dtype in ("bfloat16", "float32"))
    assert found == pytest.approx(exact, abs=0.2)
    rounded = torch.tensor(found).bfloat16().float().tolist()
    assert all(value != short for value, short in zip(found, rounded, strict=True))


def test_a_conversation_beyond_the_context_has_no_reward(directory: Path, tmp_path: Path) -> None:
    longest = len(ids_of(directory, RESPONSES[0]))
    for file, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        short = copy_with(directory, tmp_path / key, file, **{key: longest})
        found = rater(short).rate(INSTRUCTION, RESPONSES)
        assert [math.isnan(reward) for reward in found] == [False, False, True, False]
        assert found[:2] == rater(directory).rate(INSTRUCTION, RESPONSES[:2])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_an_output_that_is_not_finite_is_no_reward(value: float, directory: Path, tmp_path: Path) -> None:
    # One weight only, since a sum of infinities of both signs is nan already.
    single = torch.zeros(1, SHAPE["hidden_size"])
    single[0, 0] = value
    broken = copy_with_weights(directory, tmp_path / "broken", lambda weights: weights.update({"score.weight": single}))
    with pytest.raises(ModelError, match="not finite"):
        rater(broken).rate(INSTRUCTION, RESPONSES)


def test_two_outputs_are_refused(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "two", labels=2)
    with pytest.raises(ModelError, match=r"one output, but .*LlamaForSequenceClassification\) has 2 .*num_labels 1"):
        rater(directory)


def test_a_language_model_is_refused(tiny_models: Models, tmp_path: Path) -> None:
    policy = tiny_models["llama"][0]
    with pytest.raises(ModelError, match=r"LlamaForCausalLM\) has 2 labels"):
        rater(policy)
    # One whose configuration was edited has no weights for the output: they would be random.
    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    edited = copy_with(policy, tmp_path / "edited", "config.json", **labels)
    with pytest.raises(ModelError, match=r"lack 1 weights of a LlamaForSequenceClassification, such as score.weight"):
        rater(edited)


def test_missing_weights_are_refused(directory: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    lacking = copy_with_weights(directory, tmp_path / "lacking", lambda weights: weights.pop(name))
    with pytest.raises(ModelError, match=f"lack 1 weights of .*, such as {name}"):
        rater(lacking)
