"""vLLM itself samples SmolLM2 on a CPU: what it returns is what transformers would, and would score."""

import gc
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.entrypoints.openai.api_server")

import psutil
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from crosspref.data.records import Response
from crosspref.engines import EngineSettings
from crosspref.engines.transformers.sampler import TransformersSampler
from crosspref.engines.transformers.scorer import TransformersScorer
from crosspref.engines.vllm import VllmSampler, _require_device
from crosspref.errors import ModelError, RecipeError
from crosspref.models.locate import locate_model
from crosspref.recipe.sections import AskingSettings, ResourceSettings, SampleSettings, VllmSettings
from crosspref.run import kept as kept_work
from crosspref.run.kept import keeping
from crosspref.run.store import Fingerprint, Unit

SETTINGS = SampleSettings(temperature=0.7, max_new_tokens=32, max_prompt_tokens=400)
FULL_STOP, UNUSED = 30, 3
"""Tokens of SmolLM2: "." and <repo_name>."""
REQUESTS = [
    ("What is the capital of France?", [11, 12, 13]),
    ("Say hello.", [21, 22]),
    ("Nenne drei Farben.", [31, 32, 33, 34]),
]


def resources(dtype: str = "float32") -> ResourceSettings:
    return ResourceSettings(device="cpu", dtype=dtype, threads=1)


def open_sampler(model: Any, settings: SampleSettings = SETTINGS, dtype: str = "float32", **extra: Any) -> VllmSampler:
    given = EngineSettings(sample=settings, resources=resources(dtype), vllm=VllmSettings(max_sequences=16))
    return VllmSampler(given, model, **extra)


def silent(done: int, tokens: int) -> None:
    """Show no progress."""


@pytest.fixture(scope="module")
def sampler(smollm2: Path) -> Iterator[VllmSampler]:
    sampler = open_sampler(locate_model(str(smollm2)))
    yield sampler
    sampler.close()


def reported_logprobs(sampler: VllmSampler) -> list[tuple[str, list[int], str, float]]:
    """(instruction, ids, finish reason, vLLM's own log-probability of the ids) of each response to REQUESTS."""
    found = []
    for instruction, seeds in REQUESTS:
        parameters = sampler._parameters(seeds, SETTINGS.temperature)
        parameters.logprobs = 0  # of the sampled token alone
        prompt = {"prompt_token_ids": sampler.tokenizer.prompt_ids(instruction)}
        for output in sampler.llm.generate([prompt], parameters, use_tqdm=False)[0].outputs:
            value = sum(step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True))
            found.append((instruction, list(output.token_ids), output.finish_reason, value))
    return found


def differences(smollm2: Path, found: list[tuple[str, list[int], str, float]], dtype: str) -> list[float]:
    """Differences between vLLM's and TransformersScorer's log-probabilities, nats per response."""
    scorer = TransformersScorer(EngineSettings(resources=resources(dtype)), locate_model(str(smollm2)), None)
    differing = []
    for instruction, ids, reason, value in found:
        scored = scorer.score(instruction, [Response("p", "en", 0, "", ids, reason, None)])[0]
        assert scored.tokens == len(ids)
        assert math.isfinite(scored.policy)
        differing.append(abs(scored.policy - value))
    scorer.close()
    return differing


def test_responses_end_with_a_stop_token_or_at_the_limit(sampler: VllmSampler) -> None:
    steps: list[tuple[int, int]] = []
    too_long = ("word " * 500, [1, 2])
    *answers, none = sampler.sample([*REQUESTS, too_long], lambda done, tokens: steps.append((done, tokens)))
    assert none == []
    assert [len(found) for found in answers] == [3, 2, 4]
    flat = [answer for found in answers for answer in found]
    assert {answer.finish_reason for answer in flat} == {"stop", "length"}
    for answer in flat:
        ended = answer.finish_reason == "stop"
        assert (answer.token_ids[-1] in sampler.stops) == ended
        assert not set(answer.token_ids[:-1]) & set(sampler.stops)
        assert ended or len(answer.token_ids) == SETTINGS.max_new_tokens
        assert answer.text == sampler.tokenizer.text(answer.token_ids)
        assert "<|im_end|>" not in answer.text
    assert sum(done for done, _ in steps) == 11
    assert sum(tokens for _, tokens in steps) == sum(len(answer.token_ids) for answer in flat)
    # The responses to a prompt have random streams of their own.
    assert all(len({tuple(answer.token_ids) for answer in found}) == len(found) for found in answers)


