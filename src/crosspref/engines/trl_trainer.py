"""Training on pairs: what is loaded, which trainer does the steps, and what is written; checkpoints and resuming."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports each training to the hub otherwise

import datasets
import peft
import torch
import transformers
from transformers import TrainerCallback
from trl import DPOConfig

from crosspref.engines.adapters import (
    REFERENCE,
    add_adapter,
    goes_on,
    load_files,
    load_to_go_on,
    lora_config,
    save_adapter,
)
from crosspref.engines.kto_trainer import KtoCollator, KtoTrainer, kto_examples
from crosspref.engines.pair_trainer import PairTrainer
from crosspref.engines.protocols import Advance
from crosspref.engines.transformers_models import (
    ChatTokenizer,
    free_memory,
    load_tokenizer,
    pick_device,
    pick_dtype,
    readable_directory,
    require_known_head,
)
from crosspref.errors import DataError
from crosspref.models import ModelFiles, require_same_lora
from crosspref.records import Message, Pair
from crosspref.resources import ResourceSettings
from crosspref.sections import REFERENCE_FREE, TrainSettings
from crosspref.tokenizer_files import require_same_tokenizer

LOG_RATIO_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""By how many nats per sequence policy and reference may differ before the first step, where they are one model."""

WHOLE = "crosspref_complete"
"""A file in each checkpoint, written last: a checkpoint without it was cut off by a kill."""


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Shows progress, and marks checkpoints that were written whole."""

    def __init__(self, advance: Advance, pairs: int, pairs_per_step: float, epochs: int) -> None:
        self.advance, self.total, self.pairs_per_step = advance, pairs * epochs, pairs_per_step
        self.done = 0
        self.trainer: PairTrainer | None = None
        self.tokens = 0

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Count the pairs and tokens of a step."""
        assert self.trainer is not None  # noqa: S101 - set right after the trainer is built
        done = min(int(state.global_step * self.pairs_per_step), self.total)
        if state.global_step >= state.max_steps:
            done = self.total
        self.advance(done - self.done, self.trainer.seen_tokens - self.tokens)
        self.done, self.tokens = done, self.trainer.seen_tokens

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Mark the checkpoint that was just written."""
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()


class TrlTrainer:
    """Trains a policy by the method that the settings name.

    Its reference, where the method has one, is ``reference``, or without that the policy as it was before training.
    """

    def __init__(
        self,
        policy: ModelFiles,
        settings: TrainSettings,
        resources: ResourceSettings,
        seed: int,
        reference: ModelFiles | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.settings, self.resources, self.seed, self.trust = settings, resources, seed, trust_remote_code
        self.policy, self.directory = policy, readable_directory(policy)
        self.reference: ModelFiles | None = None
        if settings.lora:
            require_same_lora(policy, settings.lora)
        # A reference that is the policy itself needs no second model beside adapters, and can be checked at the start.
        if reference is not None and settings.method not in REFERENCE_FREE and reference.identity != policy.identity:
            self.reference = reference
            require_same_tokenizer(self.directory, readable_directory(reference), (policy.name, reference.name))
        self.tokenizer = load_tokenizer(self.directory, trust_remote_code)
        self.device = pick_device(resources)
        self.dtype = pick_dtype(resources, self.device)

    def train(self, pairs: Sequence[Pair], output: Path, checkpoints: Path, advance: Advance) -> dict[str, Any]:
        """Train, write the policy to ``output`` and return figures; goes on from the last whole checkpoint."""
        examples = [example_of(pair, self.tokenizer) for pair in pairs]
        longest = self.settings.max_length
        fitting = [
            example
            for example in examples
            if len(example["prompt_ids"]) + max(len(example["chosen_ids"]), len(example["rejected_ids"])) <= longest
        ]
        if not fitting:
            raise DataError(
                f"No pair is left to train on: of {len(pairs)}, {len(examples) - len(fitting)} are longer than "
                f"train.max_length ({longest} tokens)."
            )
        items: list[dict[str, Any]] = kto_examples(fitting, longest) if self.settings.method == "kto" else fitting
        pairs_per_step = self.settings.batch_size * len(fitting) / len(items)
        progress = _Progress(advance, len(fitting), pairs_per_step, self.settings.epochs)
        trainer = self._trainer(items, checkpoints, progress)
        progress.trainer = trainer
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        self._save(trainer, output)
        figures = {"pairs": len(fitting), "too_long": len(examples) - len(fitting), "steps": trainer.state.global_step}
        return {**figures, "log": [entry for entry in trainer.state.log_history if "loss" in entry]}

    def close(self) -> None:
        """Give the memory back."""
        free_memory()

    def _trainer(self, items: list[dict[str, Any]], checkpoints: Path, progress: _Progress) -> PairTrainer:
        settings, kto = self.settings, self.settings.method == "kto"
        # Full training keeps float32 weights, since small updates vanish in bfloat16; frozen ones need no such care.
        weights = self.dtype if settings.lora else torch.float32
        loading = (weights, self.device, self.trust)
        lora = settings.lora and lora_config(settings.lora)
        if settings.lora and goes_on(self.policy, settings.lora):
            model, lora = load_to_go_on(self.policy, settings.lora, *loading), None
        else:
            model = load_files(self.policy, *loading)
        require_known_head(model)
        reference, tolerance = None, None
        if settings.method not in REFERENCE_FREE:
            tolerance = LOG_RATIO_TOLERANCE[self.dtype] if self.reference is None else None
            other = self.reference or self.policy
            if isinstance(model, peft.PeftModel) and other.base == self.policy.base:
                if other.adapter is not None:
                    add_adapter(model, other.adapter, REFERENCE)
            elif self.reference is not None or not settings.lora:
                reference = load_files(other, *loading)
                require_known_head(reference)
        trainer = (KtoTrainer if kto else PairTrainer)(
            model=model,
            ref_model=reference,
            args=self._arguments(checkpoints),
            data_collator=KtoCollator(self.tokenizer.pad) if kto else None,  # None: TRL's, for pairs
            train_dataset=datasets.Dataset.from_list(items),
            processing_class=self.tokenizer.tokenizer,
            callbacks=[progress],
            peft_config=lora,
            settings=settings,
            tolerance=tolerance,
        )
        if lora is None and settings.lora and reference is None:
            trainer.model.delete_adapter("ref")  # TRL's copy of the start, which is the reference or is not needed
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    def _arguments(self, checkpoints: Path) -> DPOConfig:
        settings, processes = self.settings, int(os.environ.get("WORLD_SIZE", "1"))
        arguments = DPOConfig(
            output_dir=str(checkpoints),
            per_device_train_batch_size=settings.micro_batch_size,
            gradient_accumulation_steps=max(1, settings.batch_size // (settings.micro_batch_size * processes)),
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.scheduler,
            warmup_steps=settings.warmup_ratio,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            gradient_checkpointing=settings.gradient_checkpointing,
            max_length=None,
            precompute_ref_log_probs=settings.method in REFERENCE_FREE,  # else TRL loads a reference by itself
            bf16=self.dtype is torch.bfloat16,
            use_cpu=self.device.type == "cpu",
            seed=self.seed,
            save_strategy="steps",
            save_steps=settings.checkpoint_every,
            save_total_limit=2,  # a kill may cut off the newest one
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would put an earlier loss in the place of one that is not finite
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=self.device.type == "cuda",
        )
        if processes == 1:
            arguments._n_gpu = min(1, arguments.n_gpu)  # with several, Trainer would wrap the model in DataParallel
        return arguments

    def _save(self, trainer: PairTrainer, output: Path) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        dtype = getattr(torch, self.settings.save_dtype)
        if self.settings.lora and self.settings.lora.save == "adapter":
            save_adapter(model, self.policy, output, dtype)  # tokenizer and template are its base's
            return
        if self.settings.lora:
            adapter = output / "adapter"
            model.save_pretrained(adapter)
            # Merged in float32, since the product of the adapters is lost in bfloat16.
            base = load_files(self.policy, torch.float32, torch.device("cpu"), self.trust)
            model = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
            shutil.rmtree(adapter)
        model.to(dtype).save_pretrained(output)
        # Copied and not written anew, so that the tokenizer stays the same to the letter.
        for name in (
            "tokenizer*",
            "*.jinja",
            "special_tokens_map.json",
            "vocab*",
            "merges.txt",
            "*.py",
            "generation_config.json",
        ):
            for file in self.directory.glob(name):
                shutil.copy(file, output / file.name)


def example_of(pair: Pair, tokenizer: ChatTokenizer) -> dict[str, list[int]]:
    """Return a pair as the token ids that TRL's collator takes; sampled ids are used as they are."""

    def answer(messages: list[Message], ids: list[int] | None) -> list[int]:
        return ids if ids is not None else tokenizer.response_ids(messages[-1]["content"], ended=True)

    return {
        "prompt_ids": tokenizer.chat_ids(pair.prompt),
        "chosen_ids": answer(pair.chosen, pair.chosen_token_ids),
        "rejected_ids": answer(pair.rejected, pair.rejected_token_ids),
    }


def last_checkpoint(checkpoints: Path) -> str | None:
    """Return the newest whole checkpoint and remove those that a kill cut off."""
    whole = []
    for folder in checkpoints.glob("checkpoint-*"):
        if (folder / WHOLE).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))) if whole else None
