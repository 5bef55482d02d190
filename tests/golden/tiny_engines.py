"""What tests of samplers, scorers and translators share: engines of tiny models in float32, and changed copies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from crosspref.engines import EngineSettings
from crosspref.engines.transformers.sampler import TransformersSampler
from crosspref.engines.transformers.scorer import TransformersScorer
from crosspref.models.locate import locate_model
from crosspref.recipe.sections import AskingSettings, ResourceSettings, RewardSettings, SampleSettings

KINDS = ["llama", "qwen", "gemma"]
RESOURCES = ResourceSettings(device="cpu", dtype="float32")
NATS = 1e-4
"""By how much the log-probability of a sequence may differ."""
EOS, END = 1, 2
"""The tokens that end a response of a tiny model."""
Models = dict[str, tuple[Path, Path]]


def make_sampler(
    directory: Path, *, greedy: bool = False, asking: AskingSettings | None = None, **settings: Any
) -> TransformersSampler:
    sample = SampleSettings(**{"max_new_tokens": 24, **settings})
    given = EngineSettings(sample=sample, resources=RESOURCES, asking=asking or AskingSettings())
    return TransformersSampler(given, locate_model(str(directory)), greedy=greedy)


def make_scorer(
    policy: Path, reference: Path | None, *, asking: AskingSettings | None = None, **settings: Any
) -> TransformersScorer:
    given = EngineSettings(reward=RewardSettings(**settings), resources=RESOURCES, asking=asking or AskingSettings())
    other = None if reference is None else locate_model(str(reference))
    return TransformersScorer(given, locate_model(str(policy)), other)


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def copy_with(source: Path, target: Path, file: str, **changes: Any) -> Path:
    """Copy a model with entries of one of its JSON files changed."""
    shutil.copytree(source, target)
    change_json(target / file, **changes)
    return target


def copy_with_weights(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Copy a model whose tensors ``change`` has changed."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target
