"""The sampler: a response is a function of its prompt and its own seed, drawn from the model's own probabilities."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny_engines import END, EOS, KINDS, Models, copy_with, make_sampler
from transformers import AutoTokenizer

from crosspref.data.records import derive_seed
from crosspref.engines.transformers.sampler import SeededChoice, TransformersSampler
from crosspref.protocols import Sampled

INSTRUCTIONS = [
    "Hi!",
    "¿Qué es un volcán?",
    "Explain in three short sentences why the sky is blue, and why it turns red when the sun goes down.",
    "Назови три столицы.",
]

Requests = Sequence[tuple[str, Sequence[int]]]


def seeds_of(index: int, count: int = 3) -> list[int]:
    return [derive_seed(42, 1, f"p{index}", "es", sample) for sample in range(count)]


REQUESTS = [(instruction, seeds_of(index)) for index, instruction in enumerate(INSTRUCTIONS)]


def draw(sampler: TransformersSampler, requests: Requests) -> list[list[Sampled]]:
    return sampler.sample(requests, lambda *_: None)


def naive_draw(model: Any, prompt: list[int], uniforms: Sequence[float], temperature: float, top_p: float) -> list[int]:
    """Walk the cumulative probabilities of one row, token by token, without cache or padding."""
    ids: list[int] = []
    for uniform in uniforms:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
        probabilities = (logits.double() / temperature).softmax(-1)
        order = probabilities.argsort(descending=True)
        total, nucleus = 0.0, set()
        for token in order.tolist():
            if total >= top_p:
                break
            nucleus.add(token)
            total += float(probabilities[token])
        reached = 0.0
        for token in sorted(nucleus):
            reached += float(probabilities[token]) / total
            if reached > uniform:
                break
        ids.append(token)
        if token in (EOS, END):
            break
    return ids


@pytest.mark.parametrize(("temperature", "top_p"), [(0.9, 1.0), (2.0, 0.8)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_naive_draws_one_by_one(kind: str, temperature: float, top_p: float, tiny_models: Models) -> None:
    directory = tiny_models[kind][1]
    found = draw(make_sampler(directory, temperature=temperature, top_p=top_p, max_new_tokens=12), REQUESTS)
    model = naive.load(directory)
    for (instruction, seeds), answers in zip(REQUESTS, found, strict=True):
        prompt = naive.prompt_ids(directory, instruction)
        for seed, answer in zip(seeds, answers, strict=True):
            uniforms = SeededChoice([seed], 12, temperature, top_p).uniforms[0].tolist()
            assert answer.token_ids == naive_draw(model, prompt, uniforms, temperature, top_p)


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_depends_on_its_own_seed_only(kind: str, tiny_models: Models) -> None:
    directory = tiny_models[kind][1]
    whole = draw(make_sampler(directory, temperature=1.5), REQUESTS)
    texts = {answer.text for answers in whole for answer in answers}
    assert len(texts) == 12  # different seeds, different texts
    for batch_size, batch_tokens in ((1, 32768), (2, 32768), (5, 32768), (32, 1), (32, 200)):
        sampler = make_sampler(directory, temperature=1.5, batch_size=batch_size, batch_tokens=batch_tokens)
        assert draw(sampler, REQUESTS) == whole, (batch_size, batch_tokens)
    # Other prompts beside it, other order, alone, and other random numbers drawn before.
    sampler = make_sampler(directory, temperature=1.5)
    assert draw(sampler, REQUESTS[::-1]) == whole[::-1]
    assert draw(sampler, [("Ein ganz anderer Prompt.", seeds_of(9)), REQUESTS[0]])[1] == whole[0]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for index, (instruction, seeds) in enumerate(REQUESTS):
        for position, seed in enumerate(seeds):
            assert draw(sampler, [(instruction, [seed])]) == [[whole[index][position]]]
    assert torch.equal(torch.get_rng_state(), state)


def test_ends_ids_and_text(tiny_models: Models) -> None:
    directory = tiny_models["llama"][1]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    requests = [(instruction, seeds_of(index, count=30)) for index, instruction in enumerate(INSTRUCTIONS)]
    answers = [answer for row in draw(make_sampler(directory, temperature=6.0), requests) for answer in row]
    ends = {answer.token_ids[-1] for answer in answers if answer.finish_reason == "stop"}
    assert ends == {EOS, END}
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    special = 0
    for answer in answers:
        *body, last = answer.token_ids
        assert not {EOS, END} & set(body)
        if answer.finish_reason == "stop":
            assert last in (EOS, END)
        else:
            assert last not in (EOS, END)
            assert len(answer.token_ids) == 24
        assert len(answer.token_ids) <= 24
        assert "<|" not in answer.text
        visible = [token for token in answer.token_ids if token not in tokenizer.all_special_ids]
        assert answer.text == tokenizer.decode(visible, clean_up_tokenization_spaces=False)
        special += any(token in tokenizer.all_special_ids for token in body)
    assert special  # some had <|user|> or another special token inside, which the ids keep and the text does not


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_new_tokens_cuts_the_same_response(limit: int, tiny_models: Models) -> None:
    directory = tiny_models["qwen"][1]
    long, short = (draw(make_sampler(directory, max_new_tokens=count), REQUESTS) for count in (24, limit))
    for longer, shorter in zip(sum(long, []), sum(short, []), strict=True):  # noqa: RUF017 - short lists
        assert shorter.token_ids == longer.token_ids[:limit]
        assert shorter.finish_reason == ("stop" if shorter.token_ids[-1] in (EOS, END) else "length")


def test_progress_counts_responses_and_tokens(tiny_models: Models) -> None:
    steps: list[tuple[int, int]] = []
    found = make_sampler(tiny_models["llama"][1], batch_size=5).sample(REQUESTS, lambda *step: steps.append(step))
    assert sum(units for units, _ in steps) == 12
    assert sum(tokens for _, tokens in steps) == sum(len(answer.token_ids) for row in found for answer in row)


def test_a_prompt_without_room_for_an_answer_gets_none(tiny_models: Models) -> None:
    directory = tiny_models["llama"][1]
    sampler = make_sampler(directory, max_new_tokens=1024 - len(naive.prompt_ids(directory, INSTRUCTIONS[1])))
    sampler.settings = sampler.settings.model_copy(update={"temperature": 50.0})  # so that they end soon
    assert [len(row) for row in draw(sampler, REQUESTS[:3])] == [3, 3, 0]


def test_a_models_own_sampling_defaults_have_no_effect(tiny_models: Models, tmp_path: Path) -> None:
    directory = tiny_models["llama"][1]
    expected = draw(make_sampler(directory, temperature=1.5), REQUESTS)
    own = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.01, "repetition_penalty": 5.0}
    own |= {"no_repeat_ngram_size": 1, "min_new_tokens": 20, "max_length": 3, "suppress_tokens": list(range(100, 384))}
    own |= {"num_beams": 4, "num_return_sequences": 2, "bad_words_ids": [[50]], "forced_eos_token_id": 1}
    other = copy_with(directory, tmp_path / "other", "generation_config.json", **own)
    assert draw(make_sampler(other, temperature=1.5), REQUESTS) == expected


def test_all_ends_that_a_model_names_stop_it(tiny_models: Models, tmp_path: Path) -> None:
    directory = tiny_models["llama"][1]
    expected = draw(make_sampler(directory, temperature=1.5), REQUESTS)[2][0]
    third = expected.token_ids[2]
    assert third not in expected.token_ids[:2]
    ends = {"eos_token_id": [EOS, third], "pad_token_id": 5}
    other = copy_with(directory, tmp_path / "other", "generation_config.json", **ends)
    sampler = make_sampler(other, temperature=1.5)
    assert sampler.stops == sorted({EOS, END, third})
    found = draw(sampler, REQUESTS)[2][0]
    assert (found.token_ids, found.finish_reason) == (expected.token_ids[:3], "stop")


def choose(logits: Sequence[float], seeds: Sequence[int], temperature: float = 1.0, top_p: float = 1.0) -> np.ndarray:
    """Return the token that each seed picks from the same logits."""
    choice = SeededChoice(seeds, 1, temperature, top_p)
    scores = choice(torch.zeros(len(seeds), 1, dtype=torch.int64), torch.tensor(logits).repeat(len(seeds), 1))
    assert ((scores == 0).sum(-1) == 1).all()
    assert (scores == -torch.inf).sum() == len(seeds) * (len(logits) - 1)
    return scores.argmax(-1).numpy()


SHARES = [0.4, 0.3, 0.2, 0.1]


class TestSeededChoice:
    SEEDS = tuple(derive_seed(42, 1, f"p{prompt}", "fr", sample) for prompt in range(600) for sample in range(10))
    LOGITS = tuple(np.log(SHARES).tolist())

    @pytest.mark.parametrize(
        ("temperature", "top_p", "expected"),
        [
            (1.0, 1.0, SHARES),
            # A temperature of 1/2 squares the probabilities: 16, 9, 4 and 1 of 30. One of 2 takes their roots.
            (0.5, 1.0, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
            (2.0, 1.0, [share**0.5 / sum(each**0.5 for each in SHARES) for share in SHARES]),
            # The nucleus is the smallest set that reaches top_p, and temperature comes first.
            (1.0, 0.65, [4 / 7, 3 / 7, 0, 0]),
            (1.0, 0.75, [4 / 9, 3 / 9, 2 / 9, 0]),
            (1.0, 0.39, [1, 0, 0, 0]),
            (0.5, 0.5, [1, 0, 0, 0]),
            (0.5, 0.9, [16 / 29, 9 / 29, 4 / 29, 0]),
        ],
    )
    def test_draws_from_the_softmax(self, temperature: float, top_p: float, expected: list[float]) -> None:
        counts = np.bincount(choose(self.LOGITS, self.SEEDS, temperature, top_p), minlength=4)
        possible = np.array(expected) > 0
        assert counts[~possible].sum() == 0
        if possible.sum() > 1:
            assert chisquare(counts[possible], np.array(expected)[possible] * len(self.SEEDS)).pvalue > 0.01

    def test_steps_of_one_seed_and_neighbouring_seeds_are_independent(self) -> None:
        choice = SeededChoice(self.SEEDS, 2, 1.0, 1.0)
        scores = torch.tensor(self.LOGITS).repeat(len(self.SEEDS), 1)
        first, second = (choice(torch.zeros(1), scores.clone()).argmax(-1).numpy() for _ in range(2))
        expected = np.outer(SHARES, SHARES).ravel()
        for pairs in (4 * first + second, 4 * first[1:] + first[:-1]):
            assert chisquare(np.bincount(pairs, minlength=16), expected * len(pairs)).pvalue > 0.01

    @pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1000, 49152])
    def test_inverts_the_cumulative_distribution_at_any_vocabulary(self, size: int) -> None:
        logits = np.random.default_rng(size).normal(scale=3.0, size=size)
        seeds = self.SEEDS[: 400 if size < 2000 else 40]
        found = choose(logits.tolist(), seeds)
        weights = np.exp(logits)
        ends = np.concatenate([[0.0], np.cumsum(weights / weights.sum())])
        uniforms = SeededChoice(seeds, 1, 1.0, 1.0).uniforms[:, 0]
        assert (ends[found] <= uniforms + 1e-6).all()
        assert (uniforms <= ends[found + 1] + 1e-6).all()

    @pytest.mark.parametrize("top_p", [1.0, 0.9999])
    @pytest.mark.parametrize("none", [-np.inf, -500.0])  # exp(-500) is 0 in float32
    @pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 1), (256, 256), (300, 700), (255, 1), (512, 0)])
    def test_the_ends_of_the_unit_interval_pick_possible_tokens(
        self, before: int, after: int, none: float, top_p: float
    ) -> None:
        middle = [0.0, 1.0, none, 0.3, 2.0, 0.5]
        logits = torch.tensor([none] * before + middle + [none] * after).repeat(3, 1)
        choice = SeededChoice([1, 2, 3], 1, 1.0, top_p)
        choice.uniforms = np.array([[0.0], [np.nextafter(1.0, 0.0)], [1.0 - 2.0**-24]])
        picked = choice(torch.zeros(3, 1, dtype=torch.int64), logits).argmax(-1)
        assert (picked - before).tolist() == [0, 5, 5]

    def test_rounding_at_the_upper_end_picks_no_impossible_token(self) -> None:
        # The sums of many odd numbers come out differently in different orders, and the draw lies between them.
        rows, possible, size = 3000, 700, 1000
        logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(0)) * 2
        logits[:, possible:] = -torch.inf
        choice = SeededChoice([1] * rows, 1, 1.0, 1.0)
        choice.uniforms = np.full((rows, 1), np.nextafter(1.0, 0.0))
        assert (choice(torch.zeros(rows, 1, dtype=torch.int64), logits).argmax(-1) == possible - 1).all()
