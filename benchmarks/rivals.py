"""What people run now, in a few lines each: the released scripts' scoring, TRL's, a plain generate, the grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

Rows = list[tuple[list[int], list[list[int]]]]
"""For each prompt its ids, and the ids of its responses."""

BATCH = 3
"""How many prompts the released scripts score side by side."""


def load(directory: Any, dtype: torch.dtype) -> Any:
    """Load a causal language model."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


@torch.inference_mode()
def released_logprobs(model: Any, rows: Rows) -> list[list[float]]:
    """Return log-probabilities (nats) of all responses to each prompt, computed as the paper's released scripts do.

    In file order, three prompts at a time, one pass over the file per response index; padded to the right, with a
    float32 log-softmax over the whole vocabulary at every position. Which tokens count is as crosspref counts them.
    """
    scores: list[list[float]] = [[] for _ in rows]
    for index in range(max(len(responses) for _, responses in rows)):
        for start in range(0, len(rows), BATCH):
            numbers = [number for number in range(len(rows))[start : start + BATCH] if index < len(rows[number][1])]
            batch = [(rows[number][0], rows[number][1][index]) for number in numbers]
            if not batch:
                continue
            width = max(len(prompt) + len(response) for prompt, response in batch)
            ids, attention, is_response = (torch.zeros(len(batch), width, dtype=torch.int64) for _ in range(3))
            for row, (prompt, response) in enumerate(batch):
                end = len(prompt) + len(response)
                ids[row, :end] = torch.tensor(prompt + response)
                attention[row, :end] = 1
                is_response[row, len(prompt) : end] = 1
            logits = model(input_ids=ids, attention_mask=attention).logits
            logprobs = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            sums = (logprobs * is_response[:, 1:]).sum(-1).tolist()
            for number, value in zip(numbers, sums, strict=True):
                scores[number].append(value)
    return scores


@torch.inference_mode()
def generate(model: Any, prompts: list[list[int]], options: Any, stops: list[int], pad: int) -> list[list[list[int]]]:
    """Return responses to each prompt, one call of ``model.generate`` per prompt; sampled as by a recipe's defaults."""
    responses = []
    for prompt in prompts:
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=True,
            temperature=0.9,
            top_p=1.0,
            top_k=0,
            num_return_sequences=options.responses,
            max_new_tokens=options.new_tokens,
            eos_token_id=stops,
            pad_token_id=pad,
        )
        rows = output[:, len(prompt) :].tolist()
        ends = [next((place for place, token in enumerate(row) if token in stops), len(row)) for row in rows]
        responses.append([row[: end + 1] for row, end in zip(rows, ends, strict=True)])
    return responses


class GivenIds(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on pairs whose ids are given, so that it works on the same tokens as crosspref."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def dpo_trainer(
    pairs: Sequence[dict[str, list[int]]],
    models: tuple[Any, Any],
    tokenizer: Any,
    output: Any,
    callbacks: Sequence[TrainerCallback] = (),
    **changes: Any,
) -> DPOTrainer:
    """Return TRL's trainer with its defaults and the loss DPO+NLL, on (policy, reference).

    Apart from its defaults: nothing is truncated (max_length), saved or reported. ``changes`` are further ones.
    """
    arguments = DPOConfig(
        output_dir=str(output),
        loss_type=["sigmoid", "sft"],
        max_length=None,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **changes,
    )
    trainer = GivenIds(
        model=models[0],
        ref_model=models[1],
        args=arguments,
        train_dataset=Dataset.from_list(list(pairs)),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def two_by_two(rows: Rows) -> list[dict[str, list[int]]]:
    """Return all responses as pairs, neighbours together; there must be an even number to each prompt."""
    return [
        {"prompt_ids": prompt, "chosen_ids": one, "rejected_ids": other}
        for prompt, responses in rows
        for one, other in zip(responses[::2], responses[1::2], strict=True)
    ]


def trl_reference(trainer: DPOTrainer, pairs: Sequence[dict[str, list[int]]]) -> list[float]:
    """Return (chosen, rejected, chosen ...) log-probabilities, nats, by the loop of TRL's precompute_ref_log_probs.

    Without its cache file, which would answer the second time.
    """
    batch_size, rows = trainer.args.per_device_train_batch_size, list(pairs)
    scores: list[float] = []
    for batch in DataLoader(rows, batch_size=batch_size, collate_fn=trainer.data_collator, shuffle=False):
        chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
        scores += torch.stack([chosen, rejected], dim=1).flatten().tolist()
    return scores


def grid(rewards: NDArray[np.float64], lengths: NDArray[np.float64]) -> tuple[float, float]:
    """Return the best alpha of 0, 0.001 ... 0.999 and the mean length difference there, prompt by prompt as released.

    Args:
        rewards: (prompts, responses), unpenalised.
        lengths: (prompts, responses), characters.
    """
    best = (float("inf"), 0.0)
    for step in range(1000):
        alpha, differences = step / 1000, []
        for reward, length in zip(rewards, lengths, strict=True):
            penalised = reward - alpha * length
            differences.append(length[np.argmax(penalised)] - length[np.argmin(penalised)])
        mean = float(np.mean(differences))
        if abs(mean) < abs(best[0]):
            best = (mean, alpha)
    return best[1], best[0]


class Limit:
    """The least that scoring can cost: each token once, nothing padded, the head on response tokens alone.

    The stream of all tokens is cut into rows that attend causally within themselves: no score comes out of that.
    """

    def __init__(self, model: Any, rows: Rows, row_tokens: int, rows_at_a_time: int, head_tokens: int) -> None:
        """Take the sizes of the tiles: of the rows, of the batches of rows, and of the output layer."""
        self.model, self.head_tokens = model, head_tokens
        stream = [token for prompt, responses in rows for part in (prompt, *responses) for token in part]
        counts = [
            mark for prompt, responses in rows for mark in [0] * len(prompt) + [1] * sum(len(ids) for ids in responses)
        ]
        pieces = [torch.tensor(stream[start : start + row_tokens]) for start in range(0, len(stream), row_tokens)]
        whole = len(stream) // row_tokens
        self.batches = [
            torch.stack(pieces[start : min(start + rows_at_a_time, whole)]) for start in range(0, whole, rows_at_a_time)
        ]
        self.batches += [piece[None] for piece in pieces[whole:]]
        self.counted, self.ids = torch.tensor(counts).bool(), torch.tensor(stream)

    @torch.inference_mode()
    def run(self) -> float:
        """Return the sum of what the output layer gives, which means nothing."""
        done, total = 0, 0.0
        weight = self.model.get_output_embeddings().weight
        for batch in self.batches:
            hidden = self.model.base_model(input_ids=batch, use_cache=False).last_hidden_state.flatten(0, 1)
            counted = self.counted[done : done + batch.numel()]
            hidden, ids = hidden[counted], self.ids[done : done + batch.numel()][counted]
            done += batch.numel()
            for start in range(0, len(ids), self.head_tokens):
                part = slice(start, start + self.head_tokens)
                logits = (hidden[part] @ weight.T).float()
                total += float((logits.gather(-1, ids[part, None]).squeeze(-1) - logits.logsumexp(-1)).sum())
        return total
