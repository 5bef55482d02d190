"""DPO, IPO, SimPO and ORPO on TRL's DPOTrainer, with its losses replaced by ours and its tokenisation by given ids."""

import math
from typing import Any

import datasets
import torch
from trl import DPOTrainer
from trl.trainer.utils import use_adapter

from crosspref.engines.packed.head import PaddedRows, add_response_head, distinct_tokens
from crosspref.engines.self_check import SelfCheck
from crosspref.engines.training.distributed import real_items
from crosspref.engines.transformers.adapters import REFERENCE
from crosspref.errors import ModelError
from crosspref.maths.losses import dpo_loss, ipo_loss, log_odds, nll_loss, orpo_loss, simpo_loss
from crosspref.recipe.sections import REFERENCE_FREE, TrainSettings
from crosspref.run.ranks import processes

ChosenRejected = tuple[torch.Tensor, torch.Tensor]
"""A value of the chosen responses, (pairs,), and the same of the rejected ones, (pairs,)."""


class PairTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer with a loss that is the mean over all pairs of an optimizer step, however they are cut up."""

    loss_is_scaled_for_ga = True
    rows_per_item = 2
    """How many rows of a batch make one of the items that are averaged: a pair is a chosen and a rejected row."""

    def __init__(self, *args: Any, settings: TrainSettings, tolerance: float | None, **kwargs: Any) -> None:
        """Take what DPOTrainer takes, and by how many nats log-ratios may differ from 0 at first (None: by any)."""
        self.settings = settings
        self.tolerance = tolerance
        self.seen_tokens = 0
        super().__init__(*args, **kwargs)
        for model in filter(None, (self.model, self.ref_model)):
            add_response_head(self.accelerator.unwrap_model(model))

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        return dataset  # the pairs carry the sampled token ids already

    def _precompute_ref_logps(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        return dataset  # the pairs carry them already, or the method has none; TRL loads no reference then

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        per_step, total = self.args.gradient_accumulation_steps, len(self.train_dataset)
        items = [len(batch["input_ids"]) // self.rows_per_item for batch in batch_samples]
        step = self.state.global_step % math.ceil(total / (self.args.train_batch_size * processes() * per_step))
        real = real_items(len(items), self.args.train_batch_size, step, total, per_step)
        for batch, count, row in zip(batch_samples, items, real, strict=True):
            batch["real"] = row[:count].to(device)
        here = sum(batch["real"].sum() for batch in batch_samples)
        everywhere: torch.Tensor = self.accelerator.gather(here).sum()
        return everywhere

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return this micro-batch's share of the step's mean loss."""
        del return_outputs
        rows = {name: tensor for name, tensor in inputs.items() if name != "real"}
        real = inputs["real"] if "real" in inputs else torch.ones(len(rows["input_ids"]) // self.rows_per_item).bool()
        values = self._values(model, rows)
        values["accuracy"] = (values["margin"] > 0).float()
        self._note(values, real)
        seen = torch.tensor(distinct_tokens(rows), device=self.accelerator.device)
        self.seen_tokens += int(self.accelerator.gather(seen).sum())
        losses = (values["preference_loss"] + values["nll_loss"]) * real
        share = len(losses) if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes, so each one's part of the sum counts as often as there are processes.
        loss: torch.Tensor = losses.sum() / share * self.accelerator.num_processes
        return loss

    def _values(self, model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return both terms of the loss, the margin and what else is logged; (items,) each."""
        logprobs = model(**{name: tensor for name, tensor in inputs.items() if not name.startswith("ref_")})
        kind, compared = "logprob", logprobs
        if self.settings.method not in REFERENCE_FREE:
            kind, compared = "log_ratio", logprobs - self._reference(inputs)
            self._check_start(compared)
        chosen, rejected = compared.chunk(2)
        chosen_tokens, rejected_tokens = inputs["completion_mask"].sum(1).chunk(2)
        loss, margin = pair_losses((chosen, rejected), (chosen_tokens, rejected_tokens), self.settings)
        return {
            "preference_loss": loss,
            "nll_loss": self.settings.nll_weight * nll_loss(logprobs.chunk(2)[0], chosen_tokens),
            "margin": margin,
            f"chosen_{kind}": chosen,
            f"rejected_{kind}": rejected,
        }

    @torch.no_grad()
    def _reference(self, rows: PaddedRows) -> torch.Tensor:
        """Return the reference's log-probabilities: of a second model, or of this one by another adapter or none.

        Pairs may also carry them, from when the reference was alone in memory.
        """
        if "ref_chosen_logps" in rows:
            return torch.cat([rows["ref_chosen_logps"], rows["ref_rejected_logps"]])
        if self.ref_model is not None:
            with self.accelerator.autocast():  # as the policy has it: in the same number format
                logprobs: torch.Tensor = self.ref_model(**rows)
        else:
            policy = self.accelerator.unwrap_model(self.model)
            with use_adapter(policy, REFERENCE if REFERENCE in policy.peft_config else None):
                logprobs = self.model(**rows)
        return logprobs

    def _check_start(self, log_ratios: torch.Tensor) -> None:
        """Before the first step a policy that is its own reference must have log-ratios of 0."""
        if self.state.global_step or self.tolerance is None:
            return
        policy = self.accelerator.unwrap_model(self.model)
        SelfCheck(policy, "cannot be trained", stops=True, nats=self.tolerance).passes(
            "before the first step the policy and its reference differ, though they should be one model: there may be "
            "dropout or other randomness in its forward pass",
            lambda: [float(log_ratios.detach().abs().max())],
            lambda: [0.0],
            [1],
        )

    def _note(self, values: dict[str, torch.Tensor], real: torch.Tensor) -> None:
        everywhere = self.accelerator.gather(real)
        for name, value in values.items():
            # One number per item, so that the mean that is logged does not depend on how the items were cut up.
            numbers = self.accelerator.gather(value.detach())[everywhere].tolist()
            if not all(map(math.isfinite, numbers)):
                raise ModelError(
                    f"Training stopped in step {self.state.global_step + 1}: {name} is not a finite number. If the "
                    "first steps went well, a smaller train.learning_rate or resources.dtype: float32 may help; in the "
                    "first step, the model's files may be damaged."
                )
            self._metrics["train"][name].extend(numbers)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step's figures; this comes before anything of the step is saved."""
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            raise ModelError(
                f"Training stopped in step {self.state.global_step}: the gradient is not a finite number, though the "
                "loss is. A smaller train.learning_rate or resources.dtype: float32 may help."
            )
        super().log(logs, start_time)


def pair_losses(compared: ChosenRejected, tokens: ChosenRejected, settings: TrainSettings) -> ChosenRejected:
    """Return each pair's loss without the NLL term, and its margin: by how much the policy prefers the chosen response.

    Args:
        compared: summed log-ratios, or for a method without a reference log-probabilities, nats.
        tokens: how many tokens were summed.
        settings: the method and its parameters.

    Returns:
        (pairs,) loss and (pairs,) margin: what the loss compares with 0 or with a target, in the method's own unit.
    """
    beta = settings.beta
    chosen, rejected = (values / counts for values, counts in zip(compared, tokens, strict=True))
    match settings.method:
        case "dpo":
            return dpo_loss(*compared, beta=beta), beta * (compared[0] - compared[1])
        case "ipo":
            return ipo_loss(*compared, *tokens, beta=beta), chosen - rejected
        case "simpo":
            return simpo_loss(*compared, *tokens, beta=beta, gamma=settings.gamma), beta * (chosen - rejected)
        case "orpo":
            odds = [log_odds(values, counts) for values, counts in zip(compared, tokens, strict=True)]
            return orpo_loss(*compared, *tokens, beta=beta), odds[0] - odds[1]
        case _:
            raise ValueError(f"{settings.method} has no loss on pairs")
