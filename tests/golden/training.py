"""What tests of training share: pairs of very different lengths, trainers, and a look at gradients and weights."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from crosspref.data.records import Pair
from crosspref.engines import EngineSettings
from crosspref.engines.training.pairs import PairTrainer
from crosspref.engines.training.trainer import TrlTrainer
from crosspref.models.locate import locate_model
from crosspref.recipe.sections import LoraSettings, ResourceSettings, TrainSettings

END = 2
LORA = LoraSettings(rank=4, alpha=8)
Models = dict[str, tuple[Path, Path]]


def make_pair(index: int) -> Pair:
    """Return a pair of its own lengths: prompts of 7 to 60 tokens, responses of 1 to 60."""
    rng = random.Random(index)
    lengths = [(1, 60), (60, 1), (3, 5), (17, 2), (30, 31), (2, 40)][index % 6]
    chosen, rejected = ([*(rng.randrange(6, 380) for _ in range(length - 1)), END] for length in lengths)
    chat = [{"role": "user", "content": "ja " * rng.choice([1, 4, 25])}]
    answers = [[{"role": "assistant", "content": "not these words, but the ids"}]] * 2
    return Pair(f"p{index}", "es", chat, *answers, 0, 1, chosen, rejected, 0.5, 0.1, 0.0)


PAIRS = [make_pair(index) for index in range(16)]


def settings_of(**changes: Any) -> TrainSettings:
    """Settings under which nothing but the loss shapes the gradients."""
    plain = {"learning_rate": 1e-3, "scheduler": "constant", "warmup_ratio": 0.0, "max_grad_norm": 1e9}
    return TrainSettings(**{**plain, **changes})


def make_trainer(directory: Path, dtype: str = "float32", reference: Path | None = None, **changes: Any) -> TrlTrainer:
    settings = EngineSettings(resources=ResourceSettings(device="cpu", dtype=dtype), seed=1)
    other = None if reference is None else locate_model(str(reference))
    return TrlTrainer(settings, locate_model(str(directory)), other, training=settings_of(**changes))


class Watch(TrainerCallback):
    """Keeps the gradients before each optimizer step and the weights after it."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})

    def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Let the next trainers be watched."""
    watcher, original = Watch(), TrlTrainer._trainer

    def build(self: TrlTrainer, *arguments: Any) -> PairTrainer:
        trainer = original(self, *arguments)
        trainer.add_callback(watcher)
        return trainer

    monkeypatch.setattr(TrlTrainer, "_trainer", build)
    return watcher


def train(trainer: TrlTrainer, folder: Path, pairs: Sequence[Pair] = PAIRS) -> dict[str, Any]:
    return trainer.train(pairs, folder / "out", folder / "checkpoints", lambda *_: None)


class KilledError(Exception):
    """Stands for a SIGKILL."""


def train_until(trainer: TrlTrainer, folder: Path, step: int, pairs: Sequence[Pair] = PAIRS) -> None:
    """Train until the end of a step, before its checkpoint."""
    calls: list[int] = []

    def advance(pairs: int, _tokens: int) -> None:
        calls.append(pairs)
        if len(calls) == step:
            raise KilledError

    with pytest.raises(KilledError):
        trainer.train(pairs, folder / "out", folder / "checkpoints", advance)
    assert not (folder / "out").exists()


def other_prompt(pairs: Sequence[Pair], position: int) -> Pair:
    """Return the next pair, cyclically, that has another prompt."""
    rest = [*pairs[position + 1 :], *pairs[:position]]
    return next(pair for pair in rest if pair.prompt != pairs[position].prompt)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compare with a tolerance relative to the largest number of each tensor."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        limit = tolerance * max(float(tensor.abs().max()), 1e-3)
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=limit, msg=lambda text, name=name: f"{name}: {text}"
        )
