"""Decoding rows that come and go: what is computed, what is kept, and that it is what the model itself computes."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from tiny_engines import KINDS, Models
from tiny_engines import make_sampler as make_any_sampler
from transformers import AutoModelForCausalLM, LlamaConfig

from crosspref.data.records import derive_seed
from crosspref.engines.packed import decoding
from crosspref.engines.packed.decoding import (
    BLOCK,
    Decoder,
    Draft,
    SharedPrompt,
    Step,
    can_decode,
    lay_out_weights,
)
from crosspref.engines.transformers.sampler import NUCLEUS, TransformersSampler, nucleus

INSTRUCTIONS = ["Hi!", "Explain in three short sentences why the sky is blue.", "¿Qué es un volcán?", "Назови столицы."]
REQUESTS = [
    (text, [derive_seed(7, 1, f"p{index}", "en", sample) for sample in range(5)])
    for index, text in enumerate(INSTRUCTIONS)
]


def make_sampler(directory: Path, **settings: Any) -> TransformersSampler:
    return make_any_sampler(directory, **{"max_new_tokens": 40, "temperature": 1.5, **settings})


def token_ids(sampler: TransformersSampler) -> list[list[list[int] | None]]:
    return [[answer.token_ids for answer in row] for row in sampler.sample(REQUESTS, lambda *_: None)]


def greedy_rows(prompts: Sequence[list[int]], limits: Sequence[Sequence[int]]) -> list[Draft]:
    return [
        Draft(prompt, limit) for prompt, own in zip(map(SharedPrompt, prompts), limits, strict=True) for limit in own
    ]


def greedy(logits: torch.Tensor, _: Sequence[Draft]) -> torch.Tensor:
    return logits.argmax(-1)


class Forward:
    """Counts what goes through a model: tokens of each prompt's pass, and rows of each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
        self.read: list[tuple[int, ...]] = []
        self.steps: list[int] = []
        forward = model.forward

        def counted(*args: Any, **given: Any) -> Any:
            ids = given["input_ids"]
            if isinstance(given["packed"], Step):
                self.steps.append(ids.shape[1])
            else:
                self.read.append(tuple(ids[0].tolist()))
            return forward(*args, **given)

        monkeypatch.setattr(model, "forward", counted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_gives_what_generate_gives(kind: str, tiny_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tiny_models[kind][1]
    for asked in ({"greedy": True}, {"greedy": False}, {"temperature": 2.5, "top_p": 0.7}):
        sampler = make_sampler(directory, **asked)
        assert sampler.decodable > 1000
        found = token_ids(sampler)
        with monkeypatch.context() as patch:
            patch.setattr(sampler, "decodable", 0)
            assert token_ids(sampler) == found, asked


@pytest.mark.parametrize("leg", [decoding.LEG * decoding.LEG_ROWS, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_rows_equal_naive_ones(
    kind: str, leg: int, tiny_models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows beyond a block of memory, which leave and enter beside others, behind prompts around the window of 8.
    directory = tiny_models[kind][1]
    model = naive.load(directory)
    monkeypatch.setattr(decoding, "TAKEN_UP_TOKENS", 30)  # so that a prompt's rows come in several passes
    prompts = [naive.prompt_ids(directory, text) for text in INSTRUCTIONS[:3]]
    rows = greedy_rows(prompts, [[BLOCK + 9, 3, 20], [1, 7, 5], [2, 12]])
    ended: list[Draft] = []
    legs: list[int] = []
    decoder = Decoder(model, rows=3, tokens=10000, stops=[1, 2])
    decoder.leg = leg
    decoder.run(rows, greedy, ended.append, lambda: legs.append(len(ended)))
    assert (len(legs) > 3) == (leg == 100)
    assert sorted(map(id, ended)) == sorted(map(id, rows))
    for row in rows:
        assert row.ids == naive.greedy(model, row.prompt.ids, row.limit)


def test_nothing_is_computed_for_a_row_that_has_ended(tiny_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model = naive.load(tiny_models["llama"][1])
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    limits = [[9, 2, 5, 1], [4, 4, 8]]
    forward = Forward(monkeypatch, model)
    Decoder(model, rows=3, tokens=10000, stops=[]).run(greedy_rows(prompts, limits), greedy, lambda _: None)
    assert forward.read == [tuple(prompt) for prompt in prompts]
    # A row's first token comes from its prompt's pass, and its last one goes nowhere.
    assert sum(forward.steps) == sum(limit - 1 for own in limits for limit in own)
    # All 3 places are taken while rows wait: after 1 step comes the fifth row (the fourth ends with its first token),
    # and after 4 the last two, of which the very last one takes 7 steps.
    assert forward.steps == [3] * 7 + [2, 1, 1, 1]


@pytest.mark.parametrize(("tokens", "most"), [(1, 1), (3 + 2 * 10, 2), (3 + 4 + 4 * 10, 4), (1000, 6)])
def test_tokens_bound_how_many_rows_are_beside_each_other(
    tokens: int, most: int, tiny_models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = naive.load(tiny_models["llama"][1])
    forward = Forward(monkeypatch, model)
    rows = greedy_rows([[5, 6, 7], [8, 9, 10, 11]], [[10] * 3, [10] * 3])  # a shared prompt counts once
    Decoder(model, rows=32, tokens=tokens, stops=[]).run(rows, greedy, lambda _: None)
    assert max(forward.steps) == most
    assert all(len(row.ids) == 10 for row in rows)


def test_memory_is_given_back(tiny_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model = naive.load(tiny_models["llama"][1])
    rows = greedy_rows([[5, 6, 7], [8, 9, 10, 11], [12, 13]], [[3] * 3, [2 * BLOCK] * 2, [5]])
    held: list[tuple[int, ...]] = []
    widths: list[int] = []
    step = Decoder._step

    def watched(decoder: Decoder) -> torch.Tensor:
        logits = step(decoder)
        held.append(tuple({len(row.prompt.ids): None for row in rows if row.prompt.keys}))
        widths.append(decoder.cache.keys[0].shape[3])
        return logits

    monkeypatch.setattr(Decoder, "_step", watched)
    decoder = Decoder(model, rows=3, tokens=10000, stops=[])
    decoder.run(rows, greedy, lambda _: None)
    assert held[0] == (3,)
    assert (4, 2) in held
    assert held[-1] == (4,)  # the first prompt and the last one are gone while the second is being answered
    assert all(
        (row.prompt.keys, row.prompt.values, row.prompt.logits, row.prompt.left) == ([], [], None, 0) for row in rows
    )
    assert not hasattr(decoder, "cache")
    assert not decoder.live
    assert sorted(set(widths)) == [BLOCK, 2 * BLOCK]  # not all of it at once


def test_an_error_leaves_the_model_as_it_was(tiny_models: Models) -> None:
    model = naive.load(tiny_models["llama"][1])

    def fail(_: torch.Tensor, __: Sequence[Draft]) -> torch.Tensor:
        raise RuntimeError("no choice")

    with pytest.raises(RuntimeError, match="no choice"):
        Decoder(model, rows=2, tokens=100, stops=[]).run(greedy_rows([[5, 6]], [[3]]), fail, lambda _: None)
    assert model.config._attn_implementation == "eager"
    assert can_decode(model)


def test_what_differs_from_the_model_is_not_used(
    tiny_models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mask = Step._mask
    monkeypatch.setattr(Step, "_mask", lambda step, _: mask(step, 3))  # rows see less than they should
    directory = tiny_models["llama"][1]
    with caplog.at_level(logging.WARNING):
        sampler = make_sampler(directory)
    assert sampler.decodable == 0
    [record] = caplog.records
    assert "is sampled by its own generate, batch by batch, since rows of different lengths" in record.getMessage()


def test_an_unknown_attention_falls_back_to_generate(
    tiny_models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tiny_models["llama"][1]
    expected = token_ids(make_sampler(directory))
    attend = Step.attend
    monkeypatch.setattr(Step, "attend", lambda step, *states, **given: attend(step, *states, s_aux=1, **given))
    with caplog.at_level(logging.WARNING):
        sampler = make_sampler(directory)
    [record] = caplog.records
    assert "LlamaForCausalLM is sampled by its own generate" in record.getMessage()
    assert "its attention takes s_aux" in record.getMessage()
    monkeypatch.undo()
    counts: Counter[str] = Counter()
    generate = sampler.model.generate
    monkeypatch.setattr(sampler.model, "generate", lambda **given: counts.update(["generate"]) or generate(**given))
    assert token_ids(sampler) == expected
    assert counts["generate"]


def test_layers_without_attention_cannot_be_decoded(caplog: pytest.LogCaptureFixture, tiny_models: Models) -> None:
    model = naive.load(tiny_models["llama"][1])
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert not can_decode(model)
    assert "its attention takes no packed rows" in caplog.text


def test_positions_that_depend_on_the_longest_row_are_left_to_generate(tiny_models: Models) -> None:
    directory = tiny_models["llama"][1]
    sampler = make_sampler(directory)
    expected = token_ids(sampler)
    prompts = [naive.prompt_ids(directory, text) for text in INSTRUCTIONS]
    longest = max(map(len, prompts))
    sampler.decodable = longest + 40 - 1  # as even_length says of a dynamic embedding
    decoded: list[list[int]] = []
    decode = sampler._decode
    sampler._decode = lambda drafts, *rest: (decoded.extend(one.prompt.ids for one in drafts), decode(drafts, *rest))[1]
    assert token_ids(sampler) == expected
    assert {prompts.index(ids) for ids in decoded} == {0, 2, 3}


def test_bfloat16_and_a_scale_that_is_no_power_of_two_agree() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 12}
    config = LlamaConfig(vocab_size=384, num_attention_heads=4, num_key_value_heads=1, **shape)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    assert can_decode(model)


@pytest.mark.skipif(not decoding._has_bfloat16_kernels(), reason="the processor does not compute in bfloat16")
@pytest.mark.parametrize("kind", KINDS)
def test_weights_laid_out_for_the_processor_give_the_same(kind: str, tiny_models: Models) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_models[kind][1], dtype=torch.bfloat16).eval()
    model.model.layers[0].mlp.up_proj.bias = torch.nn.Parameter(torch.randn(64, dtype=torch.bfloat16))
    with torch.inference_mode():
        for count in (1, 3, 70):
            ids = torch.arange(3, 3 + count)[None]
            plain = model(input_ids=ids).logits.float().log_softmax(-1)
            assert lay_out_weights(model)
            packed = model(input_ids=ids).logits.float().log_softmax(-1)
            for module in model.modules():
                module.__dict__.pop("forward", None)
            assert (packed - plain).abs().max() < 0.3
            assert not torch.equal(packed, torch.zeros_like(packed))


def test_weights_stay_as_they_are_where_that_does_not_help(
    tiny_models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = naive.load(tiny_models["llama"][1])
    assert not lay_out_weights(model)  # float32
    model = model.to(torch.bfloat16)
    monkeypatch.setattr(decoding, "free_bytes", lambda _: 1000.0)
    assert not lay_out_weights(model)  # too little memory
    monkeypatch.undo()
    monkeypatch.setattr(decoding, "_has_bfloat16_kernels", lambda: False)
    assert not lay_out_weights(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 8.0])
def test_a_nucleus_is_the_same_however_many_tokens_are_looked_at(sharpness: float) -> None:
    logits = torch.randn(3, 3 * NUCLEUS[-1], generator=torch.Generator().manual_seed(0)) * sharpness
    weights = logits.exp()
    for top_p in (0.3, 0.9):
        kept, ids = nucleus(weights, top_p)
        found = torch.zeros_like(weights).scatter_(1, ids, kept)
        order = weights.argsort(descending=True)
        for row in range(3):
            total, chosen = 0.0, []
            for token in order[row].tolist():
                if total >= top_p * float(weights[row].double().sum()):
                    break
                chosen.append(token)
                total += float(weights[row, token])
            assert found[row].nonzero()[:, 0].tolist() == sorted(chosen)
            assert torch.equal(found[row, chosen], weights[row, chosen])
