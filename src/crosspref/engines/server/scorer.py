"""Scoring by a server that returns the log-probabilities of a prompt's tokens, as vLLM's does."""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, StrictFloat

from crosspref.data.records import Instruction, Response
from crosspref.engines import EngineSettings
from crosspref.engines.server.chat import Index
from crosspref.engines.server.client import ServedModel, ServerClient
from crosspref.engines.transformers.models import comparable_directories, describe_model
from crosspref.engines.transformers.scorer import counted_ids
from crosspref.errors import ModelError, ServerError
from crosspref.models.locate import ModelFiles
from crosspref.protocols import Known, LogProbs

ROUNDING = 1e-3
"""Nats by which rounding may lift a log-probability above 0."""

LARGEST = 3.5e38
"""Nats. What is larger is infinite in the number formats that models compute in, and its sums may be in ours."""


class _LogProb(BaseModel):
    logprob: StrictFloat


class _Prompt(BaseModel):
    index: Index = None
    prompt_logprobs: list[dict[str, _LogProb] | None] | None = None


class _Completion(BaseModel):
    choices: tuple[_Prompt]


class ServerScorer:
    """Scores responses under a policy and, where there is one, a reference; both are served, by engines of one kind.

    Raises:
        ServerError: a server does not answer, serves other models, or returns no log-probabilities of prompts.
        ModelError: the two models differ in their tokenizer, or are one and the same.
    """

    def __init__(self, settings: EngineSettings, policy: ModelFiles, reference: ModelFiles | None) -> None:
        models = [policy] if reference is None else [policy, reference]
        directories = comparable_directories(policy, reference, settings.asking)
        described = describe_model(policy, settings.asking)
        self.tokenizer, self.stops = described.tokenizer, described.stops
        self.count_end_of_turn = settings.reward.end_of_turn == "if_stopped"
        self.client = ServerClient(settings.server)
        roles = [settings.role(model) for model in models]
        try:
            self.models = [self.client.find(*named) for named in zip(roles, directories, strict=True)]
            _require_two(self.models)
        except (ModelError, ServerError):
            self.client.close()
            raise

    def score(
        self, instruction: Instruction, responses: Sequence[Response], known: Sequence[Known] = ()
    ) -> list[LogProbs]:
        """Score all responses to one instruction; see ``protocols.Scorer``."""
        prompt = self.tokenizer.prompt_ids(instruction, answered=True)
        rows = [counted_ids(row, self.tokenizer, self.stops, self.count_end_of_turn) for row in responses]
        sums: list[list[Any]] = [[*pair[: len(self.models)]] for pair in known or [(None, None)] * len(rows)]
        missing = [(row, model) for row, pair in enumerate(sums) for model, value in enumerate(pair) if value is None]
        values = self.client.gather([self._logprob(self.models[model], prompt, rows[row]) for row, model in missing])
        for (row, model), value in zip(missing, values, strict=True):
            sums[row][model] = value
        return [
            LogProbs(policy, reference[0] if reference else None, len(row))
            for (policy, *reference), row in zip(sums, rows, strict=True)
        ]

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    async def _logprob(self, model: ServedModel, prompt: list[int], row: list[int]) -> float:
        """Return log pi(row | prompt), nats, summed in float64; 0.0 if there are no ids."""
        if not row:
            return 0.0
        ids = prompt + row

        def read(content: bytes) -> float:
            [choice] = _Completion.model_validate_json(content).choices
            if choice.prompt_logprobs is None:
                raise ServerError(
                    f"{model} returns no log-probabilities of a prompt: it does not know prompt_logprobs, as vLLM "
                    "does. Set reward.engine: transformers, or serve policy and reference with vLLM. "
                    f"{self.client.kept}"
                )
            if len(choice.prompt_logprobs) != len(ids):
                raise ValueError(f"{len(choice.prompt_logprobs)} log-probabilities of {len(ids)} tokens")
            # The first token stands behind nothing. Those of the prompt show that it is ours.
            places = zip(ids[1:], choice.prompt_logprobs[1:], strict=True)
            values = [_value(token, place) for token, place in places][-len(row) :]
            if not all(abs(value) < LARGEST for value in values):  # which NaN is not, either
                raise ServerError(
                    f"{model} returns a log-probability that is not finite. The model that it serves may hold NaN, or "
                    "overflow in its number format."
                )
            if max(values) > ROUNDING:
                raise ServerError(
                    f"{model} returns {max(values):.4g} as a log-probability, which is above 0. vLLM does so when it "
                    f"is started with another --logprobs-mode than raw_logprobs. {self.client.kept}"
                )
            return math.fsum(values)

        # One token is the least that vLLM generates; what counts is what it says of the prompt.
        body: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "extra_body": {"prompt_logprobs": 0}}
        return await self.client.complete(model, read, prompt=ids, **body)


def _value(token: int, place: dict[str, _LogProb] | None) -> float:
    if place is None or str(token) not in place:
        raise ValueError(f"the log-probability of token {token} is missing")
    return place[str(token)].logprob


def _require_two(models: Sequence[ServedModel]) -> None:
    if len({(model.url, model.name) for model in models}) < len(models):
        roles = " and ".join(model.role for model in models)
        raise ModelError(
            f"{roles} are both asked for as {models[0].name!r} at {models[0].url}, so that every reward would be 0. "
            "Serve them under two names, and give those in server.names."
        )
