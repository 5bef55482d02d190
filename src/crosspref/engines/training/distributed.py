"""Training in several processes: what each computes, and which one writes; the launcher chooses DDP, FSDP2 or ZeRO."""

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, TorchDynamoPlugin, broadcast_object_list
from transformers import TrainerCallback

from crosspref.errors import RecipeError
from crosspref.protocols import Advance
from crosspref.recipe.sections import TrainSettings
from crosspref.run.ranks import is_main, processes, rank

T = TypeVar("T")

_CHECKPOINT = re.compile(r"checkpoint-\d+")

WHOLE = "crosspref_complete"
"""A file in each checkpoint, written last: a checkpoint without it was cut off by a kill."""

CHECKPOINT_SECONDS = 480.0
"""A checkpoint is also written when the last one is so old, so that a kill costs less than ten minutes."""

SAVING_SHARE = 0.1
"""The share of the time that such checkpoints may take; those of a large model take long to write."""

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def accumulation_steps(settings: TrainSettings) -> int:
    """Return how many micro-batches each process computes per optimizer step.

    Raises:
        RecipeError: the batch cannot be dealt out evenly.
    """
    together = settings.micro_batch_size * processes()
    if settings.batch_size % together:
        raise RecipeError(
            f"train.batch_size {settings.batch_size} cannot be dealt out to {processes()} processes in micro-batches "
            f"of {settings.micro_batch_size} (train.micro_batch_size): make it a multiple of {together}, or use "
            "smaller micro-batches or fewer processes. Neither changes the loss."
        )
    return settings.batch_size // together


def loading_device(device: torch.device) -> torch.device:
    """Return where weights are read to: what FSDP or DeepSpeed is going to cut up need not fit on one device."""
    return torch.device("cpu") if _wants("FSDP") or _wants("DEEPSPEED") else device


def shard_on_cpu(mixed_precision: str) -> None:
    """Let accelerate do FSDP in processes without accelerators; it would fall back to DDP there and not say so.

    accelerate 1.15 asks for FSDP only where it found accelerators, though torch's FSDP2 and gloo need none. Its shared
    state, which the next ``Accelerator`` takes over, is therefore made here. Call it after the training arguments.
    """
    partial = PartialState()
    if not _wants("FSDP") or partial.distributed_type != DistributedType.MULTI_CPU:
        return
    plugin = FullyShardedDataParallelPlugin()
    if mixed_precision != "no":
        plugin.set_mixed_precision(mixed_precision)
    partial.distributed_type = DistributedType.FSDP
    dynamo = TorchDynamoPlugin()
    state = AcceleratorState(
        mixed_precision, cpu=True, dynamo_plugin=dynamo, fsdp_plugin=plugin, _from_accelerator=True
    )
    state.fsdp_plugin = plugin


def _wants(kind: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true"


def real_items(batches: int, rows: int, step: int, total: int, per_step: int) -> torch.Tensor:
    """Tell which items of this process's next micro-batches count.

    accelerate deals micro-batches out in turn, so that together the processes hold the items that one process would
    have in this step. Where the last ones do not go round it fills up with items from the beginning, which
    must not be learned twice.

    Args:
        batches: how many micro-batches this process has in the step.
        rows: items in each of them.
        step: number of the optimizer step within its epoch, from 0.
        total: items in an epoch.
        per_step: micro-batches that each process has in a whole step.

    Returns:
        (batches, rows), bool.
    """
    numbers = torch.arange(batches)[:, None] + step * per_step
    return (numbers * processes() + rank()) * rows + torch.arange(rows) < total


def whole_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """Gather weights that are cut up over the processes; None if each holds them all. Every process must call this.

    Only rank 0 gets them; the others an empty or partial dictionary.
    """
    if trainer.accelerator.distributed_type not in SHARDED:
        return None
    weights: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


def last_checkpoint(checkpoints: Path) -> str | None:
    """Return the newest whole checkpoint and remove those that a kill cut off; rank 0 decides for all."""
    return _agree(_last_whole(checkpoints) if is_main() else None)


def _agree(value: T) -> T:
    """Return rank 0's value in every process."""
    values = [value]
    if processes() > 1:
        broadcast_object_list(values)
    return values[0]


def _last_whole(checkpoints: Path) -> str | None:
    whole = []
    for folder in checkpoints.glob("checkpoint-*"):
        if not (folder.is_dir() and _CHECKPOINT.fullmatch(folder.name)):
            continue
        if (folder / WHOLE).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))) if whole else None


class Progress(TrainerCallback):  # type: ignore[misc]
    """Shows progress, asks for checkpoints when the last one is old, and marks those that were written whole."""

    def __init__(self, trainer: Any, advance: Advance, pairs: int, pairs_per_step: float) -> None:
        self.trainer, self.advance, self.total, self.pairs_per_step = trainer, advance, pairs, pairs_per_step
        self.done, self.tokens = 0, 0
        self.saved = self.stepped = time.monotonic()
        self.saving = 0.0

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the pairs and tokens of a step; the last step alone is no reason to save a checkpoint."""
        self.stepped = time.monotonic()
        if _agree(self.stepped - self.saved >= max(CHECKPOINT_SECONDS, self.saving / SAVING_SHARE)):
            control.should_save = True
        done = min(int(state.global_step * self.pairs_per_step), self.total)
        if state.global_step >= state.max_steps:
            done = self.total
            if state.global_step % state.save_steps:
                control.should_save = False  # it is several times the policy, which is written next
        self.advance(done - self.done, self.trainer.seen_tokens - self.tokens)
        self.done, self.tokens = done, self.trainer.seen_tokens

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Mark the checkpoint that was just written, once every process has written its part."""
        self.trainer.accelerator.wait_for_everyone()
        if is_main():
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()
        self.saved = time.monotonic()
        self.saving = self.saved - self.stepped
