"""Sampling through ``transformers``, with one random stream per response."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from crosspref.engines import EngineSettings
from crosspref.engines.packed.decoding import Decoder, Draft, SharedPrompt, can_decode, lay_out_weights
from crosspref.engines.self_check import require_finite
from crosspref.engines.transformers import models
from crosspref.engines.transformers.adapters import load_files
from crosspref.models.locate import ModelFiles
from crosspref.protocols import Advance, Sampled, SampleRequest
from crosspref.run.kept import Kept, check_ids

NUCLEUS = (512, 4096)
"""How many of the likeliest tokens are looked at for a nucleus before all are sorted."""


class SeededChoice(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy decoding into sampling: leaves only the token that the row's own random number picks.

    Each row draws from a counter-based stream of its own seed, so neither the batch nor torch's global generator
    matters. Ids from ``known`` on are never picked.
    """

    def __init__(
        self, seeds: Sequence[int], steps: int, temperature: float, top_p: float, known: int | None = None
    ) -> None:
        self.uniforms = np.stack([uniforms_of(seed, steps) for seed in seeds])
        self.temperature, self.top_p, self.known = temperature, top_p, known
        self.step = 0

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (rows, vocabulary) that are 0 at each row's choice and -inf elsewhere."""
        choice = draw(scores[:, : self.known], self.uniforms[:, self.step], self.temperature, self.top_p)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, choice, 0.0)


class FiniteOnly(LogitsProcessor):  # type: ignore[misc]
    """Leaves scores (rows, vocabulary) as they are, if the likeliest token of each row is known."""

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores, or raise ModelError."""
        require_finite(scores.amax(-1), "sampling")
        return scores


def uniforms_of(seed: int, count: int) -> np.ndarray:
    """Return the first numbers in [0, 1), float64, of the stream that belongs to a seed."""
    return np.random.Generator(np.random.Philox(seed)).random(count)


def draw(logits: torch.Tensor, uniforms: np.ndarray, temperature: float, top_p: float) -> torch.Tensor:
    """Return the token (rows, 1) that each row's own random number picks.

    Args:
        logits: (rows, vocabulary), any float dtype.
        uniforms: (rows,), float64, in [0, 1).
        temperature: at 0 the likeliest token is taken.
        top_p: the nucleus is taken after the temperature.

    Raises:
        ModelError: a row has a logit that is NaN or +inf, or none but -inf.
    """
    if temperature == 0:
        highest, likeliest = logits.float().max(-1, keepdim=True)
        require_finite(highest, "sampling")
        return likeliest
    scores = logits.to(torch.float32, copy=True)  # then in place, since fresh memory of this size is slow
    highest = scores.amax(-1, keepdim=True)
    require_finite(highest, "sampling")
    weights = scores.sub_(highest).div_(temperature).exp_()
    uniform = torch.from_numpy(uniforms[:, None]).to(weights.device)
    if top_p >= 1:
        return invert_cumulative(weights, uniform)
    weights, ids = nucleus(weights, top_p)
    return ids.gather(-1, invert_cumulative(weights, uniform))


def nucleus(weights: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights (rows, some) of the likeliest tokens, 0 for those not needed for ``top_p``, and their ids.

    Most often the likeliest few hundred have that probability, so that the vocabulary need not be sorted.

    Args:
        weights: (rows, vocabulary), float32, not negative, any positive sum.
        top_p: the probability to be reached.
    """
    target = top_p * weights.sum(-1, keepdim=True, dtype=torch.float64)
    for count in (*(few for few in NUCLEUS if few < weights.shape[-1]), weights.shape[-1]):
        likeliest, ids = weights.topk(count)
        above = likeliest.cumsum(-1, dtype=torch.float64)
        if count == weights.shape[-1] or bool((above[:, -1:] >= target).all()):
            break
    kept = likeliest.masked_fill(above - likeliest >= target, 0.0)
    ids, order = ids.sort(-1)  # by id, as without a nucleus
    return kept.gather(-1, order), ids


