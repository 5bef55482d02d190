"""Training in several processes: what each one computes and who writes; the launcher chooses DDP, FSDP2 or ZeRO."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list

from crosspref.errors import RecipeError
from crosspref.ranks import is_main, processes
from crosspref.sections import TrainSettings

WHOLE = "crosspref_complete"
"""A file in each checkpoint, written last: a checkpoint without it was cut off by a kill."""

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
    sharded = any(os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED"))
    return torch.device("cpu") if sharded else device


def real_items(batches: int, rows: int, step: int, total: int, per_step: int) -> torch.Tensor:
    """Tell which items of this process's next micro-batches count.

    accelerate deals micro-batches out in turn, so that together the processes hold the items that one process would
    have in this step. Where the last ones do not go round it fills up with items from the beginning, for which there is
    nothing to learn twice.

    Args:
        batches: how many micro-batches this process has in the step.
        rows: items in each of them.
        step: number of the optimizer step within its epoch, from 0.
        total: items in an epoch.
        per_step: micro-batches that each process has in a whole step.

    Returns:
        (batches, rows), bool.
    """
    rank = int(os.environ.get("RANK", "0"))
    numbers = torch.arange(batches)[:, None] + step * per_step
    return (numbers * processes() + rank) * rows + torch.arange(rows) < total


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
    found = [_last_whole(checkpoints) if is_main() else None]
    if processes() > 1:
        broadcast_object_list(found)
    return found[0]


def _last_whole(checkpoints: Path) -> str | None:
    whole = []
    for folder in checkpoints.glob("checkpoint-*"):
        if (folder / WHOLE).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))) if whole else None
