"""Every method as it is trained: against naive losses and gradients, and whatever they must not depend on."""

import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from training import LORA, PAIRS, Models, assert_close, make_trainer, other_prompt, train, watch

from crosspref.data.records import Pair
from crosspref.engines.training.pairs import PairTrainer
from crosspref.engines.training.trainer import TrlTrainer
from crosspref.engines.transformers import adapters
from crosspref.errors import ModelError
from crosspref.recipe.sections import LoraSettings

pytestmark = pytest.mark.slow

METHODS = ["dpo", "ipo", "simpo", "orpo", "kto"]
BETA, NLL_WEIGHT, GAMMA, DESIRABLE, UNDESIRABLE = 0.3, 0.7, 0.4, 1.3, 0.6
SETTINGS = {
    "beta": BETA,
    "nll_weight": NLL_WEIGHT,
    "gamma": GAMMA,
    "desirable_weight": DESIRABLE,
    "undesirable_weight": UNDESIRABLE,
}


def naive_logprobs(model: Any, directory: Path, pairs: Sequence[Pair]) -> torch.Tensor:
    """Return log pi of chosen, rejected, mismatched chosen and mismatched rejected, (pairs, 4)."""
    rows = []
    for position, pair in enumerate(pairs):
        prompt, other = naive.prompt_ids(directory, pair.prompt[0]["content"]), other_prompt(pairs, position)
        four = (pair.chosen_token_ids, pair.rejected_token_ids, other.chosen_token_ids, other.rejected_token_ids)
        rows.append(torch.stack([naive.sequence_logprob(model, prompt, ids or []) for ids in four]))
    return torch.stack(rows)


