"""Sampling through ``transformers`` generate, with one random stream per response."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from crosspref.engines.adapters import load_files
from crosspref.engines.protocols import Advance, Sampled
from crosspref.engines.transformers_models import (
    context_length,
    free_memory,
    load_tokenizer,
    pick_device,
    pick_dtype,
    readable_directory,
    stop_ids,
)
from crosspref.models import ModelFiles
from crosspref.resources import ResourceSettings
from crosspref.sections import SampleSettings


class SeededChoice(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy decoding into sampling: leaves only the token that the row's own random number picks.

    Each row draws from a counter-based stream of its own seed, by inverting the cumulative distribution, so neither
    the batch nor torch's global generator has a part in it.
    """

    def __init__(self, seeds: Sequence[int], steps: int, temperature: float, top_p: float) -> None:
        self.uniforms = np.stack([np.random.Generator(np.random.Philox(seed)).random(steps) for seed in seeds])
        self.temperature = temperature
        self.top_p = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (rows, vocabulary) that are 0 at each row's choice and -inf elsewhere."""
        scores = scores.float() / self.temperature
        if self.top_p is not None:
            scores = self.top_p(input_ids, scores)
        uniform = torch.from_numpy(self.uniforms[:, self.step, None]).to(scores.device)
        self.step += 1
        choice = invert_cumulative((scores - scores.amax(-1, keepdim=True)).exp_(), uniform)
        return scores.fill_(-torch.inf).scatter_(-1, choice, 0.0)


def invert_cumulative(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return for each row the index (rows, 1) where its cumulative weight passes ``uniform`` of its total.

    First the block of 256 is found and then the index in it, since a running sum over a whole vocabulary is slow.

    Args:
        weights: (rows, vocabulary), float32, not negative, any positive sum.
        uniform: (rows, 1), float64, in [0, 1).
    """
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % 256)).reshape(len(weights), -1, 256)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniform * ends[:, -1:]
    block = _first_above(ends, target)
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp_(min=0)), 0.0)
    inside = blocks.gather(1, block[..., None].expand(-1, 1, 256)).squeeze(1).cumsum(-1, dtype=torch.float64)
    return block * 256 + _first_above(inside, target - before)


def _first_above(ends: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the first position (rows, 1) whose running sum exceeds the target; the last that adds to it if none does.

    None does when rounding leaves the sum a little short; a position that adds nothing must not be chosen then either.
    """
    last = torch.searchsorted(ends, ends[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(ends, target.contiguous(), right=True), last)


class TransformersSampler:
    """Samples from one policy that transformers holds."""

    def __init__(
        self,
        policy: ModelFiles,
        settings: SampleSettings,
        resources: ResourceSettings,
        greedy: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.greedy = greedy
        directory = readable_directory(policy)
        device = pick_device(resources)
        self.model: Any = load_files(policy, pick_dtype(resources, device), device, trust_remote_code)
        self.tokenizer = load_tokenizer(directory, trust_remote_code)
        self.stops = stop_ids(self.model, self.tokenizer)
        self.longest_prompt = min(
            settings.max_prompt_tokens, context_length(self.model.config) - settings.max_new_tokens
        )
        self.settings = settings
        # A model's own sampling defaults (temperature, repetition penalty ...) must not mix with the recipe's.
        self.model.generation_config = GenerationConfig()

    def sample(self, requests: Sequence[tuple[str, Sequence[int]]], advance: Advance) -> list[list[Sampled]]:
        """Answer each (instruction, seeds) with one response per seed, in batches of similar prompt length.

        A prompt that is longer than the recipe allows, or than leaves room for a response in the model's context, gets
        no responses.
        """
        prompts = [self.tokenizer.prompt_ids(instruction) for instruction, _ in requests]
        fits = [len(prompt) <= self.longest_prompt for prompt in prompts]
        jobs = [(index, seed) for index, (_, seeds) in enumerate(requests) for seed in seeds if fits[index]]
        jobs.sort(key=lambda job: len(prompts[job[0]]), reverse=True)
        advance(sum(len(seeds) for _, seeds in requests) - len(jobs), 0)
        answers: dict[tuple[int, int], Sampled] = {}
        while jobs:
            # Longest first, so that the first prompt fixes the width, and too little memory shows at once.
            width = len(prompts[jobs[0][0]]) + self.settings.max_new_tokens
            rows = max(1, min(self.settings.batch_size, self.settings.batch_tokens // width))
            batch, jobs = jobs[:rows], jobs[rows:]
            sampled = self._generate([prompts[index] for index, _ in batch], [seed for _, seed in batch])
            answers.update(zip(batch, sampled, strict=True))
            advance(len(batch), sum(len(answer.token_ids or ()) for answer in sampled))
        return [
            [answers[index, seed] for seed in seeds] if fit else []
            for index, ((_, seeds), fit) in enumerate(zip(requests, fits, strict=True))
        ]

    def close(self) -> None:
        """Give the memory back."""
        self.model = None
        free_memory()

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], seeds: list[int]) -> list[Sampled]:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self.tokenizer.pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        settings = self.settings
        choices = [SeededChoice(seeds, settings.max_new_tokens, settings.temperature, settings.top_p)]
        output = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=settings.max_new_tokens,
                eos_token_id=self.stops,
                pad_token_id=self.tokenizer.pad,
            ),
            logits_processor=LogitsProcessorList([] if self.greedy else choices),
        )
        return [self._cut(row) for row in output[:, width:].tolist()]

    def _cut(self, ids: list[int]) -> Sampled:
        """Cut a row behind its first end-of-turn token; what follows is padding."""
        end = next((position for position, token in enumerate(ids) if token in self.stops), None)
        if end is None:
            return Sampled(self.tokenizer.text(ids), ids, "length")
        return Sampled(self.tokenizer.text(ids[:end]), ids[: end + 1], "stop")
