"""Scoring through transformers: each prompt is computed once and shared by its responses.

A batch only ever holds responses to one prompt, so a score cannot depend on which prompts share a shard.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from crosspref.data.records import Instruction, Response
from crosspref.engines import EngineSettings
from crosspref.engines.packed.head import head_logprobs
from crosspref.engines.packed.rows import cut_rows, pack, packed_attention, predicting_states
from crosspref.engines.self_check import SelfCheck, made_up_ids, not_finite, plain_logprobs
from crosspref.engines.transformers import models
from crosspref.engines.transformers.adapters import load_views
from crosspref.engines.transformers.chat import ChatTokenizer, require_ids
from crosspref.errors import DataError
from crosspref.models.locate import ModelFiles
from crosspref.protocols import Known, LogProbs
from crosspref.recipe.sections import RewardSettings

RELEASED_BATCH = 3
"""How many prompts stand side by side in the paper's released scripts."""

Counting = Callable[[list[int]], list[bool]]
"""Says of each token of a row whether its log-probability counts."""


def every_token(ids: list[int]) -> list[bool]:
    """Count every token of a row."""
    return [True] * len(ids)


class ModelScorer:
    """log pi(y | prompt) under one model, by the fastest path that agrees with the model's own forward pass."""

    def __init__(
        self, model: Any, settings: RewardSettings, use: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """Take a model, and a context in which it is the one to score with if others share its weights."""
        self.model, self.use = model, use
        self.batch_tokens = settings.batch_tokens
        self.budget = settings.logits_megabytes << 20
        self.even_length = models.even_length(model.config.get_text_config())
        self.tiled, self.packed = True, False
        with use():
            self._check()

    @torch.inference_mode()
    def logprobs(
        self, prompt: list[int], responses: Sequence[list[int]], counting: Counting = every_token
    ) -> list[float]:
        """Return the log-probability of each response, in nats, summed over the tokens that count.

        It is 0.0 where no token does, and -inf where the model rules a token out.

        Raises:
            ModelError: one is NaN or +inf.
            DataError: the model has no positions for so many tokens.
        """
        distinct = [list(ids) for ids in dict.fromkeys(map(tuple, responses)) if ids]  # equal ones are computed once
        longest = len(prompt) + max(map(len, distinct), default=0)
        path = self._pack if self.packed and longest <= self.even_length else self._plain
        try:
            with self.use():
                values = path(prompt, distinct) if distinct else []
        except IndexError as error:  # positions that are embedded end somewhere; others go on
            raise DataError(
                f"A prompt and a response have {longest:,} tokens together, and {type(self.model).__name__} takes "
                f"{models.context_length(self.model.config):,}. Leave such responses out, or sample shorter ones "
                "(sample.max_new_tokens, sample.max_prompt_tokens)."
            ) from error
        sums = {
            tuple(ids): float(value[torch.tensor(counting(ids), device=value.device)].sum(dtype=torch.float64))
            for ids, value in zip(distinct, values, strict=True)
        }
        if not all(value < math.inf for value in sums.values()):  # which NaN is not, either
            raise not_finite(f"scoring by {type(self.model).__name__}")
        return [sums.get(tuple(ids), 0.0) for ids in responses]

    def _pack(self, prompt: list[int], responses: list[list[int]]) -> list[torch.Tensor]:
        """Return (tokens,), float32, nats, for each response, from rows that hold the prompt once."""
        values: list[torch.Tensor] = []
        with packed_attention(self.model) as function:
            for part in cut_rows(len(prompt), responses, self.batch_tokens):
                row = pack([(prompt, part)], self.model.device)
                hidden = predicting_states(self.model, row, function)
                values += torch.split(head_logprobs(self.model, hidden, row.targets, self.budget), row.lengths)
        return values

    def _plain(self, prompt: list[int], responses: list[list[int]]) -> list[torch.Tensor]:
        """Return the same from full rows, one by one: slower, but nothing is shared and nothing is padded."""
        values = []
        for response in responses:
            if len(prompt) + len(response) > self.even_length:
                self._hidden(prompt[:1])  # dynamic positions forget the longest row before this one
            if self.tiled:
                hidden = self._hidden(prompt + response)[0, len(prompt) - 1 : -1]
                ids = torch.tensor(response, device=self.model.device)
                values.append(head_logprobs(self.model, hidden, ids, self.budget))
            else:
                values.append(plain_logprobs(self.model, prompt, response))
        return values

    def _hidden(self, ids: list[int]) -> torch.Tensor:
        row = torch.tensor([ids], device=self.model.device)
        hidden: torch.Tensor = self.model.base_model(input_ids=row, use_cache=False).last_hidden_state
        return hidden

    @torch.inference_mode()
    def _check(self) -> None:
        """Compare both fast paths with the model's own logits on a few made-up tokens."""
        ids = made_up_ids(self.model)
        prompt, responses = ids[:6], [ids[6:14], ids[9:12]]
        check = SelfCheck(self.model, "is scored by its own full forward pass")

        def passes(path: Callable[[list[int], list[list[int]]], list[torch.Tensor]], reason: str) -> bool:
            def fast() -> list[float]:
                return [float(values.sum()) for values in path(prompt, responses)]

            return check.passes(reason, fast, expected, [len(response) for response in responses])

        @functools.cache
        def expected() -> list[float]:
            return [float(plain_logprobs(self.model, prompt, response).sum()) for response in responses]

        self.tiled = passes(self._plain, "its output layer does more than a projection")
        self.packed = self.tiled and passes(self._pack, "a prompt cannot be shared by its responses")


class TransformersScorer:
    """Scores responses under a policy and, where there is one, a reference, with one batch layout for both.

    Where one is an adapter over the other, or both are over one base, that is held once.
    """

    def __init__(self, settings: EngineSettings, policy: ModelFiles, reference: ModelFiles | None) -> None:
        models.comparable_directories(policy, reference, settings.asking)
        described = models.describe_model(policy, settings.asking)
        self.tokenizer, self.stops = described.tokenizer, described.stops
        loading = models.Loading.of(settings)
        views = load_views([policy] if reference is None else [policy, reference], loading)
        scorers = [ModelScorer(model, settings.reward, use) for model, use in views]
        self.policy, self.reference = scorers[0], None if reference is None else scorers[1]
        self.vocabulary = min(models.vocabulary_of(model.config) for model, _ in views)
        self.count_end_of_turn = settings.reward.end_of_turn == "if_stopped"

    def score(
        self, instruction: Instruction, responses: Sequence[Response], known: Sequence[Known] = ()
    ) -> list[LogProbs]:
        """Score all responses to one instruction; see ``protocols.Scorer``.

        Raises:
            DataError: a response has token ids that the models do not have.
        """
        for response in responses:
            what = f"Response {response.sample} to {response.prompt_id!r} in {response.language}"
            require_ids(response.token_ids or (), self.vocabulary, what)
        prompt = self.tokenizer.prompt_ids(instruction, answered=True)
        rows = [counted_ids(response, self.tokenizer, self.stops, self.count_end_of_turn) for response in responses]
        return self.logprobs(prompt, rows, known=known)

    def logprobs(
        self,
        prompt: list[int],
        rows: Sequence[list[int]],
        known: Sequence[Known] = (),
        counting: Counting = every_token,
    ) -> list[LogProbs]:
        """Score rows of ids behind a prompt's ids, summed over the tokens that count."""
        columns: list[list[float | None]] = []
        for number, scorer in enumerate((self.policy, self.reference)):
            column = [values[number] for values in known] or [None] * len(rows)
            if scorer is not None:
                missing = [index for index, value in enumerate(column) if value is None]
                computed = scorer.logprobs(prompt, [rows[index] for index in missing], counting)
                for index, value in zip(missing, computed, strict=True):
                    column[index] = value
            columns.append(column)
        counts = [sum(counting(row)) for row in rows]
        return [LogProbs(*values) for values in zip(*columns, counts, strict=True)]

    def close(self) -> None:
        """Give the memory back."""
        del self.policy, self.reference
        models.free_memory()


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


class ReleasedScorer(TransformersScorer):
    """Scores as the paper's released scripts do, to compare with their numbers.

    They sum other log-probabilities than Eq. 9. A row is the prompt, the stripped response tokenised again, and the
    end-of-turn token, even where a response was cut. The rows of three neighbouring prompts are padded to the longest.
    Position j of the log-probabilities predicts token j + 1, but the scripts' mask says of token j whether it counts:
    not if it belongs to the prompt, and not if it is the padding token. So the first response token is not counted. The
    end-of-turn token is, and so is the first padding token of a padded row, unless the model pads with its end-of-turn
    token: then that is masked, and no padding counts.

    Padding on the right changes no real position, so no such batch is computed here: the padding token is appended
    where it would be counted, and the row is scored like any other. The scripts' padded row can only differ from that
    for models whose positions depend on the length of the row (``even_length``).
    """

    def score_each(
        self, requests: Sequence[tuple[Instruction, Sequence[Response]]], without: Collection[int] = ()
    ) -> Iterator[list[LogProbs]]:
        """Score in batches of 3 in the order given; see ``protocols.ReleasedScorer``."""
        tokenizer, padding = self.tokenizer, self._padding()
        prompts = [tokenizer.prompt_ids(instruction, answered=True) for instruction, _ in requests]
        rows = [
            [tokenizer.response_ids(response.text.strip(), ended=True, alone=True) for response in responses]
            for _, responses in requests
        ]
        lengths = [
            [(response.sample, len(prompt) + len(ids)) for response, ids in zip(responses, texts, strict=True)]
            for (_, responses), prompt, texts in zip(requests, prompts, rows, strict=True)
        ]
        padded_rows = [
            [[*ids, padding] if is_padded else ids for ids, is_padded in zip(texts, padded, strict=True)]
            for texts, padded in zip(rows, are_padded(lengths), strict=True)
        ]

        def counting(ids: list[int]) -> list[bool]:
            return [number > 0 and ids[number - 1] != padding for number in range(len(ids))]

        for number, (prompt, ids) in enumerate(zip(prompts, padded_rows, strict=True)):
            if number not in without:
                yield self.logprobs(prompt, ids, counting=counting)

    def _padding(self) -> int:
        """Return what the scripts pad with: the tokenizer's padding token, else its end of sequence."""
        tokenizer = self.tokenizer.tokenizer
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, self.tokenizer.end_of_turn)
        return next(int(token) for token in known if token is not None)


def are_padded(lengths: Sequence[Sequence[tuple[int, int]]]) -> list[list[bool]]:
    """Tell of every row whether the released scripts would pad it.

    Args:
        lengths: for each prompt the (sample, tokens of prompt, response and end-of-turn) of its responses. Prompts
            without responses are in no batch. Batch k of pass n holds the responses with sample n to the k-th three
            prompts, as many of them as have one.

    Returns:
        For each prompt and response, in the same order: is it shorter than the longest row of its batch?
    """
    answered = [index for index, rows in enumerate(lengths) if rows]
    batch = {index: place // RELEASED_BATCH for place, index in enumerate(answered)}
    longest: dict[tuple[int, int], int] = {}
    for index in answered:
        for sample, length in lengths[index]:
            key = (batch[index], sample)
            longest[key] = max(length, longest.get(key, 0))
    return [[length < longest[batch[index], sample] for sample, length in rows] for index, rows in enumerate(lengths)]
