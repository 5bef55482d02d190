"""Token ids that only the model has, or that neither has: not sampled, and neither scored nor trained on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_tokenizer, nudge
from training import PAIRS, Models, make_trainer
from transformers import AutoModelForCausalLM

import crosspref
from crosspref.data.records import Response
from crosspref.engines import EngineSettings
from crosspref.engines.transformers.sampler import TransformersSampler
from crosspref.engines.transformers.scorer import TransformersScorer
from crosspref.errors import DataError, ModelError
from crosspref.models.locate import locate_model
from crosspref.models.tokenizers import require_same_tokenizer
from crosspref.recipe.sections import ResourceSettings, SampleSettings

SIZE = 384
RESOURCES = ResourceSettings(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def padded(tiny_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with rows of padding that are likelier than all others, where only its own tokenizer's ids count."""
    source = tiny_models["llama"][0]
    assert len(make_tokenizer()) == SIZE
    folder = nudge(source, tmp_path_factory.mktemp("padded") / "model", size=0.0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(SIZE + 20)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[SIZE:] = 3 * head[10:30]
    model.save_pretrained(folder)
    return folder


def sampled(model: Path, temperature: float, packed: bool) -> list[list[int]]:
    settings = EngineSettings(
        sample=SampleSettings(max_new_tokens=12, temperature=temperature or 1.0, top_p=0.9), resources=RESOURCES
    )
    sampler = TransformersSampler(settings, locate_model(str(model)), greedy=temperature == 0)
    sampler.decodable = sampler.decodable if packed else 0
    answers = sampler.sample([("Name a fruit.", list(range(8))), ("Di algo.", [9])], lambda *_: None)
    sampler.close()
    return [answer.token_ids or [] for row in answers for answer in row]


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("packed", [True, False])
def test_padding_of_the_embedding_is_not_sampled(
    temperature: float, packed: bool, padded: Path, tiny_models: Models
) -> None:
    found = sampled(padded, temperature, packed)
    assert found == sampled(tiny_models["llama"][0], temperature, packed)
    assert max(map(max, found)) < SIZE


def test_tokenizers_of_equal_files_that_are_set_up_otherwise(tiny_models: Models, tmp_path: Path) -> None:
    """A token that only tokenizer_config.json adds is in no file that is compared, and changes the ids of texts."""
    policy, reference = tiny_models["llama"]
    other = Path(shutil.copytree(reference, tmp_path / "other"))
    config = json.loads((other / "tokenizer_config.json").read_text())
    added = {
        "content": "Hello",
        "special": False,
        "normalized": False,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
    }
    config["added_tokens_decoder"] = {"384": added}
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    files = [locate_model(str(path)) for path in (policy, other)]
    require_same_tokenizer(policy, other, ("a", "b"))
    with pytest.raises(ModelError, match="the tokens that they know, the ids of a prompt"):
        TransformersScorer(EngineSettings(resources=RESOURCES), *files)


@pytest.mark.parametrize("strange", [-1, SIZE, 10**6])
def test_ids_that_the_model_does_not_have_are_not_scored(strange: int, tiny_models: Models) -> None:
    policy, reference = (locate_model(str(path)) for path in tiny_models["llama"])
    scorer = TransformersScorer(EngineSettings(resources=RESOURCES), policy, reference)
    response = Response("p7", "es", 2, "?", [10, strange, 2], "stop", None)
    with pytest.raises(DataError, match=f"'p7' in es has the token id {strange}, but the model's ids go from 0 to 383"):
        scorer.score("Name a fruit.", [replace(response, token_ids=[10, 2]), response])


def test_ids_given_in_python(tiny_models: Models) -> None:
    reward = crosspref.ImplicitReward(*map(str, tiny_models["llama"]), dtype="float32")
    with pytest.raises(DataError, match="token id -3"):
        reward.score("Name a fruit.", ["Pera.", [10, -3]], language="es")


def test_ids_that_the_model_does_not_have_are_not_trained_on(tiny_models: Models, tmp_path: Path) -> None:
    pairs: list[Any] = [PAIRS[0], replace(PAIRS[1], rejected_token_ids=[10, SIZE])]
    trainer = make_trainer(tiny_models["llama"][1])
    with pytest.raises(DataError, match=f"'p1' in es has the token id {SIZE}"):
        trainer.train(pairs, tmp_path / "out", tmp_path / "checkpoints", lambda *_: None)
