"""A request that carries the turns before it, and a temperature of its own: the same for every sampler."""

from contextlib import closing
from pathlib import Path
from typing import Any

import naive
import pytest
from fake_openai_server import FakeOpenAIServer
from tiny_engines import make_sampler as make_any_sampler
from transformers import AutoTokenizer

from crosspref.data.records import Instruction
from crosspref.engines import EngineSettings
from crosspref.engines.server.sampler import ServerSampler
from crosspref.engines.transformers.sampler import TransformersSampler
from crosspref.models.locate import locate_model
from crosspref.protocols import Sampled
from crosspref.recipe.sections import SampleSettings, ServerSettings

FIRST, ANSWER, NEXT = "¿Qué es un volcán?", "A hill that burns.", "And why so?"
MESSAGES = [
    {"role": "user", "content": FIRST},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": NEXT},
]
REQUESTS: list[tuple[Instruction, list[int]]] = [(FIRST, [7, 8]), (MESSAGES, [7, 8])]


@pytest.fixture
def model(models: tuple[Path, Path]) -> Path:
    return models[1]


def make_sampler(model: Path, **given: Any) -> TransformersSampler:
    return make_any_sampler(model, max_new_tokens=12, **given)


def draw(sampler: Any, temperature: float | None = None) -> list[list[Sampled]]:
    found: list[list[Sampled]] = sampler.sample(REQUESTS, lambda *_: None, temperature)
    return found


def spelled_out(model: Path) -> list[list[int]]:
    """The ids of both requests, from the chat template written out."""
    begun = f"<|bos|><|user|>{FIRST}<|end|><|assistant|>"
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [begun, f"{begun}{ANSWER}<|end|><|user|>{NEXT}<|end|><|assistant|>"]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_the_likeliest_answer_is_the_naive_one_behind_the_whole_conversation(model: Path) -> None:
    plain = naive.load(model)
    sampler = make_sampler(model)
    for prompt, answers in zip(spelled_out(model), draw(sampler, 0.0), strict=True):
        ids = naive.greedy(plain, prompt, 12)
        assert [answer.token_ids for answer in answers] == [ids, ids]
    assert draw(sampler, 0.0) == draw(make_sampler(model, greedy=True))


@pytest.mark.parametrize("decoder", [True, False])
def test_a_temperature_of_its_own_is_as_if_the_sampler_had_it(model: Path, decoder: bool) -> None:
    samplers = [make_sampler(model), make_sampler(model, temperature=1.7), make_sampler(model, greedy=True)]
    for sampler in samplers:
        sampler.decodable = sampler.decodable if decoder else 0  # or by the model's own generate
    warm, hot, greedy = map(draw, samplers)
    assert len({repr(found) for found in (warm, hot, greedy)}) == 3
    for sampler in samplers:
        assert [draw(sampler, temperature) for temperature in (0.9, 1.7, 0.0)] == [warm, hot, greedy]


@pytest.mark.parametrize("protocol", ["tokens", "chat"])
def test_a_server_gets_the_conversation_and_answers_as_transformers(model: Path, protocol: Any) -> None:
    pytest.importorskip("openai")
    with FakeOpenAIServer({"pi_0": model}) as server:
        settings = EngineSettings(
            sample=SampleSettings(max_new_tokens=12),
            server=ServerSettings(url=server.url, protocol=protocol),
            roles={str(model): "pi_0"},
        )
        with closing(ServerSampler(settings, locate_model(str(model)))) as sampler:
            for temperature in (None, 1.7, 0.0):
                rows = [draw(one, temperature) for one in (sampler, make_sampler(model))]
                found, expected = ([[(one.text, one.finish_reason) for one in row] for row in each] for each in rows)
                assert found == expected
    given = {(body["temperature"], body["top_p"]) for body in server.asked}
    assert given == {(0.9, 1.0), (1.7, 1.0), (0.0, 1.0)}
    if protocol == "chat":
        assert [body["messages"] for body in server.asked if len(body["messages"]) == 3] == [MESSAGES] * 6
    else:
        assert {tuple(body["prompt"]) for body in server.asked} == set(map(tuple, spelled_out(model)))
