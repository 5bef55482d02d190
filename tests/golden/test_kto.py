"""What is KTO's own: the mismatched responses, and z_ref of every step."""

from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from training import PAIRS, Models, make_trainer, other_prompt, train

from crosspref.data.records import Pair
from crosspref.engines.training.kto import KtoTrainer, kto_batch, kto_examples
from crosspref.engines.transformers import adapters
from crosspref.errors import DataError

SEVEN = PAIRS[2:9]
FROZEN = 1e-30
"""A learning rate that changes no weight, so that every step sees the model that training started from."""


def pair_of(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, list[int]]:
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def test_each_example_has_the_response_of_its_kind_to_the_next_other_prompt() -> None:
    # Prompts A A B B A: the last pair's next one is the first, cyclically, but that has prompt A too, and so has the
    # second; so it takes the third. The second takes the third, the third and the fourth take the fifth.
    a, b = [1, 2], [3]
    pairs = [pair_of(prompt, [10 + row], [20 + row, 30 + row]) for row, prompt in enumerate([a, a, b, b, a])]
    examples = kto_examples(pairs, longest=100)
    assert [example["prompt_ids"] for example in examples] == [a, a, a, a, b, b, b, b, a, a]
    assert [example["desirable"] for example in examples] == [True, False] * 5
    for row, other in enumerate([2, 2, 4, 4, 2]):
        chosen, rejected = examples[2 * row : 2 * row + 2]
        assert chosen["response_ids"] == [10 + row]
        assert chosen["kl_response_ids"] == [10 + other]
        assert rejected["response_ids"] == [20 + row, 30 + row]
        assert rejected["kl_response_ids"] == [20 + other, 30 + other]


def test_a_mismatched_response_is_cut_where_it_is_too_long_for_its_prompt() -> None:
    pairs = [pair_of([1], [5, 6, 7], [8]), pair_of([2, 3], [9, 9], [4])]
    # With four tokens in all there is room for three behind the first prompt and for two behind the second.
    examples = kto_examples(pairs, longest=4)
    assert [example["kl_response_ids"] for example in examples] == [[9, 9], [4], [5, 6], [8]]
    assert examples[0]["response_ids"] == [5, 6, 7]


def test_batches_are_padded_on_the_right() -> None:
    examples = kto_examples([pair_of([1], [5, 6], [8]), pair_of([2, 3], [9], [4, 4, 4])], longest=9)
    batch = kto_batch([examples[0], examples[3]], pad=0)
    expected = {
        "desirable": [True, False],
        "input_ids": [[1, 5, 6, 0, 0], [2, 3, 4, 4, 4]],
        "attention_mask": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
        "completion_mask": [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]],
        "kl_input_ids": [[1, 9, 0], [2, 3, 8]],
        "kl_attention_mask": [[1, 1, 0], [1, 1, 1]],
        "kl_completion_mask": [[0, 1, 0], [0, 0, 1]],
    }
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected


@pytest.mark.parametrize("pairs", [PAIRS[:1], [PAIRS[0], PAIRS[0]]], ids=["one-pair", "one-prompt"])
def test_pairs_of_one_prompt_are_refused_before_a_model_is_loaded(
    pairs: list[Pair], tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_models["llama"][1], method="kto")
    monkeypatch.delattr(adapters, "load_model")
    with pytest.raises(DataError, match=r"train\.method"):
        train(trainer, tmp_path, pairs)


@pytest.fixture(scope="module")
def mismatched(tiny_models: Models, reference: Path) -> dict[tuple[int, ...], float]:
    """Return each example's mismatched log-ratio, by its prompt and response, of forward passes of its own."""
    start, found = tiny_models["llama"][1], {}
    policy, other = naive.load(start), naive.load(reference)
    for position, pair in enumerate(SEVEN):
        mismatch = other_prompt(SEVEN, position)
        prompt = naive.prompt_ids(start, pair.prompt[0]["content"])
        for kind in ("chosen_token_ids", "rejected_token_ids"):
            with torch.no_grad():
                values = [naive.sequence_logprob(model, prompt, getattr(mismatch, kind)) for model in (policy, other)]
            found[tuple(prompt + getattr(pair, kind))] = float(values[0] - values[1])
    assert len(found) == 14
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "micro"), [(1, 1), (2, 1), (3, 3), (4, 2), (5, 1), (12, 4)])
def test_z_ref_is_that_of_the_whole_step(
    batch: int,
    micro: int,
    mismatched: dict[tuple[int, ...], float],
    tiny_models: Models,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fourteen examples: for batches of 3, 4, 5 and 12 the last step is a smaller one."""
    steps: dict[int, list[float]] = {}
    original = KtoTrainer._values

    def values(self: KtoTrainer, model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
            steps.setdefault(self.state.global_step, []).append(mismatched[tuple(ids[: sum(mask)])])
        return original(self, model, inputs)

    monkeypatch.setattr(KtoTrainer, "_values", values)
    changes = {"batch_size": batch, "micro_batch_size": micro, "learning_rate": FROZEN}
    trainer = make_trainer(tiny_models["llama"][1], method="kto", reference=reference, **changes)
    log = train(trainer, tmp_path, SEVEN)["log"]
    assert [len(step) for step in steps.values()] == [batch] * (14 // batch) + ([14 % batch] if 14 % batch else [])
    expected = [max(0.0, sum(step) / len(step)) for step in steps.values()]
    assert max(expected) > 0.1
    assert [entry["kl"] for entry in log] == pytest.approx(expected, abs=2e-4)


@pytest.mark.slow
def test_progress_and_lengths_are_counted_in_pairs(tiny_models: Models, tmp_path: Path) -> None:
    calls: list[int] = []
    directory = tiny_models["llama"][1]
    lengths = [
        len(naive.prompt_ids(directory, pair.prompt[0]["content"]))
        + max(len(pair.chosen_token_ids or []), len(pair.rejected_token_ids or []))
        for pair in PAIRS
    ]
    longest = sorted(lengths)[10]
    fitting = sum(length <= longest for length in lengths)
    trainer = make_trainer(directory, method="kto", max_length=longest, batch_size=5, micro_batch_size=5, epochs=2)
    figures = trainer.train(PAIRS, tmp_path / "out", tmp_path / "checkpoints", lambda pairs, _: calls.append(pairs))
    assert (figures["pairs"], figures["too_long"]) == (fitting, 16 - fitting)
    assert figures["steps"] == len(calls) == 2 * -(-2 * fitting // 5)
    assert sum(calls) == 2 * fitting
    assert set(calls[:4]) == {2, 3}  # two and a half pairs a step
