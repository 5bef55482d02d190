"""Training on pairs: what is loaded, which trainer does the steps, and what is written; checkpoints and resuming."""

import copy
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports each training to the hub otherwise

import datasets
import peft
import torch
import transformers
from pydantic import TypeAdapter
from transformers.utils import GENERATION_CONFIG_NAME
from trl import DPOConfig

from crosspref.data.records import Message, Pair
from crosspref.engines import EngineSettings, require_library
from crosspref.engines.packed.head import add_response_head, distinct_tokens, padded_rows, require_known_head
from crosspref.engines.self_check import not_finite
from crosspref.engines.training import distributed
from crosspref.engines.training.kto import KtoTrainer, kto_batch, kto_examples
from crosspref.engines.training.pairs import PairTrainer
from crosspref.engines.transformers import adapters, models
from crosspref.engines.transformers.chat import ChatTokenizer, require_ids
from crosspref.engines.transformers.faults import reading
from crosspref.errors import DataError, ModelError
from crosspref.models.files import kept_files
from crosspref.models.locate import ModelFiles, require_fitting_lora
from crosspref.paths import writing
from crosspref.protocols import Advance
from crosspref.recipe.sections import REFERENCE_FREE, TrainSettings
from crosspref.run.kept import Kept, Number, checked
from crosspref.run.ranks import is_main, processes

