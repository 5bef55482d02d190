"""Eq. 11 as it is trained: the loss and its gradients against naive ones, and whatever they must not depend on."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from training import LORA, PAIRS, Models, assert_close, make_trainer, train, watch

from crosspref.data.records import Pair
from crosspref.engines.transformers import adapters
from crosspref.errors import ModelError
from crosspref.recipe.sections import LoraSettings


def naive_terms(policy: Any, reference: Any, directory: Path, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
    """Return Eq. 11's parts, (pairs,) each: every response by a forward pass of its own."""
    rows = []
    for pair in pairs:
        prompt = naive.prompt_ids(directory, pair.prompt[0]["content"])
        chosen, rejected = pair.chosen_token_ids or [], pair.rejected_token_ids or []
        ours = [naive.sequence_logprob(policy, prompt, ids) for ids in (chosen, rejected)]
        with torch.no_grad():
            theirs = [naive.sequence_logprob(reference, prompt, ids) for ids in (chosen, rejected)]
        rows.append(torch.stack([ours[0] - theirs[0], ours[1] - theirs[1], -ours[0] / len(chosen)]))
    chosen_ratio, rejected_ratio, nll = torch.stack(rows).unbind(1)
    dpo = (1 + (-0.1 * (chosen_ratio - rejected_ratio)).exp()).log()
    return {"chosen": chosen_ratio, "rejected": rejected_ratio, "dpo": dpo, "nll": nll}


