"""Scoring through transformers: each prompt is computed once and shared by its responses.

A batch only ever holds responses to one prompt, so a score cannot depend on which prompts share a shard.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from crosspref.data.records import Response
from crosspref.engines import EngineSettings
from crosspref.engines.packed.attention import pack, packed_attention, predicting_states
from crosspref.engines.packed.output_layer import SELF_CHECK_TOLERANCE, head_logprobs, made_up_ids
from crosspref.engines.transformers.adapters import load_views
from crosspref.engines.transformers.models import (
    ChatTokenizer,
    even_length,
    free_memory,
    load_tokenizer,
    pick_device,
    pick_dtype,
    readable_directory,
    stop_ids,
)
from crosspref.maths.logprobs import token_logprobs
from crosspref.models.locate import ModelFiles
from crosspref.models.tokenizers import require_same_tokenizer
from crosspref.protocols import Known, LogProbs
from crosspref.recipe.sections import RewardSettings

log = logging.getLogger(__name__)


class ModelScorer:
    """log pi(y | prompt) under one model, by the fastest path that agrees with the model's own forward pass."""

    def __init__(
        self, model: Any, settings: RewardSettings, use: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """Take a model, and a context in which it is the one to score with if others share its weights."""
        self.model, self.use = model, use
        self.batch_tokens = settings.batch_tokens
        self.budget = settings.logits_megabytes << 20
        self.even_length = even_length(model.config.get_text_config())
        self.tiled = self.packed = False
        self._own: dict[tuple[int, ...], float] = {}
        with use():
            self.tiled = self._agrees(self._plain, "its output layer does more than a projection")
            self.packed = self.tiled and self._agrees(self._pack, "a prompt cannot be shared by its responses")

    @torch.inference_mode()
    def logprobs(self, prompt: list[int], responses: Sequence[list[int]], skip: int = 0) -> list[float]:
        """Return the log-probability of each response, in nats, summed over its tokens but the first ``skip``.

        It is 0.0 where no token is left.
        """
        distinct = [list(ids) for ids in dict.fromkeys(map(tuple, responses)) if ids]  # equal ones are computed once
        longest = len(prompt) + max(map(len, distinct), default=0)
        path = self._pack if self.packed and longest <= self.even_length else self._plain
        with self.use():
            values = path(prompt, distinct) if distinct else []
        sums = {
            tuple(ids): float(value[skip:].sum(dtype=torch.float64))
            for ids, value in zip(distinct, values, strict=True)
        }
        return [sums.get(tuple(ids), 0.0) for ids in responses]

    def _pack(self, prompt: list[int], responses: list[list[int]]) -> list[torch.Tensor]:
        """Return (tokens,), float32, nats, for each response, from rows that hold the prompt once."""
        found: list[torch.Tensor] = []
        with packed_attention(self.model) as own:
            for part in cut_rows(len(prompt), responses, self.batch_tokens):
                row = pack([(prompt, part)], self.model.device)
                values = self._head(predicting_states(self.model, row, own), row.targets)
                found += torch.split(values, row.lengths)
        return found

    def _plain(self, prompt: list[int], responses: list[list[int]]) -> list[torch.Tensor]:
        """Return the same from full rows, one by one: slower, but nothing is shared and nothing is padded."""
        found = []
        for response in responses:
            if len(prompt) + len(response) > self.even_length:
                self._hidden(torch.tensor([prompt[:1]]))  # dynamic positions forget the longest row before this one
            row = torch.tensor([prompt + response])
            ids = row[0, len(prompt) :].to(self.model.device)
            if self.tiled:
                values = self._head(self._hidden(row)[0, len(prompt) - 1 : -1], ids)
            else:
                values = token_logprobs(self._own_logits(row)[0, len(prompt) - 1 : -1], ids)
            found.append(values)
        return found

    def _hidden(self, row: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model.base_model(
            input_ids=row.to(self.model.device), use_cache=False
        ).last_hidden_state
        return hidden

    def _head(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return head_logprobs(self.model, hidden, ids, self.budget)

    def _own_logits(self, row: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=row.to(self.model.device), use_cache=False).logits
        return logits

    def _own_logprob(self, prompt: list[int], response: list[int]) -> float:
        """Return what the model's own logits give a made-up response, nats; each path is compared with it."""
        if tuple(response) not in self._own:
            own = self._own_logits(torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1]
            value = token_logprobs(own, torch.tensor(response, device=own.device)).sum()
            self._own[tuple(response)] = float(value)
        return self._own[tuple(response)]

    @torch.inference_mode()
    def _agrees(self, path: Any, otherwise: str) -> bool:
        """Compare a path with the model's own logits on a few made-up tokens."""
        tokens = made_up_ids(self.model)
        prompt, responses = tokens[:6], [tokens[6:14], tokens[9:12]]
        tolerance = SELF_CHECK_TOLERANCE.get(self.model.dtype, 0.3)
        was, self.tiled = self.tiled, True
        try:
            for response, value in zip(responses, path(prompt, responses), strict=True):
                if abs(float(value.sum()) - self._own_logprob(prompt, response)) > tolerance * len(response):
                    break
            else:
                return True
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            otherwise = f"{otherwise} ({error})"
        finally:
            self.tiled = was
        log.warning("%s is scored by its own full forward pass, since %s.", type(self.model).__name__, otherwise)
        return False


def cut_rows(prompt: int, responses: Sequence[list[int]], tokens: int) -> Iterator[list[list[int]]]:
    """Cut responses into parts that have at most so many tokens beside a prompt of ``prompt`` tokens, or are one."""
    part: list[list[int]] = []
    left = tokens - prompt
    for response in responses:
        if part and len(response) > left:
            yield part
            part, left = [], tokens - prompt
        part.append(response)
        left -= len(response)
    yield part


class TransformersScorer:
    """Scores responses under a policy and, where there is one, a reference, with one batch layout for both.

    Where one is an adapter over the other, or both are over one base, that is held once.
    """

    def __init__(self, settings: EngineSettings, policy: ModelFiles, reference: ModelFiles | None) -> None:
        directories = [readable_directory(policy)]
        if reference is not None:
            directories.append(readable_directory(reference))
            require_same_tokenizer(directories[0], directories[1], (policy.name, reference.name))
        device = pick_device(settings.resources)
        dtype = pick_dtype(settings.resources, device)
        trust = settings.trust_remote_code
        self.tokenizer: ChatTokenizer = load_tokenizer(directories[0], trust)
        views = load_views([policy] if reference is None else [policy, reference], dtype, device, trust)
        self.stops = stop_ids(views[0].model, self.tokenizer)
        self.policy, *reference_scorer = (ModelScorer(view.model, settings.reward, view.use) for view in views)
        self.reference = reference_scorer[0] if reference_scorer else None
        self.count_end_of_turn = settings.reward.end_of_turn == "if_stopped"

    def score(self, instruction: str, responses: Sequence[Response], known: Sequence[Known] = ()) -> list[LogProbs]:
        """Score all responses to one instruction; a score does not depend on other instructions.

        ``known`` has what need not be computed of each response, or is empty.
        """
        prompt = self.tokenizer.prompt_ids(instruction)
        rows = [counted_ids(response, self.tokenizer, self.stops, self.count_end_of_turn) for response in responses]
        return self.logprobs(prompt, rows, known=known)

    def logprobs(
        self, prompt: list[int], rows: Sequence[list[int]], skip: int = 0, known: Sequence[Known] = ()
    ) -> list[LogProbs]:
        """Score rows of ids behind a prompt's ids, leaving out the first ``skip`` tokens of each row."""
        columns: list[list[float | None]] = []
        for number, scorer in enumerate((self.policy, self.reference)):
            column = [both[number] for both in known] or [None] * len(rows)
            if scorer is not None:
                asked = [index for index, value in enumerate(column) if value is None]
                values = scorer.logprobs(prompt, [rows[index] for index in asked], skip)
                for index, value in zip(asked, values, strict=True):
                    column[index] = value
            columns.append(column)
        counts = [max(0, len(row) - skip) for row in rows]
        return [LogProbs(*values) for values in zip(*columns, counts, strict=True)]

    def close(self) -> None:
        """Give the memory back."""
        del self.policy, self.reference
        free_memory()


def counted_ids(
    response: Response, tokenizer: ChatTokenizer, stops: Sequence[int], count_end_of_turn: bool
) -> list[int]:
    """Return which ids of a response are scored: all as sampled, but the end of turn only where it is asked for."""
    ended = response.finish_reason == "stop"
    if response.token_ids is None:
        return tokenizer.response_ids(response.text, ended and count_end_of_turn)
    if ended and not count_end_of_turn and response.token_ids[-1:] and response.token_ids[-1] in stops:
        return response.token_ids[:-1]
    return response.token_ids
