"""Sampling from a server that speaks OpenAI's protocol: as token ids, or as chat messages and text."""

from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

from pydantic import BaseModel, StrictInt

from crosspref.data.records import Instruction, as_messages
from crosspref.engines import EngineSettings
from crosspref.engines.server.chat import Index, Message, usage_of
from crosspref.engines.server.client import ServerClient
from crosspref.engines.transformers.models import describe_model, longest_prompt, vocabulary_of
from crosspref.errors import ServerError
from crosspref.keys import without_key
from crosspref.models.locate import ModelFiles
from crosspref.protocols import Advance, Sampled, SampleRequest
from crosspref.run.kept import Kept, check_answer


class _Continuation(BaseModel):
    index: Index = None
    finish_reason: str
    token_ids: list[StrictInt] | None = None
    prompt_token_ids: list[StrictInt] | None = None


class _Completion(BaseModel):
    choices: tuple[_Continuation]


class _Turn(BaseModel):
    index: Index = None
    message: Message
    finish_reason: str


class _Chat(BaseModel):
    choices: tuple[_Turn]
    usage: Any = None


class ServerSampler:
    """Samples from one policy that a server holds; here are only its tokenizer and its configuration.

    Each response is a separate request with its own seed, so it depends on no other; a server that caches prefixes
    computes their prompt once.

    Raises:
        ServerError: the server does not answer, or serves other models.
    """

    def __init__(self, settings: EngineSettings, policy: ModelFiles, *, greedy: bool = False) -> None:
        described = describe_model(policy, settings.asking)
        self.settings, server, self.tokenizer = settings.sample, settings.server, described.tokenizer
        self.switches = settings.asking.chat_template_kwargs  # which only the server can set where it takes messages
        # Servers stop at the tokenizer's own end of sequence, too, whatever they are asked.
        self.ends = sorted({*described.stops, self.tokenizer.tokenizer.eos_token_id} - {None})
        self.vocabulary = min(self.tokenizer.size, vocabulary_of(described.config))
        self.temperature, self.as_tokens = 0.0 if greedy else self.settings.temperature, server.protocol == "tokens"
        self.client = ServerClient(server)
        try:
            self.model = self.client.find(settings.role(policy), described.directory)
        except ServerError:
            self.client.close()
            raise
        self.longest_prompt = longest_prompt(self.settings, described.config, self.model.context)

    def sample(
        self, requests: Sequence[SampleRequest], advance: Advance, temperature: float | None = None
    ) -> list[list[Sampled]]:
        """Answer each request; with the protocol ``chat`` responses have no token ids. See ``protocols.Sampler``."""
        body = self._body(self.temperature if temperature is None else temperature)
        kept = Kept.of(advance, lambda _, answer: check_answer(answer, self.vocabulary))
        names: list[list[str]] = []
        answering = []
        for number, (instruction, seeds) in enumerate(requests):
            prompt = self.tokenizer.prompt_ids(instruction)
            fitting = seeds if len(prompt) <= self.longest_prompt else ()
            names.append([f"{number}.{sample}" for sample in range(len(fitting))])
            answering += [
                self._answer(name, instruction, prompt, {**body, "seed": seed}, kept)
                for name, seed in zip(names[-1], fitting, strict=True)
                if name not in kept.items
            ]
        kept(sum(len(seeds) for _, seeds in requests) - len(answering), 0)
        self.client.gather(answering, patience=self.client.settings.timeout)
        return [[Sampled(*kept.items[name]) for name in of_request] for of_request in names]

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _body(self, temperature: float) -> dict[str, Any]:
        body: dict[str, Any] = {"max_tokens": self.settings.max_new_tokens, "temperature": temperature}
        body["top_p"] = 1.0 if temperature == 0 else self.settings.top_p
        if self.as_tokens:
            # Those of vLLM are said one by one, since it takes what is left out from the model's generation config.
            defaults = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
            body["extra_body"] = {**defaults, "stop_token_ids": self.ends, "return_token_ids": True}
        elif self.switches:
            body["extra_body"] = {"chat_template_kwargs": self.switches}
        return body

    async def _answer(
        self, name: str, instruction: Instruction, prompt: list[int], body: dict[str, Any], kept: Kept
    ) -> None:
        if self.as_tokens:
            read = partial(self._read_tokens, prompt)
            answer = self.client.complete(self.model, read, prompt=prompt, **body)
        else:
            messages = as_messages(instruction)
            read = partial(self._read_text, messages[-1]["content"])
            answer = self.client.complete(self.model, read, messages=messages, **body)
        sampled, tokens = await answer
        kept.keep({name: astuple(sampled)})
        kept(1, tokens)

    def _read_tokens(self, prompt: list[int], content: bytes) -> tuple[Sampled, int]:
        """Return a response from token ids, if it ended as it should: at the first token that ends a turn, or cut."""
        [choice] = _Completion.model_validate_json(content).choices
        ids, reason = choice.token_ids, choice.finish_reason
        if choice.prompt_token_ids not in (None, prompt):
            raise ValueError("it is the answer to another prompt")
        if ids is None:
            raise ServerError(
                f"{self.model} returns no token ids: it does not know return_token_ids, as vLLM does. Set "
                f"server.protocol: chat, which takes text. {self.client.kept}"
            )
        strange = [token for token in ids if not 0 <= token < self.vocabulary]
        if strange:
            raise ValueError(f"token {strange[0]} is not in the vocabulary of {self.vocabulary}")
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        if reason == "stop" and end is not None and end == len(ids) - 1:
            return self._without_key(self.tokenizer.answer(ids, "stop")), len(ids)
        if reason == "length" and end is None and len(ids) == self.settings.max_new_tokens:
            return self._without_key(self.tokenizer.answer(ids, "length")), len(ids)
        ended = "does not end" if end is None else f"has token {ids[end]} at place {end}, which ends"
        raise ServerError(
            f"{self.model} ended a response after {len(ids)} of {self.settings.max_new_tokens} tokens by "
            f"{reason[:100]!r}, which {ended} a turn. A response ends at one of the tokens that end a turn "
            f"({', '.join(map(str, self.ends))}) or at the limit. vLLM does so with --generation-config vllm. "
            f"{self.client.kept}"
        )

    def _without_key(self, answer: Sampled) -> Sampled:
        """Return an answer, unless its tokens spell the server's key, which then would be stored."""
        if without_key(answer.text, self.client.key) != answer.text:
            raise ServerError(f"{self.model} answered with the key that it was sent. Nothing of it was stored.")
        return answer

    def _read_text(self, asked: str, content: bytes) -> tuple[Sampled, int]:
        """Return a response from text. An empty one is a response, too: asked again, the model would say it again."""
        chat = _Chat.model_validate_json(content)
        [turn] = chat.choices
        tokens = usage_of(chat.usage).completion_tokens or 0
        if turn.finish_reason == "stop":
            return self.tokenizer.text_answer(turn.message.text, "stop", tokens), tokens
        if turn.finish_reason == "length":
            return self.tokenizer.text_answer(turn.message.text, "length", tokens), tokens
        if turn.finish_reason == "content_filter":  # it would filter it again, and what is left is no answer to judge
            return Sampled("", None, "length"), tokens
        raise ServerError(
            f"{self.model} ended a response by {turn.finish_reason[:100]!r}, and not by itself or at the limit, so it "
            f"is not stored. Its prompt begins {asked[:60]!r}. Switch tools and reasoning parsers of the server off, "
            f"or leave that prompt out. {self.client.kept}"
        )