LOG_RATIO_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""By how many nats per sequence policy and reference may differ before the first step if they are one model."""

_LOGPROBS = TypeAdapter(list[tuple[Number, Number]])


class TrlTrainer:
    """Trains a policy by the method that the settings name.

    Its reference, where the method has one, is ``reference``, or without that the policy as it was before training.
    """

    def __init__(
        self,
        settings: EngineSettings,
        policy: ModelFiles,
        reference: ModelFiles | None = None,
        *,
        training: TrainSettings,
    ) -> None:
        self.settings, self.seed = training, settings.seed
        distributed.accumulation_steps(training)  # before anything is read
        if training.lora and training.lora.bits:
            require_library("bitsandbytes", "train.lora.bits: 4 (QLoRA)")
        described = models.describe_model(policy, settings.asking)
        self.policy, self.directory, self.tokenizer = policy, described.directory, described.tokenizer
        self.vocabulary = described.config.get_text_config().vocab_size
        self.reference: ModelFiles | None = None
        if training.lora:
            require_fitting_lora(policy, training.lora)
        # A reference that is the policy itself needs no second model beside adapters, and can be checked at the start.
        if reference is not None and training.method not in REFERENCE_FREE and reference.identity != policy.identity:
            self.reference = reference
            models.comparable_directories(policy, reference, settings.asking)
        loading = models.Loading.of(settings)
        self.dtype, self.device = loading.dtype, loading.device
        # Full training keeps float32 weights: small updates vanish in bfloat16. Frozen ones need no such care.
        self.loading = loading if training.lora else replace(loading, dtype=torch.float32)
        self.loading_trained = replace(self.loading, device=distributed.loading_device(self.device))

    def train(self, pairs: Sequence[Pair], output: Path, checkpoints: Path, advance: Advance) -> dict[str, Any]:
        """Train, write the policy to ``output`` and return figures; resumes from the last whole checkpoint."""
        examples, longest = self._examples(pairs), self.settings.max_length
        fitting = [example for example in examples if example is not None]
        if not fitting:
            raise DataError(
                f"No pair is left to train on: of {len(pairs)}, {len(examples) - len(fitting)} are longer than "
                f"train.max_length ({longest} tokens)."
            )
        items: list[dict[str, Any]] = kto_examples(fitting, longest) if self.settings.method == "kto" else fitting
        if self.settings.precompute_reference:
            self._carry_reference(pairs, examples)
        pairs_per_step = self.settings.batch_size * len(fitting) / len(items)
        trainer = self._trainer(items, checkpoints)
        total = len(fitting) * self.settings.epochs
        trainer.add_callback(distributed.Progress(trainer, advance, total, pairs_per_step))
        with writing(checkpoints):
            trainer.train(resume_from_checkpoint=distributed.last_checkpoint(checkpoints))
        with writing(output):
            self._save(trainer, output)
        trainer.accelerator.wait_for_everyone()  # rank 0 may now remove checkpoints
        figures = {"pairs": len(fitting), "too_long": len(examples) - len(fitting), "steps": trainer.state.global_step}
        return {**figures, "log": [entry for entry in trainer.state.log_history if "loss" in entry]}

    def reference_logprobs(self, pairs: Sequence[Pair], advance: Advance) -> list[tuple[float, float] | None]:
        """Return the training reference's (chosen, rejected) log-probabilities, nats; None where a pair is too long."""
        model = self._load(self.reference or self.policy, self.loading)
        add_response_head(model)
        examples, size = self._examples(pairs), self.settings.micro_batch_size
        logprobs: list[tuple[float, float] | None] = []

        def check(name: str, values: object) -> None:
            start, length = map(int, name.split("+"))  # perhaps of another micro-batch size
            batch = examples[start : start + length]
            checked(_LOGPROBS, values, len(batch) - batch.count(None))

        kept = Kept.of(advance, check)
        for start in range(0, len(examples), size):
            part, name, tokens = examples[start : start + size], f"{start}+{size}", 0
            fitting = [example for example in part if example is not None]
            if name not in kept.items:
                values, tokens = self._pair_logprobs(model, fitting) if fitting else ([], 0)
                kept.keep({name: values})
            kept(len(part), tokens)
            in_order = iter(kept.items[name])
            logprobs += [None if example is None else tuple(next(in_order)) for example in part]
        del model
        models.free_memory()
        return logprobs

    @torch.no_grad()
    def _pair_logprobs(self, model: Any, examples: Sequence[dict[str, Any]]) -> tuple[list[tuple[float, float]], int]:
        """Return (chosen, rejected) log-probabilities, nats, as training computes them, and how many tokens it took."""
        cut = [(pair["prompt_ids"], pair[kind]) for kind in ("chosen_ids", "rejected_ids") for pair in examples]
        rows = padded_rows(cut, device=model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            values = model(**rows).tolist()
        if not all(map(math.isfinite, values)):
            raise not_finite("the training reference's log-probabilities")
        return list(zip(values[: len(examples)], values[len(examples) :], strict=True)), distinct_tokens(rows)

    def _examples(self, pairs: Sequence[Pair]) -> list[dict[str, Any] | None]:
        """Return the pairs as token ids; None for those that are too long.

        Raises:
            DataError: a pair has token ids that the model does not have.
        """
        for pair in pairs:
            for ids in (pair.chosen_token_ids, pair.rejected_token_ids):
                require_ids(ids or (), self.vocabulary, f"A response to {pair.prompt_id!r} in {pair.language}")
        examples = [example_of(pair, self.tokenizer) for pair in pairs]
        return [
            example
            if len(example["prompt_ids"]) + max(len(example["chosen_ids"]), len(example["rejected_ids"]))
            <= self.settings.max_length
            else None
            for example in examples
        ]

    def _carry_reference(self, pairs: Sequence[Pair], examples: Sequence[dict[str, Any] | None]) -> None:
        """Give the examples the reference's log-probabilities: the pairs' or, where any is lacking, new ones."""
        logprobs: Sequence[Any] = [(pair.reference_chosen_logprob, pair.reference_rejected_logprob) for pair in pairs]
        if any(None in stored for stored, example in zip(logprobs, examples, strict=True) if example is not None):
            logprobs = self.reference_logprobs(pairs, lambda *_: None)
        for values, example in zip(logprobs, examples, strict=True):
            if example is not None:
                example["ref_chosen_logps"], example["ref_rejected_logps"] = values

    def close(self) -> None:
        """Give the memory back."""
        models.free_memory()

    def _trainer(self, items: list[dict[str, Any]], checkpoints: Path) -> PairTrainer:
        settings, kto = self.settings, self.settings.method == "kto"
        model, lora = self._load_policy()
        self.config = copy.deepcopy(model.config)  # TRL writes the tokenizer's ids into the model's
        reference, tolerance = None, None
        if settings.method not in REFERENCE_FREE:
            tolerance = LOG_RATIO_TOLERANCE[self.dtype] if self.reference is None else None
            if not settings.precompute_reference:
                reference = self._load_reference(model)
        with reading("The model to train", self.directory):  # it gets its adapters now
            trainer = (KtoTrainer if kto else PairTrainer)(
                model=model,
                ref_model=reference,
                args=self._arguments(checkpoints, math.ceil(len(items) / settings.batch_size) * settings.epochs),
                data_collator=partial(kto_batch, pad=self.tokenizer.pad) if kto else None,  # None: TRL's, for pairs
                train_dataset=datasets.Dataset.from_list(items),
                processing_class=self.tokenizer.tokenizer,
                peft_config=lora,
                settings=settings,
                tolerance=tolerance,
            )
        if settings.lora:
            adapters.require_untied(trainer.accelerator.unwrap_model(trainer.model), "The adapter of train.lora")
        if lora is None and settings.lora and reference is None:
            trainer.model.delete_adapter("ref")  # TRL's copy of the start, which is the reference or is not needed
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.processing_class = None  # so that no tokenizer is written with each checkpoint, which some refuse
        return trainer

    def _load_policy(self) -> tuple[Any, peft.LoraConfig | None]:
        """Return the model to train, and the adapters that it still gets."""
        lora = self.settings.lora
        if lora and adapters.is_continued(self.policy, lora):
            model = adapters.load_trainable(self.policy, lora, self.loading_trained)
            require_known_head(model)
            return model, None
        return self._load(self.policy, self.loading_trained), lora and adapters.lora_config(lora)

    def _load_reference(self, model: Any) -> Any:
        """Return the reference as a second model; None where ``model`` is it, by another adapter or without any."""
        reference = self.reference or self.policy
        if isinstance(model, peft.PeftModel) and reference.base == self.policy.base:
            if reference.adapter is not None:
                adapters.add_adapter(model, reference.adapter, adapters.REFERENCE)
            return None
        if self.reference is None and self.settings.lora:
            return None
        return self._load(reference, self.loading_trained)

    def _load(self, files: ModelFiles, loading: models.Loading) -> Any:
        lora = self.settings.lora
        if lora and lora.bits and files.adapter is None:
            model = models.load_quantized(models.readable_directory(files), loading)
        else:
            model = adapters.load_files(files, loading)
        model.generation_config = transformers.GenerationConfig()  # transformers refuses to save many published ones
        require_known_head(model)
        return model

    def _arguments(self, checkpoints: Path, steps: int) -> DPOConfig:
        settings = self.settings
        arguments = DPOConfig(
            output_dir=str(checkpoints),
            per_device_train_batch_size=settings.micro_batch_size,
            gradient_accumulation_steps=distributed.accumulation_steps(settings),
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.scheduler,
            # A warm-up begins with a learning rate of 0, with which a single step would change nothing.
            warmup_steps=settings.warmup_ratio if steps > 1 else 0,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            gradient_checkpointing=settings.gradient_checkpointing,
            max_length=None,
            # Else TRL loads a reference by itself.
            precompute_ref_log_probs=settings.precompute_reference or settings.method in REFERENCE_FREE,
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
        distributed.shard_on_cpu("bf16" if arguments.bf16 else "no")
        return arguments

    def _save(self, trainer: PairTrainer, output: Path) -> None:
        weights = distributed.whole_weights(trainer)
        if not is_main():
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        dtype = getattr(torch, self.settings.save_dtype)
        _require_finite(dict(model.named_parameters()) if weights is None else weights)
        if self.settings.lora and self.settings.lora.save == "adapter":
            adapters.save_adapter(model, self.policy, output, dtype, weights)  # tokenizer and template are its base's
            return
        if self.settings.lora:
            adapter = output / "adapter"
            model.save_pretrained(adapter, state_dict=weights)
            # Merged in float32, since the product of the adapters is lost in bfloat16.
            base = adapters.load_files(self.policy, self.loading.exact)
            model = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
            shutil.rmtree(adapter)
        elif weights is not None:
            model = adapters.load_files(self.policy, self.loading.exact)
            model.load_state_dict(weights)
        else:
            model.config = self.config
        model.generation_config = transformers.GenerationConfig()
        _require_finite(dict(model.to(dtype).named_parameters()))  # merging and rounding can overflow, too
        model.save_pretrained(output)
        (output / GENERATION_CONFIG_NAME).unlink(missing_ok=True)
        # Copied instead of written again, so that the tokenizer's files stay byte for byte the same.
        for file in kept_files(self.directory):
            target = output / file.relative_to(self.directory)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(file, target)


def _require_finite(weights: Mapping[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ModelError(
                f"Training left weights that are not finite numbers, such as {name}, so nothing was saved. A smaller "
                "train.learning_rate or resources.dtype: float32 may help."
            )


def example_of(pair: Pair, tokenizer: ChatTokenizer) -> dict[str, list[int]]:
    """Return a pair as the token ids that TRL's collator takes: those that were scored.

    Raises:
        DataError: the chat template refuses its prompt.
    """

    def answer(messages: list[Message], ids: list[int] | None, ended: bool | None) -> list[int]:
        return tokenizer.response_ids(messages[-1]["content"], ended is not False) if ids is None else ids

    try:
        prompt = tokenizer.chat_ids(pair.prompt, answered=True)
    except DataError as error:
        raise DataError(f"The pair {pair.prompt_id!r} in {pair.language!r} cannot be asked. {error}") from error
    return {
        "prompt_ids": prompt,
        "chosen_ids": answer(pair.chosen, pair.chosen_token_ids, pair.chosen_ended),
        "rejected_ids": answer(pair.rejected, pair.rejected_token_ids, pair.rejected_ended),
    }