def invert_cumulative(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return for each row the index (rows, 1) where its cumulative weight passes ``uniform`` of its total.

    First the block of 256 is found and then the index in it, since a running sum over a whole vocabulary is slow.

    Args:
        weights: (rows, vocabulary), float32, not negative, any positive sum.
        uniform: (rows, 1), float64, in [0, 1).
    """
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % 256)).reshape(len(weights), -1, 256)
    ends = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
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


class Tag(NamedTuple):
    """The seed of a response, and under which name it is kept."""

    seed: int
    name: str


class TransformersSampler:
    """Samples from one policy that transformers holds."""

    def __init__(self, settings: EngineSettings, policy: ModelFiles, *, greedy: bool = False) -> None:
        self.settings = settings.sample
        self.temperature = 0.0 if greedy else self.settings.temperature
        described = models.describe_model(policy, settings.asking)
        self.tokenizer, self.stops = described.tokenizer, described.stops
        self.longest_prompt = models.longest_prompt(self.settings, described.config)
        self.model: Any = load_files(policy, models.Loading.of(settings))
        # A model's own sampling defaults (temperature, repetition penalty ...) must not mix with the recipe's.
        self.model.generation_config = GenerationConfig()
        lay_out_weights(self.model)
        # As many tokens as a prompt and its longest response may have for the decoder; none if it cannot be used.
        self.decodable = models.even_length(self.model.config.get_text_config()) if can_decode(self.model) else 0

    def sample(
        self, requests: Sequence[SampleRequest], advance: Advance, temperature: float | None = None
    ) -> list[list[Sampled]]:
        """Answer each request; see ``protocols.Sampler``."""
        temperature = self.temperature if temperature is None else temperature
        steps, drafts = self.settings.max_new_tokens, []

        def check(_name: str, ids: object) -> None:
            if len(check_ids(ids, self.tokenizer.size)) > steps:
                raise ValueError("it is longer than a response may be")

        kept = Kept.of(advance, check)
        for request, (instruction, seeds) in enumerate(requests):
            prompt = SharedPrompt(self.tokenizer.prompt_ids(instruction))
            fits = len(prompt.ids) <= self.longest_prompt
            tags = [Tag(seed, f"{request}.{number}") for number, seed in enumerate(seeds) if fits]
            drafts.append([Draft(prompt, steps, tag, list(kept.items.get(tag.name, ()))) for tag in tags])
        # Longest first, so that too little memory shows at once; then answers to one prompt beside each other.
        ordered = sorted((one for row in drafts for one in row), key=lambda one: len(one.prompt.ids), reverse=True)
        left = [draft for draft in ordered if not draft.has_ended(self.stops)]
        kept(sum(len(seeds) for _, seeds in requests) - len(left), 0)
        longest = self.decodable - steps
        self._decode([draft for draft in left if len(draft.prompt.ids) <= longest], temperature, kept)
        self._generate_all([draft for draft in left if len(draft.prompt.ids) > longest], temperature, kept)
        return [[self._sampled(draft.ids) for draft in row] for row in drafts]

    def close(self) -> None:
        """Give the memory back."""
        self.model = None
        models.free_memory()

    def _decode(self, drafts: Sequence[Draft], temperature: float, kept: Kept) -> None:
        settings = self.settings
        uniforms = {draft: uniforms_of(draft.tag.seed, draft.limit) for draft in drafts}

        def choose(logits: torch.Tensor, live: Sequence[Draft]) -> torch.Tensor:
            numbers = np.array([uniforms[draft][len(draft.ids)] for draft in live])
            return draw(logits[:, : self.tokenizer.size], numbers, temperature, settings.top_p)[:, 0]

        decoder = Decoder(self.model, settings.batch_size, settings.batch_tokens, self.stops)
        decoder.run(
            drafts,
            choose,
            lambda draft: kept(1, len(draft.ids)),
            lambda: kept.keep({draft.tag.name: list(draft.ids) for draft in drafts if draft.ids}),
        )

    def _generate_all(self, drafts: Sequence[Draft], temperature: float, kept: Kept) -> None:
        """Do the same with the model's own generate, batch by batch; each runs until its longest response ends."""
        while drafts:
            width = len(drafts[0].prompt.ids) + drafts[0].limit
            rows = max(1, min(self.settings.batch_size, self.settings.batch_tokens // width))
            batch, drafts = drafts[:rows], drafts[rows:]
            for draft, ids in zip(batch, self._generate(batch, temperature), strict=True):
                end = next((place for place, token in enumerate(ids) if token in self.stops), len(ids))
                draft.ids = ids[: end + 1]  # what follows is padding
                kept(1, len(draft.ids))
            kept.keep({draft.tag.name: draft.ids for draft in batch})

    @torch.inference_mode()
    def _generate(self, drafts: Sequence[Draft], temperature: float) -> list[list[int]]:
        prompts = [torch.tensor(draft.prompt.ids) for draft in drafts]
        ids = pad_sequence(prompts, batch_first=True, padding_value=self.tokenizer.pad, padding_side="left")
        mask = pad_sequence(list(map(torch.ones_like, prompts)), batch_first=True, padding_side="left")
        settings = self.settings
        seeds = [draft.tag.seed for draft in drafts]
        choice = SeededChoice(seeds, settings.max_new_tokens, temperature, settings.top_p, self.tokenizer.size)
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
        rows: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return rows

    def _sampled(self, ids: list[int]) -> Sampled:
        return self.tokenizer.answer(ids, "stop" if ids[-1] in self.stops else "length")
