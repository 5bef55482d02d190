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

from crosspref.engines.distributed import WHOLE, accumulation_steps, last_checkpoint, loading_device, whole_weights
from crosspref.engines.kto_trainer import KtoCollator, KtoTrainer, kto_examples
from crosspref.engines.pair_trainer import PairTrainer
from crosspref.engines.protocols import Advance
from crosspref.engines.transformers_models import (
    ChatTokenizer,
    free_memory,
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    readable_directory,
    require_known_head,
)
from crosspref.errors import DataError
from crosspref.models import ModelFiles, require_same_tokenizer
from crosspref.ranks import is_main, processes
from crosspref.records import Message, Pair
from crosspref.resources import ResourceSettings
from crosspref.sections import REFERENCE_FREE, TrainSettings

LOG_RATIO_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""By how many nats per sequence policy and reference may differ before the first step, where they are one model."""


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
        """Mark the checkpoint that was just written, once every process has written its part."""
        assert self.trainer is not None  # noqa: S101 - set right after the trainer is built
        self.trainer.accelerator.wait_for_everyone()
        if is_main():
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
        accumulation_steps(settings)  # before anything is read
        self.directory = readable_directory(policy)
        self.reference: Path | None = None
        # A reference that is the policy itself needs no second model beside adapters, and can be checked at the start.
        if reference is not None and settings.method not in REFERENCE_FREE and reference.identity != policy.identity:
            self.reference = readable_directory(reference)
            require_same_tokenizer(self.directory, self.reference, (policy.name, reference.name))
        self.tokenizer = load_tokenizer(self.directory, trust_remote_code)
        self.device = pick_device(resources)
        self.loads_to = loading_device(self.device)
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
        trainer.accelerator.wait_for_everyone()  # rank 0 may now remove checkpoints
        figures = {"pairs": len(fitting), "too_long": len(examples) - len(fitting), "steps": trainer.state.global_step}
        return {**figures, "log": [entry for entry in trainer.state.log_history if "loss" in entry]}

    def close(self) -> None:
        """Give the memory back."""
        free_memory()

    def _trainer(self, items: list[dict[str, Any]], checkpoints: Path, progress: _Progress) -> PairTrainer:
        settings, kto = self.settings, self.settings.method == "kto"
        # Full training keeps float32 weights, since small updates vanish in bfloat16; frozen ones need no such care.
        weights = self.dtype if settings.lora else torch.float32
        model = load_model(self.directory, weights, self.loads_to, self.trust)
        require_known_head(model)
        reference, tolerance = None, None
        if self.reference is not None:
            reference = load_model(self.reference, weights, self.loads_to, self.trust)
            require_known_head(reference)
        elif settings.method not in REFERENCE_FREE:
            tolerance = LOG_RATIO_TOLERANCE[self.dtype]
            if not settings.lora:
                reference = load_model(self.directory, weights, self.loads_to, self.trust)
        lora = settings.lora and peft.LoraConfig(
            r=settings.lora.rank,
            lora_alpha=settings.lora.alpha,
            target_modules=settings.lora.target_modules,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
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
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    def _arguments(self, checkpoints: Path) -> DPOConfig:
        settings = self.settings
        arguments = DPOConfig(
            output_dir=str(checkpoints),
            per_device_train_batch_size=settings.micro_batch_size,
            gradient_accumulation_steps=accumulation_steps(settings),
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
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=self.device.type == "cuda",
        )
        if processes() == 1:
            arguments._n_gpu = min(1, arguments.n_gpu)  # with several, Trainer would wrap the model in DataParallel
        return arguments

    def _save(self, trainer: PairTrainer, output: Path) -> None:
        weights = whole_weights(trainer)
        if not is_main():
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        if self.settings.lora:
            adapter = output / "adapter"
            model.save_pretrained(adapter, state_dict=weights)
            # Merged in float32, since the product of the adapters is lost in bfloat16.
            base = load_model(self.directory, torch.float32, torch.device("cpu"), self.trust)
            model = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
            shutil.rmtree(adapter)
        elif weights is not None:
            model = load_model(self.directory, torch.float32, torch.device("cpu"), self.trust)
            model.load_state_dict(weights)
        model.to(getattr(torch, self.settings.save_dtype)).save_pretrained(output)
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