def test_a_response_depends_on_its_prompt_and_number_alone(sampler: VllmSampler) -> None:
    together = sampler.sample(REQUESTS, silent)
    assert sampler.sample(REQUESTS, silent) == together
    for request, found in zip(REQUESTS, together, strict=True):
        assert sampler.sample([request], silent) == [found]
    instruction, seeds = REQUESTS[2]
    assert sampler.sample([(instruction, seeds[:2])], silent) == [together[2][:2]]
    assert sampler.sample([(instruction, [77, *seeds[1:]])], silent) != [together[2]]


def test_prefix_caching_is_on(sampler: VllmSampler) -> None:
    assert sampler.llm.llm_engine.vllm_config.cache_config.enable_prefix_caching


def test_the_engine_runs_in_this_process(sampler: VllmSampler) -> None:
    """So whatever ends the process, gives all memory back."""
    sampler.sample(REQUESTS[:1], silent)
    assert psutil.Process().children(recursive=True) == []


def test_its_logprobs_are_those_of_transformers(sampler: VllmSampler, smollm2: Path) -> None:
    found = differences(smollm2, reported_logprobs(sampler), "float32")
    print(f"float32: largest difference {max(found):.2g} nats per response")  # noqa: T201 - shown with -s
    assert max(found) < 2e-3


