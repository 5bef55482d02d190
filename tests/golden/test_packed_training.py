"""A batch as one packed row: its log-probabilities and gradients against a forward pass for each response."""

import json
import logging
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from training import LORA, PAIRS, Models, assert_close, make_trainer, train
from transformers import AutoModelForCausalLM

from crosspref.engines.packed import head
from crosspref.engines.packed.head import PaddedRows, add_response_head, distinct_tokens, require_known_head
from crosspref.engines.packed.rows import NAME
from crosspref.engines.training.pairs import PairTrainer

NATS = 1e-4
LONG, SHORT = list(range(10, 40)), [7, 8, 9]
ROWS = [
    (LONG, [50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60]),
    (SHORT, [70, 71]),
    (LONG[:-1], [39, 50]),  # the beginning of another prompt, not that prompt
    (LONG, [80]),
    (SHORT, []),
    (LONG, [90, 91, 92, 93, 94]),
]
"""Prompts and responses; a prompt's rows do not stand together."""
WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 3.0, 7.0, -1.0])


def batch(rows: list[tuple[list[int], list[int]]] = ROWS) -> PaddedRows:
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    table = [(p + r, [1] * len(p + r), [0] * len(p) + [1] * len(r)) for p, r in rows]
    names = ("input_ids", "attention_mask", "completion_mask")
    return {
        name: torch.tensor([row + [0] * (longest - len(row)) for row in column])
        for name, column in zip(names, zip(*table, strict=True), strict=True)
    }


def load(directory: Path, **given: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **given).eval()
    require_known_head(model)
    add_response_head(model)
    return model


def values_and_gradients(model: Any, rows: PaddedRows) -> tuple[list[float], dict[str, torch.Tensor]]:
    values = model(**rows)
    (values * WEIGHTS).sum().backward()
    return values.tolist(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def expected(tiny_models: Models) -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    found = {}
    for kind in ("llama", "qwen", "gemma"):
        model = naive.load(tiny_models[kind][1])
        values = torch.stack([naive.sequence_logprob(model, *row) for row in ROWS])
        (values * WEIGHTS).sum().backward()
        found[kind] = values.tolist(), {name: parameter.grad for name, parameter in model.named_parameters()}
    return found


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma"])
def test_values_and_gradients_are_the_naive_ones(
    kind: str, checkpointing: bool, expected: dict[str, Any], tiny_models: Models
) -> None:
    model = load(tiny_models[kind][1])
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    seen: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _module, given, _found: seen.append(given[0].numel()))
    values, gradients = values_and_gradients(model, batch())
    assert values == pytest.approx(expected[kind][0], abs=NATS)
    assert_close(gradients, expected[kind][1], 1e-4)
    # Each prompt once, and of each response all but its last token, which predicts nothing.
    assert seen == [30 + 3 + 29 + 10 + 1 + 1 + 0 + 4]


def test_the_tokens_of_a_batch_by_hand() -> None:
    assert distinct_tokens(batch()) == (30 + 3 + 29) + (11 + 2 + 2 + 1 + 0 + 5)
    # Nothing stands before the first token, so that nothing predicts it.
    assert distinct_tokens(batch([([], [5, 6])])) == 2


@pytest.mark.parametrize("packs", [True, False])
def test_rows_without_a_response_are_worth_nothing_and_one_without_a_prompt_lacks_its_first_token(
    packs: bool, tiny_models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_takes_packed_rows", lambda _: packs)
    model = load(tiny_models["llama"][1])
    values = model(**batch([(SHORT, []), (LONG, [])]))
    values.sum().backward()
    assert values.tolist() == [0, 0]
    [value] = model(**batch([([], [5, 6, 7])])).tolist()
    with torch.no_grad():
        expected = naive.sequence_logprob(naive.load(tiny_models["llama"][1]), [5], [6, 7])
    assert value == pytest.approx(float(expected), abs=NATS)


def test_other_callers_do_not_notice(tiny_models: Models) -> None:
    directory = tiny_models["gemma"][1]
    model, rows = load(directory, attn_implementation="eager"), batch()
    assert model.config._attn_implementation == NAME
    given = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
    with torch.no_grad():
        torch.testing.assert_close(model(**given).logits, naive.load(directory)(**given).logits)
    assert model.config._attn_implementation == NAME


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_what_is_saved_says_nothing_of_it(lora: Any, tiny_models: Models, tmp_path: Path) -> None:
    directory = tiny_models["gemma"][1]
    train(make_trainer(directory, lora=lora, checkpoint_every=1), tmp_path, PAIRS[:4])
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (directory, tmp_path / "out"))
    assert after.keys() == before.keys()
    files = [*tmp_path.rglob("*.json")]
    assert any(file.parent.name.startswith("checkpoint-") for file in files)
    assert not any(NAME in file.read_text() for file in files)


def refuse(*_: Any) -> None:
    raise NotImplementedError("its attention takes no packed rows")


@pytest.mark.slow
def test_a_model_that_takes_no_packed_rows_is_trained_on_padded_ones(
    expected: dict[str, Any],
    tiny_models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = tiny_models["gemma"][1]
    packed = train(make_trainer(directory, gradient_checkpointing=True), tmp_path / "packed")["log"]
    assert not caplog.records
    monkeypatch.setattr(head, "predicting_states", refuse)
    with caplog.at_level(logging.WARNING):
        model = load(directory)
    assert [record.getMessage() for record in caplog.records] == [
        "Gemma2ForCausalLM is trained on padded rows, since a prompt cannot be shared by several responses "
        "(its attention takes no packed rows)."
    ]
    assert model.config._attn_implementation != NAME
    values, gradients = values_and_gradients(model, batch())
    assert values == pytest.approx(expected["gemma"][0], abs=NATS)
    assert_close(gradients, expected["gemma"][1], 1e-4)
    padded = train(make_trainer(directory, gradient_checkpointing=True), tmp_path / "padded")["log"]
    assert [entry["loss"] for entry in padded] == pytest.approx([entry["loss"] for entry in packed], abs=1e-4)


def test_wrong_values_are_noticed(
    tiny_models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = head.predicting_states
    monkeypatch.setattr(head, "predicting_states", lambda *given: original(*given) * 1.1)
    load(tiny_models["qwen"][1])
    assert "Qwen3ForCausalLM is trained on padded rows" in caplog.text


def test_positions_that_depend_on_the_row_are_padded(tiny_models: Models, caplog: pytest.LogCaptureFixture) -> None:
    rotary = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = load(tiny_models["llama"][1], rope_parameters=rotary)
    assert "since its positions depend on how long a row is" in caplog.text
    assert model.config._attn_implementation != NAME


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_seen_tokens_count_a_shared_prompt_once(
    method: str, tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    original = PairTrainer.compute_loss

    def compute(self: PairTrainer, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        counts.append(distinct_tokens(inputs))
        return original(self, model, inputs, *given, **named)

    monkeypatch.setattr(PairTrainer, "compute_loss", compute)
    told: list[int] = []
    trainer = make_trainer(tiny_models["llama"][1], method=method, micro_batch_size=1, batch_size=1)
    trainer.train(PAIRS[:6], tmp_path / "out", tmp_path / "checkpoints", lambda _, tokens: told.append(tokens))
    assert sum(told) == sum(counts)
    prompts = [len(naive.prompt_ids(tiny_models["llama"][1], pair.prompt[0]["content"])) for pair in PAIRS[:6]]
    answers = [len(pair.chosen_token_ids or []) + len(pair.rejected_token_ids or []) for pair in PAIRS[:6]]
    assert sum(told) == (2 if method == "kto" else 1) * sum(prompts) + sum(answers)