def naive_items(method: str, policy: torch.Tensor, reference: torch.Tensor, pairs: Sequence[Pair]) -> torch.Tensor:
    """Return each pair's or example's loss with its NLL term, by the papers' equations as they are printed."""
    sigmoid = torch.sigmoid
    lengths = torch.tensor([[len(pair.chosen_token_ids or []), len(pair.rejected_token_ids or [])] for pair in pairs])
    means = policy[:, :2] / lengths
    ratios = policy - reference
    nll = NLL_WEIGHT * -means[:, 0]
    if method == "dpo":
        return -sigmoid(BETA * (ratios[:, 0] - ratios[:, 1])).log() + nll
    if method == "ipo":
        margins = ratios[:, 0] / lengths[:, 0] - ratios[:, 1] / lengths[:, 1]
        return (margins - 1 / (2 * BETA)).square() + nll
    if method == "simpo":
        return -sigmoid(BETA * means[:, 0] - BETA * means[:, 1] - GAMMA).log() + nll
    if method == "orpo":
        odds = means.exp() / (1 - means.exp())
        return -BETA * sigmoid((odds[:, 0] / odds[:, 1]).log()).log() + nll
    kl = ratios[:, 2:].mean().clamp(min=0).detach()
    desirable = DESIRABLE - DESIRABLE * sigmoid(BETA * (ratios[:, 0] - kl)) + nll
    undesirable = UNDESIRABLE - UNDESIRABLE * sigmoid(BETA * (kl - ratios[:, 1]))
    return torch.cat([desirable, undesirable])


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_are_the_naive_ones_however_the_step_is_cut(
    method: str, tiny_models: Models, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirteen pairs, so that the last micro-batch is a smaller one; the reference is another model than the start."""
    start, pairs = tiny_models["llama"][1], PAIRS[:13]
    policy = naive.load(start)
    with torch.no_grad():
        other = naive_logprobs(naive.load(reference), start, pairs)
    items = naive_items(method, naive_logprobs(policy, start, pairs), other, pairs)
    assert len(items) == 26 if method == "kto" else 13
    items.mean().backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters()}
    watcher = watch(monkeypatch)
    given = reference if method in ("dpo", "ipo", "kto") else None
    for micro in (1, 4, 32):
        cut = {"batch_size": 32, "micro_batch_size": micro, "gradient_checkpointing": micro == 4}
        log = train(
            make_trainer(start, method=method, reference=given, **cut, **SETTINGS), tmp_path / str(micro), pairs
        )["log"]
        assert [entry["loss"] for entry in log] == pytest.approx([float(items.mean().detach())], abs=2e-4)
        assert log[0]["loss"] == pytest.approx(log[0]["preference_loss"] + log[0]["nll_loss"], abs=1e-4)
        assert log[0].get("kl", 1) > 0.1  # at 0, a wrong z_ref might not show
    assert len(watcher.gradients) == 3
    for found in watcher.gradients:
        assert_close(found, gradients, 2e-4)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_whole_trainings_share_a_trajectory_however_the_steps_are_cut(
    method: str, lora: LoraSettings | None, tiny_models: Models, tmp_path: Path
) -> None:
    """Five pairs in batches of four, twice: each pass ends with a batch of one pair, or of two examples."""
    logs = []
    for micro in (4, 2, 1):
        changes = {"batch_size": 4, "epochs": 2, "learning_rate": 3e-4, "lora": lora, **SETTINGS}
        trainer = make_trainer(tiny_models["llama"][1], method=method, micro_batch_size=micro, **changes)
        figures = train(trainer, tmp_path / str(micro), PAIRS[:5])
        assert figures["pairs"] == 5
        assert figures["steps"] == (6 if method == "kto" else 4)
        logs.append(figures["log"])
    for log in logs[1:]:
        for entry, first in zip(log, logs[0], strict=True):
            assert entry.keys() == first.keys()
            for name in first.keys() - {"epoch", "grad_norm"}:
                assert math.isfinite(first[name])
                assert entry[name] == pytest.approx(first[name], rel=1e-3, abs=2e-3), name
    assert {"preference_loss", "nll_loss", "margin", "accuracy"} <= logs[0][0].keys()


def mean_terms(policy: Any, reference: Any, directory: Path) -> dict[str, float]:
    """Return what a training with the default settings logs of all pairs, from forward passes of their own."""
    with torch.no_grad():
        ours, theirs = (naive_logprobs(model, directory, PAIRS)[:, :2] for model in (policy, reference))
    chosen, rejected = (ours - theirs).unbind(1)
    lengths = torch.tensor([len(pair.chosen_token_ids or []) for pair in PAIRS])
    terms = {
        "preference_loss": (1 + (-0.1 * (chosen - rejected)).exp()).log(),
        "nll_loss": -ours[:, 0] / lengths,
        "chosen_log_ratio": chosen,
        "rejected_log_ratio": rejected,
        "accuracy": (chosen > rejected).float(),
    }
    return {name: float(values.mean()) for name, values in terms.items()}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_without_another_reference_it_is_the_starting_policy(
    lora: LoraSettings | None, tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of the second step, whose policy is what the first one made of the start."""
    initial, start = tiny_models["llama"]
    watcher = watch(monkeypatch)
    after: list[dict[str, torch.Tensor]] = []

    def keep(*_: Any, model: Any = None, **__: Any) -> None:
        model.merge_adapter() if lora else None
        base = model.get_base_model() if lora else model
        after.append({name.replace(".base_layer", ""): value.clone() for name, value in base.state_dict().items()})
        model.unmerge_adapter() if lora else None

    monkeypatch.setattr(watcher, "on_step_end", keep)
    changes = {"batch_size": 16, "micro_batch_size": 4, "epochs": 2, "lora": lora, "learning_rate": 3e-3}
    log = train(make_trainer(start, **changes), tmp_path)["log"]
    assert (log[0]["chosen_log_ratio"], log[0]["rejected_log_ratio"], log[0]["margin"]) == (0, 0, 0)
    policy = naive.load(start)
    policy.load_state_dict({name: value for name, value in after[0].items() if "lora_" not in name})
    expected = mean_terms(policy, naive.load(start), start)
    assert {name: log[1][name] for name in expected} == pytest.approx(expected, abs=1e-3)
    # The step was large enough to tell: another reference or swapped responses give other numbers.
    wrong = mean_terms(policy, naive.load(initial), start)
    assert abs(expected["preference_loss"] - math.log(2)) > 0.01
    assert abs(wrong["preference_loss"] - expected["preference_loss"]) > 0.01
    assert abs(expected["chosen_log_ratio"]) > 0.05


def louder(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1.01)


def dropout(model: Any) -> None:
    model.config.attention_dropout = 0.3
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3


@pytest.mark.parametrize(("method", "spoil"), [("dpo", louder), ("dpo", dropout), ("kto", louder)])
def test_a_log_ratio_other_than_0_stops_the_run_before_the_first_step(
    method: str, spoil: Callable[[Any], None], tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, original, loaded = watch(monkeypatch), adapters.load_model, []

    def load(*arguments: Any) -> Any:
        model = original(*arguments)
        loaded.append(model)
        if len(loaded) == 1:
            spoil(model)
        return model

    monkeypatch.setattr(adapters, "load_model", load)
    with pytest.raises(ModelError):
        train(make_trainer(tiny_models["llama"][1], method=method), tmp_path)
    assert len(loaded) == 2
    assert not watcher.gradients
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(("method", "kind"), [("dpo", "llama"), ("dpo", "qwen"), ("dpo", "gemma"), ("kto", "llama")])
def test_in_bfloat16_policy_and_reference_still_start_equal(
    method: str, kind: str, lora: LoraSettings | None, tiny_models: Models, tmp_path: Path
) -> None:
    """Both must be computed in one number format, or their log-ratio and z_ref hold the rounding of one of them."""
    changes = {"dtype": "bfloat16", "batch_size": 32, "micro_batch_size": 8}
    [entry] = train(make_trainer(tiny_models[kind][1], method=method, lora=lora, **changes), tmp_path)["log"]
    assert (entry["margin"], entry.get("kl", 0), entry.get("chosen_log_ratio", 0)) == (0, 0, 0)
    assert entry["preference_loss"] == pytest.approx(math.log(2) if method == "dpo" else 0.5, abs=1e-6)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["simpo", "orpo"])
def test_methods_without_a_reference_load_and_run_none(
    method: str, lora: LoraSettings | None, tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, loaded, built = tiny_models["llama"][1], [], []
    original = torch.nn.Module.__init__

    def count(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        built.append(type(self).__name__)
        original(self, *args, **kwargs)

    def save(self: TrlTrainer, trainer: PairTrainer, output: Path) -> None:
        loaded.append(trainer.ref_model)  # and nothing is saved, which would load the model again to merge adapters

    def fail(*_: Any) -> None:
        raise AssertionError("a forward pass of the reference")

    monkeypatch.setattr(torch.nn.Module, "__init__", count)
    monkeypatch.setattr(TrlTrainer, "_save", save)
    monkeypatch.setattr(PairTrainer, "_reference", fail)
    # Even if one is given: another model, which would be loaded.
    trainer = make_trainer(start, method=method, lora=lora, reference=tiny_models["llama"][0])
    assert train(trainer, tmp_path)["steps"] == 1
    assert built.count("LlamaForCausalLM") == 1
    assert loaded == [None]


def test_the_count_of_models_sees_a_reference(
    tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that is the start itself is no second model beside adapters, and is checked before the first step."""
    start, loaded = tiny_models["llama"][1], []
    original = adapters.load_model
    monkeypatch.setattr(adapters, "load_model", lambda *given: loaded.append(given[0]) or original(*given))
    monkeypatch.setattr(TrlTrainer, "_save", lambda *_: None)
    for number, (lora, reference, expected) in enumerate(
        [
            (None, None, [start, start]),
            (LORA, None, [start]),
            (None, start, [start, start]),
            (LORA, start, [start]),
            (LORA, tiny_models["llama"][0], [start, tiny_models["llama"][0]]),
        ]
    ):
        train(make_trainer(start, lora=lora, reference=reference), tmp_path / str(number), PAIRS[:2])
        assert loaded == expected
        loaded.clear()


@pytest.mark.parametrize("method", ["dpo", "ipo"])
def test_adapters_beside_another_reference(method: str, tiny_models: Models, reference: Path, tmp_path: Path) -> None:
    start = tiny_models["llama"][1]
    [entry] = train(make_trainer(start, method=method, lora=LORA, reference=reference), tmp_path)["log"]
    with torch.no_grad():
        policy, other = (naive_logprobs(naive.load(model), start, PAIRS) for model in (start, reference))
    chosen, rejected = (policy - other)[:, :2].mean(0).tolist()
    assert min(abs(chosen), abs(rejected)) > 0.1  # nothing that rounding could make
    assert entry["chosen_log_ratio"] == pytest.approx(chosen, abs=5e-4)
    assert entry["rejected_log_ratio"] == pytest.approx(rejected, abs=5e-4)


def test_a_reference_with_another_tokenizer_is_refused(tiny_models: Models, tmp_path: Path) -> None:
    initial, start = tiny_models["llama"]
    other = Path(shutil.copytree(initial, tmp_path / "other"))
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(ModelError, match=re.escape(str(other))):
        make_trainer(start, reference=other)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_stops_the_training_where_it_happens(
    method: str, tiny_models: Models, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_models["llama"][1], method=method, batch_size=4, epochs=3, checkpoint_every=1)
    trainer.settings = trainer.settings.model_copy(update={"learning_rate": 1e30})  # which no recipe can ask for
    with pytest.raises(ModelError, match="step 2"):
        train(trainer, tmp_path, PAIRS[:8])
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_gradient_that_is_not_finite_stops_the_training_before_it_is_saved(
    tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = adapters.load_model

    def load(*arguments: Any) -> Any:
        model = original(*arguments)
        model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
        return model

    monkeypatch.setattr(adapters, "load_model", load)
    with pytest.raises(ModelError, match="step 1"):
        train(make_trainer(tiny_models["llama"][1], checkpoint_every=1), tmp_path)
    assert not list((tmp_path / "checkpoints").glob("checkpoint-*"))