def test_a_kill_costs_no_finished_prompt(sampler: VllmSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit, made, states = Unit(tmp_path / "00000000.parquet"), Fingerprint({}), list[str]()
    monkeypatch.setattr(kept_work, "SECONDS", 0.0)
    with monkeypatch.context() as patch, keeping(silent, unit, made) as kept:
        patch.setattr(kept_work, "write_text", lambda _, text: states.append(text))
        whole = sampler.sample(REQUESTS, kept)
    assert len(states) == len(REQUESTS)
    asked, parameters = list[Any](), sampler._parameters
    monkeypatch.setattr(sampler, "_parameters", lambda *given: asked.append(given) or parameters(*given))
    for done, state in enumerate(states, 1):
        asked.clear()
        unit.part.write_text(state)
        with keeping(silent, unit, made) as kept:
            assert sampler.sample(REQUESTS, kept) == whole
        assert len(asked) == len(REQUESTS) - done


def altered(model: Path, directory: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a model whose weights were changed."""
    shutil.copytree(model, directory)
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        change(weights)
    weights.save_pretrained(directory)
    return directory


def test_ids_that_only_pad_the_embedding_are_never_drawn(smollm2: Path, tmp_path: Path, sampler: VllmSampler) -> None:
    def pad(model: Any) -> None:
        size = len(model.get_input_embeddings().weight)
        model.resize_token_embeddings(size + 64, mean_resizing=False)
        weight = model.get_input_embeddings().weight
        weight[size:] = 1.5 * weight[1000 : 1000 + 64]
        weight[size] = 1.5 * weight[FULL_STOP]

    padded = open_sampler(locate_model(str(altered(smollm2, tmp_path / "padded", pad))))
    assert padded.sample(REQUESTS, silent) == sampler.sample(REQUESTS, silent)
    padded.bias = None
    drawn = padded.llm.generate([{"prompt_token_ids": padded.tokenizer.prompt_ids("Hi.")}], padded._parameters([1], 2))
    assert max(drawn[0].outputs[0].token_ids) >= padded.tokenizer.size
    padded.close()


def test_greedy_responses_are_those_of_transformers(smollm2: Path) -> None:
    model = locate_model(str(smollm2))
    settings = SETTINGS.model_copy(update={"max_new_tokens": 24})
    talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]
    conversation = [*talk, {"role": "user", "content": "Name a river."}]
    spelled = "Repeat: <|im_end|><|im_start|>assistant"  # control tokens as text, which is all that they are here
    requests = [*((instruction, seeds[:1]) for instruction, seeds in REQUESTS), (conversation, [1]), (spelled, [1])]
    other = TransformersSampler(EngineSettings(sample=settings, resources=resources()), model, greedy=True)
    expected = other.sample(requests, silent)
    other.close()
    sampler = open_sampler(model, settings, greedy=True)
    assert sampler.sample(requests, silent) == expected
    assert sampler.sample([(REQUESTS[0][0], [1, 2])], silent) == [expected[0] * 2]
    for token in sampler.stops:
        assert sampler.tokenizer.prompt_ids(spelled).count(token) == sampler.tokenizer.prompt_ids("Hi.").count(token)
    sampler.close()


def test_thinking_is_cut(smollm2: Path, tmp_path: Path) -> None:
    """The thinker ends its thinking where SmolLM2 ends a sentence."""

    def ends_with_sentences(model: Any) -> None:
        weight = model.get_input_embeddings().weight
        weight[UNUSED] = 1.5 * weight[FULL_STOP]

    thinker = altered(smollm2, tmp_path / "thinker", ends_with_sentences)
    tokens, template = thinker / "tokenizer.json", thinker / "chat_template.jinja"
    tokens.write_text(tokens.read_text().replace("<repo_name>", "</think>"))
    template.write_text(template.read_text().replace("assistant\n' }}", "assistant\n<think>' }}"))
    asking = AskingSettings(thinking="cut")
    given = EngineSettings(SETTINGS, resources=resources(), vllm=VllmSettings(max_sequences=16), asking=asking)
    requests = [(instruction, seeds[:1]) for instruction, seeds in REQUESTS]
    model = locate_model(str(thinker))
    other = TransformersSampler(given, model, greedy=True)
    expected = other.sample(requests, silent)
    other.close()
    assert any(answer.thinking_tokens and answer.token_ids for [answer] in expected)
    sampler = VllmSampler(given, model, greedy=True)
    assert sampler.sample(requests, silent) == expected
    sampler.close()


def test_bfloat16_and_the_memory_after_closing(smollm2: Path) -> None:
    sampler = open_sampler(locate_model(str(smollm2)), dtype="bfloat16")
    reported = reported_logprobs(sampler)
    held = psutil.Process().memory_info().rss
    sampler.close()
    gc.collect()
    freed = (held - psutil.Process().memory_info().rss) >> 20
    found = differences(smollm2, reported, "bfloat16")
    print(f"bfloat16: largest difference {max(found):.2g} nats per response; {freed} MiB freed")  # noqa: T201
    assert max(found) < 3
    assert freed > 200  # the weights alone are 270 MB
    torch.set_num_threads(1)  # works again for what comes after


def test_an_adapter_answers_as_the_merged_model(smollm2: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    model.save_pretrained(tmp_path / "adapter")
    merged = tmp_path / "merged"
    model.merge_and_unload().save_pretrained(merged)
    for file in smollm2.iterdir():
        if file.name.startswith("tokenizer") or file.suffix == ".jinja":
            (merged / file.name).write_bytes(file.read_bytes())
    settings = SETTINGS.model_copy(update={"max_new_tokens": 16})
    requests = [(instruction, seeds[:1]) for instruction, seeds in REQUESTS]
    other = TransformersSampler(
        EngineSettings(sample=settings, resources=resources()), locate_model(str(merged)), greedy=True
    )
    expected = other.sample(requests, silent)
    other.close()
    files = SimpleNamespace(
        name="pi_1", directory=smollm2, gguf_file=None, identity="of both", adapter=tmp_path / "adapter"
    )
    sampler = open_sampler(files, settings, greedy=True)
    assert sampler.sample(requests, silent) == expected
    sampler.adapter = None
    assert sampler.sample(requests, silent) != expected
    sampler.close()


def test_what_vllm_cannot_hold_is_said(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = locate_model(str(smollm2))
    with pytest.raises(ModelError, match=r"vLLM runs on cpu, but the run is on cuda"):
        _require_device(torch.device("cuda"))
    with pytest.raises(RecipeError, match="at most 2"):
        open_sampler(model, SETTINGS.model_copy(update={"temperature": 3.0}))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9999")
    with pytest.raises(ModelError, match=r"(?s)memory.*VLLM_CPU_KVCACHE_SPACE"):
        open_sampler(model)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    for file in smollm2.iterdir():
        os.link(file, tmp_path / file.name)
    (tmp_path / "config.json").unlink()
    config = json.loads((smollm2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["UnheardOfForCausalLM"]}))
    with pytest.raises(ModelError, match=r"(?s)UnheardOfForCausalLM.*sample.engine: transformers"):
        open_sampler(locate_model(str(tmp_path)))
