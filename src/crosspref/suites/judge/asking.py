"""One round of asking a judge over HTTP: many questions side by side, each answer kept as it comes."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from crosspref.errors import BudgetError, RefusedError, ServerError
from crosspref.run.progress import Meter
from crosspref.suites.judge.costs import size_of
from crosspref.suites.judge.questions import NO_LOGPROBS, REFUSAL, REFUSED, Question, read_answer
from crosspref.suites.judge.verdicts import Verdict, key_of, messages_digest

if TYPE_CHECKING:
    from crosspref.engines.server.client import ServerClient
    from crosspref.suites.judge.judge import Judge, Protocol

REFUSALS = 5
"""How many questions a server may refuse before it has taken any, until it is the request that it does not like."""


class _Token(BaseModel):
    token: str
    logprob: float


class _Place(_Token):
    top_logprobs: list[_Token] = []


class _Logprobs(BaseModel):
    content: list[_Place] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Billed(BaseModel):
    usage: _Usage


class _Reply(BaseModel):
    model: str | None = None
    choices: tuple[_Choice]
    usage: _Usage | None = None


class Asking:
    """Asks the questions of one round.

    The first ones go alone until an answer tells what the server can do, and what its tokens are. From then on every
    choice is asked in the same way, and what the server refuses is a failed verdict and not the end.
    """

    def __init__(self, judge: "Judge", client: "ServerClient", meter: Meter) -> None:
        self.judge, self.client, self.meter = judge, client, meter
        self.served = client.unlisted("the judge", judge.name)
        self.way: Protocol | None = None
        self.ready = False
        self.refused: list[Question] = []
        self.refusal: RefusedError | None = None
        self.stopped: Exception | None = None
        self.left = 0

    def run(self, questions: Sequence[Question]) -> None:
        """Ask all; after an error or at the budget's end no more are asked, and what is on its way is waited for.

        Raises:
            BudgetError: the budget does not reach for all.
            ServerError: the server gave no answer to a question.
        """
        waiting = sorted(questions, key=lambda question: len(self.judge.allowed(question)), reverse=True)
        while waiting and not self.ready and self.stopped is None and len(self.refused) < REFUSALS:
            self._gather([waiting.pop(0)])
            if self.refused:  # perhaps it was too long
                waiting.sort(key=lambda question: (-len(self.judge.allowed(question)), size_of(question)))
        if self.refused and not self.ready:
            self.way = self._way_before(self.refused[0])
            self.ready = self.way is not None
        if self.ready:
            for question in self.refused:
                self._keep_refused(question)
        elif self.refused:
            self.stopped = self.stopped or self.refusal
        self._gather(waiting)
        if isinstance(self.stopped, BudgetError):
            raise BudgetError(
                f"The budget of {self.judge.settings.budget:,.4g} would be exceeded: {self.judge.costs.spent:,.4g} is "
                f"spent, and {self.left:,} questions are left. Every verdict is kept in {self.judge.log.path}: to go "
                "on, give the same command with a larger judge.budget."
            )
        if self.stopped is not None:
            raise self.stopped

    def _gather(self, questions: Sequence[Question]) -> None:
        places = asyncio.Semaphore(self.judge.settings.concurrency)
        self.client.gather([self._one(question, places) for question in questions])

    async def _one(self, question: Question, places: asyncio.Semaphore) -> None:
        async with places:
            if self.stopped is None:
                try:
                    await self._answer(question)
                except Exception as error:  # noqa: BLE001 - raised once what is on its way, and paid for, is kept
                    self.stopped = self.stopped or error
                else:
                    return
            self.left += 1

    async def _answer(self, question: Question) -> None:
        ways = self.judge.allowed(question)
        if len(ways) > 1 and self.way is not None:
            ways = [self.way]
        why = ""
        for way in ways:
            other = way != ways[-1]
            try:
                verdict = await self._send(question, way)
            except RefusedError as error:
                if self.ready:
                    self._keep_refused(question)
                    return
                if not other:
                    self.refused.append(question)
                    self.refusal = error
                    return
                why = f"refuses to give log-probabilities: {str(error)[:300]}"
                continue
            if verdict.failure == NO_LOGPROBS and not self.ready:
                if not other:
                    raise ServerError(
                        f"{self.served} gives no log-probabilities, for which judge.protocol asks: set it to auto or "
                        "text."
                    )
                why = "gives no log-probabilities"
                continue
            if why:
                self.judge.reporter.say(f"The judge {why}. Its choices are read from its text, as 1 or 0.")
            self._keep(verdict)
            if verdict.failure != REFUSAL:
                self.way, self.ready = way, True
            return

    def _way_before(self, question: Question) -> "Protocol | None":
        """Return in which way the judge has answered others in an earlier round, if it has."""
        judge = self.judge
        answered = [one.decoding for one in judge.log.verdicts.values() if one.judge == judge.name and one.text]
        return next((way for way in judge.allowed(question) if judge.request(question, way) in answered), None)

    def _keep_refused(self, question: Question) -> None:
        """Keep that the server refuses a question, as asked in the way that it takes others."""
        ways = self.judge.allowed(question)
        way = self.way if self.way in ways else ways[-1]
        self._keep(self._verdict(question, way, {"failure": REFUSED, "usage": {}}))

    async def _send(self, question: Question, way: "Protocol") -> Verdict:
        """Ask once, and count what that took."""
        costs, most, size = self.judge.costs, self.judge.most_written(question, way), size_of(question)
        cost = costs.expected(question, most)
        while not costs.reserve(cost):
            if costs.reserved < 1e-9:
                raise BudgetError
            await asyncio.sleep(0.02)  # what is on its way may cost less than was set aside for it
        usage: dict[str, int] | None = None
        try:
            reply = await self.client.chat(
                self.served,
                self._read,
                any_name=True,
                messages=[dict(message) for message in question.messages],
                extra_body=self.judge.request(question, way),
            )
            usage = reply.usage.model_dump() if reply.usage else costs.expected_usage(question, most)
        finally:
            costs.settle(cost, usage, size)
        [choice] = reply.choices
        about: dict[str, Any] = {
            "text": choice.message.content or choice.message.refusal,
            "usage": usage,
            "answered_as": reply.model,
            "finish_reason": choice.finish_reason,
            "failure": REFUSAL if choice.message.refusal or choice.finish_reason == "content_filter" else None,
        }
        if way == "logprobs":
            first = next(iter((choice.logprobs and choice.logprobs.content) or []), None)
            about["logprobs"] = first and {place.token: place.logprob for place in [first, *first.top_logprobs]}
            about["failure"] = about["failure"] or (None if first else NO_LOGPROBS)
        return self._verdict(question, way, about)

    def _read(self, body: bytes) -> _Reply:
        """Return the reply in a body. What cannot be used may have its price all the same."""
        try:
            return _Reply.model_validate_json(body)
        except ValidationError:
            with contextlib.suppress(ValidationError):
                self.judge.costs.count(_Billed.model_validate_json(body).usage.model_dump())
            raise

    def _verdict(self, question: Question, way: "Protocol", about: dict[str, Any]) -> Verdict:
        request, messages = self.judge.request(question, way), messages_digest(question.messages)
        answer = [about.get(name) for name in ("text", "logprobs", "finish_reason", "failure")]
        value, failure = read_answer(question, *answer, by_logprobs=way == "logprobs")
        return Verdict(
            key_of(self.judge.name, request, messages),
            self.judge.name,
            request,
            dt.datetime.now(dt.UTC).date().isoformat(),
            messages,
            about.get("text"),
            about.get("logprobs"),
            value,
            failure,
            about["usage"],
            about.get("answered_as"),
            about.get("finish_reason"),
        )

    def _keep(self, verdict: Verdict) -> None:
        self.judge.log.append(verdict)
        self.judge.asked += 1
        tokens = verdict.usage.get("prompt_tokens", 0) + verdict.usage.get("completion_tokens", 0)
        self.meter.advance(1, tokens)
