"""The line on training: optimizer steps of crosspref and of TRL's DPOTrainer by turns, each in its own process."""

import math
import tempfile
from pathlib import Path
from typing import Any

import rivals
import torch
from lines import reached
from prepared import Prepared
from stepping import Pause, Stepper
from timing import ratios, spread, take_turns
from transformers import TrainerCallback

from crosspref.engines.training.trainer import example_of
from crosspref.engines.transformers.models import readable_directory
from crosspref.recipe.sections import TrainSettings


def settings(work: Prepared, epochs: int) -> TrainSettings:
    """Return crosspref's defaults, but for what makes the work equal: all pairs in one step, as often as asked."""
    found: TrainSettings = work.recipe(
        train={"batch_size": work.options.pairs, "micro_batch_size": micro_batch(work.options.pairs), "epochs": epochs}
    ).train
    return found


def micro_batch(pairs: int) -> int:
    """Return crosspref's default of 4 pairs per forward pass, or what divides the pairs of a step."""
    return math.gcd(pairs, TrainSettings().micro_batch_size)


def own_training(pause: Pause, work: Prepared, steps: int, folder: str) -> list[dict[str, Any]]:
    """Train by crosspref and return what was logged of each step."""
    trainer = work.engines().trainer(work.policy, settings(work, steps))
    pairs = work.pairs(work.options.pairs)
    figures = trainer.train(pairs, Path(folder) / "own", Path(folder) / "checkpoints", lambda *_: pause())
    log: list[dict[str, Any]] = figures["log"]
    return log


class _Pausing(TrainerCallback):  # type: ignore[misc]
    def __init__(self, pause: Pause) -> None:
        self.pause = pause

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Wait for the next turn."""
        self.pause()


def trl_training(pause: Pause, work: Prepared, steps: int, folder: str) -> list[dict[str, Any]]:
    """Train by TRL and return what was logged of each step."""
    trainer = trl_trainer(work, Path(folder) / "trl", [_Pausing(pause)], num_train_epochs=steps)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def trl_trainer(work: Prepared, output: Path, callbacks: list[TrainerCallback], **changes: Any) -> Any:
    """Return TRL's trainer on the workload's pairs; its weights are float32, as its default is and crosspref's, too."""
    torch.set_num_threads(work.options.threads)
    directory = readable_directory(work.policy)
    models = rivals.load(directory, torch.float32), rivals.load(directory, torch.float32)
    tokenizer = work.tokenizer()
    examples = [example_of(pair, tokenizer) for pair in work.pairs(work.options.pairs)]
    changes = {"learning_rate": settings(work, 1).learning_rate, "bf16": work.options.dtype == "bfloat16", **changes}
    # Its default batch is 8 pairs: fewer are one smaller batch, more are accumulated.
    accumulated = max(1, work.options.pairs // 8)
    return rivals.dpo_trainer(
        examples, models, tokenizer.tokenizer, output, callbacks, gradient_accumulation_steps=accumulated, **changes
    )


def measure_training(work: Prepared) -> dict[str, dict[str, Any]]:
    """Measure optimizer steps on the same pairs, policy and reference pass, forward, backward and update."""
    work = work.short()
    rounds, pairs = work.options.rounds, work.options.pairs
    with tempfile.TemporaryDirectory() as folder:
        given = (work, rounds + 1, folder)
        with Stepper(own_training, *given) as own, Stepper(trl_training, *given) as theirs:
            for stepper in (own, theirs):
                stepper.step()  # loads, and what is done once is done
            seconds, _ = take_turns({"crosspref": own.step, "TRL": theirs.step}, rounds)
    logs = {"crosspref": own.result, "TRL": theirs.result}
    for log in logs.values():
        updated = [float(entry["grad_norm"]) * float(entry["learning_rate"]) > 0 for entry in log[1:]]
        assert updated == [True] * rounds, "a training made no optimizer updates in the steps that were measured"
    first = {name: float(log[0]["loss"]) for name, log in logs.items()}
    # TRL averages the NLL over the tokens of a batch, crosspref over pairs, by Eq. 11.
    assert abs(first["crosspref"] - first["TRL"]) < 0.3, f"the losses of the same pairs differ: {first}"
    losses = {f"{name}, first loss": loss for name, loss in first.items()}
    said = {f"{name}, pairs/s": pairs / spread(values)["median"] for name, values in seconds.items()}
    tokens = sum(
        len(ids or ()) for pair in work.pairs(pairs) for ids in (pair.chosen_token_ids, pair.rejected_token_ids)
    )
    speed = ratios(seconds["TRL"], seconds["crosspref"])
    return {"training": reached("training", speed, pairs_per_step=pairs, response_tokens=tokens, **said, **losses)}
