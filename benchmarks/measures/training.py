"""The line on training: optimizer steps of crosspref and of TRL's DPOTrainer alternate, each in its own process."""

import math
import tempfile
from pathlib import Path
from typing import Any

import rivals
import torch
from lines import reached
from timing import Pause, Stepper, alternate, ratios, spread
from transformers import TrainerCallback
from workload import Workload

from crosspref.engines.training.trainer import example_of
from crosspref.engines.transformers.models import readable_directory
from crosspref.recipe.sections import TrainSettings


def settings(pairs: int, epochs: int = 1) -> TrainSettings:
    """Return crosspref's defaults, apart from what makes the work equal: so many pairs in one step, as often as asked.

    A forward pass has crosspref's default of 4 pairs, or what divides the pairs of a step.
    """
    micro_batch = math.gcd(pairs, TrainSettings().micro_batch_size)
    return TrainSettings(batch_size=pairs, micro_batch_size=micro_batch, epochs=epochs)


def crosspref_training(pause: Pause, work: Workload, steps: int, folder: str) -> list[dict[str, Any]]:
    """Train by crosspref and return what was logged of each step."""
    trainer = work.engines().trainer(work.policy, settings(work.options.pairs, steps))
    pairs = work.pairs(work.options.pairs)
    figures = trainer.train(pairs, Path(folder) / "crosspref", Path(folder) / "checkpoints", lambda *_: pause())
    log: list[dict[str, Any]] = figures["log"]
    return log


class _Pausing(TrainerCallback):  # type: ignore[misc]
    def __init__(self, pause: Pause) -> None:
        self.pause = pause

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Wait for the next turn."""
        self.pause()


def trl_training(pause: Pause, work: Workload, steps: int, folder: str) -> list[dict[str, Any]]:
    """Train by TRL and return what was logged of each step; its weights are float32, as its default and crosspref's."""
    torch.set_num_threads(work.options.threads)
    directory, tokenizer, pairs = readable_directory(work.policy), work.tokenizer(), work.options.pairs
    trainer = rivals.dpo_trainer(
        [example_of(pair, tokenizer) for pair in work.pairs(pairs)],
        (rivals.load(directory, torch.float32), rivals.load(directory, torch.float32)),
        tokenizer.tokenizer,
        Path(folder) / "trl",
        callbacks=[_Pausing(pause)],
        # Its default batch is 8 pairs: fewer are one smaller batch, more are accumulated.
        gradient_accumulation_steps=max(1, pairs // 8),
        learning_rate=TrainSettings().learning_rate,
        bf16=work.options.dtype == "bfloat16",
        num_train_epochs=steps,
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def measure(work: Workload) -> dict[str, dict[str, Any]]:
    """Measure optimizer steps on the same pairs: policy and reference pass, forward, backward and update."""
    work = work.short()
    rounds, count = work.options.rounds, work.options.pairs
    with tempfile.TemporaryDirectory() as folder:
        given = (work, rounds + 1, folder)
        with Stepper(crosspref_training, *given) as ours, Stepper(trl_training, *given) as theirs:
            for stepper in (ours, theirs):
                stepper.step()  # loads, and what is done once is done
            seconds, _ = alternate({"crosspref": ours.step, "TRL": theirs.step}, rounds)
    logs = {"crosspref": ours.result, "TRL": theirs.result}
    for log in logs.values():
        updated = [float(entry["grad_norm"]) * float(entry["learning_rate"]) > 0 for entry in log[1:]]
        assert updated == [True] * rounds, "a training made no optimizer updates in the steps that were measured"
    losses = {f"{name}, first loss": float(log[0]["loss"]) for name, log in logs.items()}
    # TRL averages the NLL over the tokens of a batch, crosspref over pairs, by Eq. 11.
    apart = max(losses.values()) - min(losses.values())
    assert apart < 0.3, f"the losses of the same pairs differ: {losses}"
    speeds = {f"{name}, pairs/s": count / spread(values)["median"] for name, values in seconds.items()}
    ids = [ids for pair in work.pairs(count) for ids in (pair.chosen_token_ids, pair.rejected_token_ids)]
    figures = {"pairs_per_step": count, "response_tokens": sum(len(tokens or ()) for tokens in ids), **speeds, **losses}
    return {"training": reached("training", ratios(seconds["TRL"], seconds["crosspref"]), **figures)}
