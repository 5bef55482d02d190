"""KTO (Eq. 16) on single examples, each with a response to another prompt from which z_ref is estimated."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from crosspref.engines.packed.head import PaddedRows, padded_rows
from crosspref.engines.training.pairs import PairTrainer
from crosspref.errors import DataError
from crosspref.maths.losses import kto_kl, kto_loss, nll_loss


class KtoTrainer(PairTrainer):
    """The trainer with a loss that is the mean over all examples of an optimizer step, however they are cut up."""

    rows_per_item = 1
    kl: torch.Tensor
    """z_ref of the optimizer step, a scalar, nats."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """Return the micro-batches of an optimizer step, having estimated z_ref from all of them."""
        batches, examples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.model.eval()  # training_step undoes it; without dropout, no random state is used up
        ratios = []
        for batch in batches:
            rows = _with_prefix(self._prepare_inputs(batch), "kl_")
            with torch.no_grad(), self.accelerator.autocast():
                ratios.append(self.model(**rows) - self._reference(rows))
        real = self.accelerator.gather(torch.cat([batch["real"] for batch in batches]))
        self.kl = kto_kl(self.accelerator.gather(torch.cat(ratios))[real])
        return batches, examples

    def _values(self, model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        settings, desirable = self.settings, inputs["desirable"]
        rows = _with_prefix(inputs, "")
        logprobs = model(**rows)
        log_ratios = logprobs - self._reference(rows)
        self._check_start(log_ratios)
        loss = kto_loss(
            log_ratios,
            desirable,
            self.kl,
            beta=settings.beta,
            desirable_weight=settings.desirable_weight,
            undesirable_weight=settings.undesirable_weight,
        )
        nll = settings.nll_weight * nll_loss(logprobs, rows["completion_mask"].sum(1))
        gain = settings.beta * (log_ratios - self.kl)
        return {
            "preference_loss": loss,
            "nll_loss": torch.where(desirable, nll, 0.0),
            "margin": torch.where(desirable, gain, -gain),
            "kl": self.kl.expand(len(loss)),
        }


def kto_examples(pairs: Sequence[dict[str, list[int]]], longest: int) -> list[dict[str, Any]]:
    """Return two examples per pair, the chosen and the rejected response, each with its mismatched response.

    That is the response of the same kind of the next pair, cyclically, that has another prompt. Where it is too long
    behind this prompt, its beginning is taken, which is as good a sample of how far the policy has moved.

    Args:
        pairs: pairs as token ids, each at most ``longest`` tokens long.
        longest: how many tokens a prompt and a response may have together.

    Raises:
        DataError: all pairs have one prompt.
    """
    others = _next_with_another_prompt([pair["prompt_ids"] for pair in pairs])
    return [
        {
            "prompt_ids": pair["prompt_ids"],
            "response_ids": pair[kind],
            "kl_response_ids": pairs[other][kind][: longest - len(pair["prompt_ids"])],
            "desirable": kind == "chosen_ids",
        }
        for pair, other in zip(pairs, others, strict=True)
        for kind in ("chosen_ids", "rejected_ids")
    ]


def _next_with_another_prompt(prompts: Sequence[list[int]]) -> list[int]:
    """Return for each position the next one, cyclically, whose prompt differs."""
    count = len(prompts)
    change = next((here for here in range(count) if prompts[here] != prompts[here - 1]), None)
    if change is None:
        raise DataError(
            f"KTO cannot be trained on these {count} pairs: all have the same prompt, and its z_ref (Eq. 16) is "
            "estimated from responses to other prompts. Give pairs of at least two prompts, or set train.method: dpo."
        )
    others = [0] * count
    for back in range(1, count + 1):  # backwards from a change, so that each position knows its successor's answer
        here, following = (change - back) % count, (change - back + 1) % count
        others[here] = following if prompts[here] != prompts[following] else others[following]
    return others


def kto_batch(examples: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Pad examples to a batch: ``input_ids``, ``attention_mask`` and ``completion_mask``, each (examples, tokens).

    The same three with ``kl_`` in front hold the mismatched responses; ``desirable`` is (examples,), bool.
    """
    batch = {"desirable": torch.tensor([example["desirable"] for example in examples])}
    for prefix in ("", "kl_"):
        rows = padded_rows([(one["prompt_ids"], one[f"{prefix}response_ids"]) for one in examples], pad)
        batch |= {prefix + name: tensor for name, tensor in rows.items()}
    return batch


def _with_prefix(inputs: dict[str, torch.Tensor], prefix: str) -> PaddedRows:
    return {name: inputs[prefix + name] for name in ("input_ids", "attention_mask", "completion_mask")}
