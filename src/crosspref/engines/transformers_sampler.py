"""Sampling through ``transformers`` generate, with one random stream per response."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from crosspref.engines.protocols import Advance, Sampled
from crosspref.engines.transformers_models import (
    free_memory,
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    readable_directory,
    stop_ids,
)
from crosspref.models import ModelFiles
from crosspref.recipe import ResourceSettings, SampleSettings


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
        cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
        uniform = torch.from_numpy(self.uniforms[:, self.step, None]).to(scores.device)
        # Scaled by the last value, so that a sum of 1 - 1e-7 cannot leave a draw without a token.
        choice = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        choice = choice.clamp_(max=scores.shape[-1] - 1)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, choice, 0.0)


class TransformersSampler:
    """Samples from one policy that transformers holds."""

    def __init__(
        self,
        policy: ModelFiles,
        settings: SampleSettings,
        resources: ResourceSettings,
        trust_remote_code: bool = False,
    ) -> None:
        directory = readable_directory(policy)
        device = pick_device(resources)
        self.model: Any = load_model(directory, pick_dtype(resources, device), device, trust_remote_code)
        self.tokenizer = load_tokenizer(directory, trust_remote_code)
        self.stops = stop_ids(self.model, self.tokenizer)
        self.settings = settings
        # A model's own sampling defaults (temperature, repetition penalty ...) must not mix with the recipe's.
        self.model.generation_config = GenerationConfig()

    def sample(self, requests: Sequence[tuple[str, Sequence[int]]], advance: Advance) -> list[list[Sampled]]:
        """Answer each (instruction, seeds) with one response per seed, in batches of similar prompt length."""
        prompts = [self.tokenizer.prompt_ids(instruction) for instruction, _ in requests]
        jobs = [(index, seed) for index, (_, seeds) in enumerate(requests) for seed in seeds]
        jobs.sort(key=lambda job: len(prompts[job[0]]))
        answers: dict[tuple[int, int], Sampled] = {}
        for start in range(0, len(jobs), self.settings.batch_size):
            batch = jobs[start : start + self.settings.batch_size]
            sampled = self._generate([prompts[index] for index, _ in batch], [seed for _, seed in batch])
            answers.update(zip(batch, sampled, strict=True))
            advance(len(batch), sum(len(answer.token_ids) for answer in sampled))
        return [[answers[index, seed] for seed in seeds] for index, (_, seeds) in enumerate(requests)]

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
        choice = SeededChoice(seeds, settings.max_new_tokens, settings.temperature, settings.top_p)
        output = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=settings.max_new_tokens,
                eos_token_id=self.stops,
                pad_token_id=self.tokenizer.pad,
            ),
            logits_processor=LogitsProcessorList([choice]),
        )
        return [self._cut(row) for row in output[:, width:].tolist()]

    def _cut(self, ids: list[int]) -> Sampled:
        """Cut a row behind its first end-of-turn token; what follows is padding."""
        end = next((position for position, token in enumerate(ids) if token in self.stops), None)
        if end is None:
            return Sampled(self.tokenizer.text(ids), ids, "length")
        return Sampled(self.tokenizer.text(ids[:end]), ids[: end + 1], "stop")
