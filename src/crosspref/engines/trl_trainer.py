"""DPO+NLL (Eq. 11) on TRL's DPOTrainer, with its loss replaced by ours and its tokenisation by the sampled ids."""

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
from trl import DPOConfig, DPOTrainer

from crosspref.engines.protocols import Advance
from crosspref.engines.transformers_models import (
    ChatTokenizer,
    add_response_head,
    free_memory,
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    readable_directory,
    require_known_head,
)
from crosspref.errors import DataError, ModelError
from crosspref.maths.losses import dpo_nll_loss
from crosspref.models import ModelFiles
from crosspref.recipe import ResourceSettings, TrainSettings
from crosspref.records import Message, Pair

LOG_RATIO_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""By how many nats per sequence policy and reference may differ before the first step, where they are one model."""

WHOLE = "crosspref_complete"
"""A file in each checkpoint, written last: a checkpoint without it was cut off by a kill."""


class PairTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer with Eq. 11 as the mean over all pairs of an optimizer step, however they are cut into batches."""

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, nll_weight: float, tolerance: float, **kwargs: Any) -> None:
        self.nll_weight = nll_weight
        self.tolerance = tolerance
        self.seen_tokens = 0
        super().__init__(*args, **kwargs)
        for model in filter(None, (self.model, self.ref_model)):
            add_response_head(self.accelerator.unwrap_model(model))

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        return dataset  # the pairs carry the sampled token ids already

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        pairs = torch.tensor(sum(len(batch["input_ids"]) // 2 for batch in batch_samples), device=device)
        total: torch.Tensor = self.accelerator.gather(pairs).sum()
        return total

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return this micro-batch's share of the step's mean loss."""
        del return_outputs
        chosen, rejected = model(**inputs).chunk(2)
        reference_chosen, reference_rejected = self._reference(inputs)
        self._check_start(chosen - reference_chosen, rejected - reference_rejected)
        dpo, nll = dpo_nll_loss(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            inputs["completion_mask"].sum(1).chunk(2)[0],
            beta=self.beta,
            nll_weight=self.nll_weight,
        )
        self._note(dpo, nll, chosen - reference_chosen, rejected - reference_rejected)
        self.seen_tokens += int(inputs["attention_mask"].sum())
        share = len(dpo) if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes, so each one's part of the sum counts as often as there are processes.
        loss: torch.Tensor = (dpo + nll).sum() / share * self.accelerator.num_processes
        return loss

    @torch.no_grad()
    def _reference(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return the reference's log-probabilities: of a second model, or of this one without its fresh adapters."""
        if self.ref_model is not None:
            with self.accelerator.autocast():  # as the policy has it: in the same number format
                return tuple(self.ref_model(**inputs).chunk(2))
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            return tuple(self.model(**inputs).chunk(2))

    def _check_start(self, chosen: torch.Tensor, rejected: torch.Tensor) -> None:
        """Before the first step the policy is its own reference, so every log-ratio must be 0."""
        if self.state.global_step:
            return
        worst = float(torch.cat([chosen, rejected]).detach().abs().max())
        if not worst <= self.tolerance:
            raise ModelError(
                f"Before the first training step the policy and its reference differ by {worst:.4g} nats, but they "
                "should be one model. The model may have dropout or other randomness in its forward pass."
            )

    def _note(self, dpo: torch.Tensor, nll: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor) -> None:
        values = {
            "dpo_loss": dpo,
            "nll_loss": nll,
            "chosen_log_ratio": chosen,
            "rejected_log_ratio": rejected,
            "margin": self.beta * (chosen - rejected),
            "accuracy": (chosen > rejected).float(),
        }
        for name, value in values.items():
            # One number per pair, so that the mean that is logged does not depend on how the pairs were cut up.
            self._metrics["train"][name].extend(self.accelerator.gather(value.detach()).tolist())


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Shows progress, and marks checkpoints that were written whole."""

    def __init__(self, advance: Advance, pairs: int, batch: int, epochs: int) -> None:
        self.advance, self.total, self.batch = advance, pairs * epochs, batch
        self.done = 0
        self.trainer: PairTrainer | None = None
        self.tokens = 0

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Count the pairs and tokens of a step."""
        assert self.trainer is not None  # noqa: S101 - set right after the trainer is built
        done = min(state.global_step * self.batch, self.total) if state.global_step < state.max_steps else self.total
        self.advance(done - self.done, self.trainer.seen_tokens - self.tokens)
        self.done, self.tokens = done, self.trainer.seen_tokens

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Mark the checkpoint that was just written."""
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()


class TrlTrainer:
    """Trains a policy that is its own starting point's reference."""

    def __init__(
        self,
        policy: ModelFiles,
        settings: TrainSettings,
        resources: ResourceSettings,
        seed: int,
        trust_remote_code: bool = False,
    ) -> None:
        self.settings, self.resources, self.seed, self.trust = settings, resources, seed, trust_remote_code
        self.directory = readable_directory(policy)
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
        progress = _Progress(advance, len(fitting), self.settings.batch_size, self.settings.epochs)
        trainer = self._trainer(fitting, checkpoints, progress)
        progress.trainer = trainer
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        self._save(trainer, output)
        figures = {"pairs": len(fitting), "too_long": len(examples) - len(fitting), "steps": trainer.state.global_step}
        return {**figures, "log": [entry for entry in trainer.state.log_history if "loss" in entry]}

    def close(self) -> None:
        """Give the memory back."""
        free_memory()

    def _trainer(self, examples: list[dict[str, Any]], checkpoints: Path, progress: _Progress) -> PairTrainer:
        settings, mixed = self.settings, self.dtype is torch.bfloat16
        # Full training keeps float32 weights, since small updates vanish in bfloat16; frozen ones need no such care.
        weights = self.dtype if settings.lora else torch.float32
        model = load_model(self.directory, weights, self.device, self.trust)
        require_known_head(model)
        reference = None if settings.lora else load_model(self.directory, weights, self.device, self.trust)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
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
            beta=settings.beta,
            max_length=None,
            bf16=mixed,
            use_cpu=self.device.type == "cpu",
            seed=self.seed,
            save_strategy="steps",
            save_steps=settings.checkpoint_every,
            save_total_limit=2,  # a kill may cut off the newest one
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=self.device.type == "cuda",
        )
        if processes == 1:
            arguments._n_gpu = min(1, arguments.n_gpu)  # with several, Trainer would wrap the model in DataParallel
        lora = settings.lora and peft.LoraConfig(
            r=settings.lora.rank,
            lora_alpha=settings.lora.alpha,
            target_modules=settings.lora.target_modules,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        trainer = PairTrainer(
            model=model,
            ref_model=reference,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(examples),
            processing_class=self.tokenizer.tokenizer,
            callbacks=[progress],
            peft_config=lora,
            nll_weight=settings.nll_weight,
            tolerance=LOG_RATIO_TOLERANCE[self.dtype],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    def _save(self, trainer: PairTrainer, output: Path) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        if self.settings.lora:
            adapter = output / "adapter"
            model.save_pretrained(adapter)
            # Merged in float32, since the product of the adapters is lost in bfloat16.
            base = load_model(self.directory, torch.float32, torch.device("cpu"), self.trust)
            model = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
            shutil.rmtree(adapter)
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


def last_checkpoint(checkpoints: Path) -> str | None:
    """Return the newest whole checkpoint and remove those that a kill cut off."""
    whole = []
    for folder in checkpoints.glob("checkpoint-*"):
        if (folder / WHOLE).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))) if whole else None