def naive_gradients(directory: Path, pairs: Sequence[Pair]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the mean loss before the first step and its gradients."""
    policy, reference = naive.load(directory), naive.load(directory)
    terms = naive_terms(policy, reference, directory, pairs)
    loss = (terms["dpo"] + terms["nll"]).sum() / len(pairs)
    loss.backward()
    return float(loss.detach()), {name: parameter.grad for name, parameter in policy.named_parameters()}


@pytest.mark.parametrize("pairs", [16, 10, 1], ids=lambda pairs: f"{pairs}-pairs")
def test_loss_and_gradients_are_the_naive_ones_however_the_pairs_are_cut(
    pairs: int, tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny_models["llama"][1]
    loss, gradients = naive_gradients(directory, PAIRS[:pairs])
    assert float(gradients["lm_head.weight"].abs().max()) > 0.01
    watcher = watch(monkeypatch)
    for number, cut in enumerate(
        ({"micro_batch_size": 1}, {}, {"micro_batch_size": 16}, {"gradient_checkpointing": True})
    ):
        log = train(make_trainer(directory, **cut), tmp_path / str(number), PAIRS[:pairs])["log"]
        assert [entry["loss"] for entry in log] == pytest.approx([loss], abs=1e-4)
        assert log[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert log[0]["nll_loss"] == pytest.approx(loss - math.log(2), abs=1e-4)
    assert len(watcher.gradients) == 4
    for found in watcher.gradients:
        assert_close(found, gradients, 1e-4)


def test_a_token_mean_of_the_nll_would_be_noticed(tiny_models: Models) -> None:
    """TRL averages the NLL over the tokens of a micro-batch: with these pairs that is another number at each cut."""
    directory = tiny_models["llama"][1]
    model = naive.load(directory)
    with torch.no_grad():
        nll = naive_terms(model, model, directory, PAIRS)["nll"]
    lengths = torch.tensor([float(len(pair.chosen_token_ids or [])) for pair in PAIRS])
    cuts = {
        micro: float(((nll * lengths).view(-1, micro).sum(1) / lengths.view(-1, micro).sum(1)).mean())
        for micro in (1, 4, 16)
    }
    assert cuts[1] == pytest.approx(float(nll.mean()), abs=1e-4)
    assert abs(cuts[4] - cuts[1]) > 0.05
    assert abs(cuts[16] - cuts[1]) > 0.05


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_whole_trainings_share_a_trajectory_however_the_pairs_are_cut(
    lora: LoraSettings | None, tiny_models: Models, tmp_path: Path
) -> None:
    """Ten pairs in batches of four, twice: each pass ends with a batch of two."""
    logs = []
    for micro in (4, 2, 1):
        trainer = make_trainer(
            tiny_models["llama"][1], micro_batch_size=micro, batch_size=4, epochs=2, lora=lora, learning_rate=1e-4
        )
        figures = train(trainer, tmp_path / str(micro), PAIRS[:10])
        assert figures["steps"] == 6
        logs.append(figures["log"])
    for log in logs[1:]:
        for entry, first in zip(log, logs[0], strict=True):
            for name in ("loss", "preference_loss", "nll_loss", "margin", "chosen_log_ratio", "rejected_log_ratio"):
                assert entry[name] == pytest.approx(first[name], abs=2e-3), name
    assert logs[0][-1]["loss"] < logs[0][0]["loss"]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_reference_is_the_starting_policy(
    lora: LoraSettings | None, tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial, start = tiny_models["llama"]
    watcher = watch(monkeypatch)
    merged: list[dict[str, torch.Tensor]] = []
    if lora:
        # After the first step, what the adapters are worth in the weights.
        def keep(*_: Any, model: Any = None, **__: Any) -> None:
            model.merge_adapter()
            merged.append({name: value.clone() for name, value in model.get_base_model().state_dict().items()})
            model.unmerge_adapter()

        monkeypatch.setattr(watcher, "on_step_end", keep)
    log = train(
        make_trainer(start, micro_batch_size=4, batch_size=16, epochs=2, lora=lora, learning_rate=3e-3), tmp_path
    )["log"]
    assert (log[0]["chosen_log_ratio"], log[0]["rejected_log_ratio"], log[0]["margin"]) == (0, 0, 0)
    policy = naive.load(start)
    if lora:
        weights = {name.replace(".base_layer", ""): value for name, value in merged[0].items() if "lora_" not in name}
        policy.load_state_dict(weights)
    else:
        policy.load_state_dict(watcher.weights[0])
    with torch.no_grad():
        terms = naive_terms(policy, naive.load(start), start, PAIRS)
        wrong = naive_terms(policy, naive.load(initial), start, PAIRS)
    assert log[1]["preference_loss"] == pytest.approx(float(terms["dpo"].mean()), abs=1e-4)
    assert log[1]["nll_loss"] == pytest.approx(float(terms["nll"].mean()), abs=1e-4)
    assert log[1]["loss"] == pytest.approx(float((terms["dpo"] + terms["nll"]).mean()), abs=2e-4)
    assert log[1]["chosen_log_ratio"] == pytest.approx(float(terms["chosen"].mean()), abs=1e-3)
    assert log[1]["rejected_log_ratio"] == pytest.approx(float(terms["rejected"].mean()), abs=1e-3)
    accuracy = float((terms["chosen"] > terms["rejected"]).float().mean())
    assert log[1]["accuracy"] == pytest.approx(accuracy)
    # The step was large enough to tell: another reference or swapped responses give other numbers.
    assert abs(float(terms["dpo"].mean()) - math.log(2)) > 0.01
    assert abs(float(wrong["dpo"].mean() - terms["dpo"].mean())) > 0.01
    assert abs(float(terms["chosen"].mean())) > 0.05


@pytest.mark.parametrize(("nll_weight", "beta"), [(0.0, 0.1), (2.5, 0.1), (1.0, 0.7)])
def test_weight_and_beta_arrive(nll_weight: float, beta: float, tiny_models: Models, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_models["llama"][1], batch_size=4, epochs=2, nll_weight=nll_weight, beta=beta)
    log = train(trainer, tmp_path, PAIRS[:4])["log"]
    model = naive.load(tiny_models["llama"][1])
    with torch.no_grad():
        nll = float(naive_terms(model, model, tiny_models["llama"][1], PAIRS[:4])["nll"].mean())
    assert log[0]["loss"] == pytest.approx(math.log(2) + nll_weight * nll, abs=1e-4)
    assert log[1]["margin"] == pytest.approx(
        beta * (log[1]["chosen_log_ratio"] - log[1]["rejected_log_ratio"]), abs=1e-4
    )


def louder(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1.01)


def dropout(model: Any) -> None:
    model.config.attention_dropout = 0.3
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3


@pytest.mark.parametrize("spoil", [louder, dropout])
def test_a_log_ratio_other_than_0_stops_the_run_before_the_first_step(
    spoil: Callable[[Any], None], tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, original, loaded = watch(monkeypatch), adapters.load_model, []

    def load(*arguments: Any) -> Any:
        model = original(*arguments)
        loaded.append(model)
        if len(loaded) == 1:
            spoil(model)
        return model

    monkeypatch.setattr(adapters, "load_model", load)
    with pytest.raises(ModelError, match="the policy and its reference differ by"):
        train(make_trainer(tiny_models["llama"][1]), tmp_path)
    assert len(loaded) == 2
    assert not watcher.gradients
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma"])
def test_in_bfloat16_policy_and_reference_still_start_equal(
    kind: str, lora: LoraSettings | None, tiny_models: Models, tmp_path: Path
) -> None:
    """Both must be computed in the same number format, or the log-ratio holds the rounding of one of them."""
    trainer = make_trainer(tiny_models[kind][1], dtype="bfloat16", lora=lora, batch_size=16, micro_batch_size=8)
    [entry] = train(trainer, tmp_path)["log"]
    assert (entry["chosen_log_ratio"], entry["rejected_log_ratio"]) == (0, 0)
    assert entry["preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
