"""Token ids that only the model has, or that neither has: not sampled, and neither scored nor trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_tokenizer, nudge
from tiny_engines import copy_with, make_sampler, make_scorer
from training import PAIRS, Models, make_trainer
from transformers import AutoModelForCausalLM

from crosspref.data.records import Response
from crosspref.errors import DataError, ModelError
from crosspref.models.tokenizers import require_same_tokenizer

SIZE = 384


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
    given = {"max_new_tokens": 12, "temperature": temperature or 1.0, "top_p": 0.9}
    sampler = make_sampler(model, greedy=temperature == 0, **given)
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
    added = {"content": "Hello", **dict.fromkeys(("special", "normalized", "lstrip", "rstrip", "single_word"), False)}
    decoder = {"384": added}
    other = copy_with(reference, tmp_path / "other", "tokenizer_config.json", added_tokens_decoder=decoder)
    require_same_tokenizer(policy, other, ("a", "b"))
    with pytest.raises(ModelError, match="the tokens that they know, the ids of a prompt"):
        make_scorer(policy, other)


@pytest.mark.parametrize("strange", [-1, SIZE])
def test_ids_that_the_model_does_not_have_are_not_scored(strange: int, tiny_models: Models) -> None:
    scorer = make_scorer(*tiny_models["llama"])
    response = Response("p7", "es", 2, "?", [10, strange, 2], "stop", None)
    with pytest.raises(DataError, match=f"'p7' in es has the token id {strange}, but the model's ids go from 0 to 383"):
        scorer.score("Name a fruit.", [replace(response, token_ids=[10, 2]), response])


def test_ids_that_the_model_does_not_have_are_not_trained_on(tiny_models: Models, tmp_path: Path) -> None:
    pairs: list[Any] = [PAIRS[0], replace(PAIRS[1], rejected_token_ids=[10, SIZE])]
    trainer = make_trainer(tiny_models["llama"][1])
    with pytest.raises(DataError, match=f"'p1' in es has the token id {SIZE}"):
        trainer.train(pairs, tmp_path / "out", tmp_path / "checkpoints", lambda *_: None)
