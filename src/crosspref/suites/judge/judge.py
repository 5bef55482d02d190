"""The judge: asks many questions at a time within a budget, keeps every answer as it comes, and asks nothing twice."""

import asyncio
import contextlib
import datetime as dt
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError, field_validator
from pydantic_core import from_json

from crosspref.engines.server.chat import Index, Message, Usage, usage_of
from crosspref.errors import BudgetError, RecipeError, RefusedError, ServerError, UnusableError
from crosspref.run.progress import Meter, Reporter
from crosspref.run.verdicts import Verdict, VerdictLog, is_logprob, key_of, messages_digest
from crosspref.suites.judge.questions import (
    IMPOSSIBLE,
    NO_LOGPROBS,
    REFUSAL,
    REFUSED,
    UNUSABLE,
    Decoding,
    Question,
    read_answer,
)
from crosspref.suites.settings import JudgeSettings

if TYPE_CHECKING:
    from crosspref.engines.server.client import ServerClient

Way = Literal["logprobs", "text"]
"""How a question is asked: what the answer is read from."""

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes of text per token, for the estimate; bytes, since a character of other scripts takes more tokens."""

REFUSALS = 5
"""To how many questions there may be no answer before there is one to any, until the request itself is at fault."""


class Judge:
    """Asks one judge, or replays a file of verdicts and asks nobody.

    Args:
        settings: who judges and how.
        log: the verdicts that there are; new ones are appended unless ``replayed``.
        reporter: says what is asked, and shows progress.
        replayed: whether what the log lacks is counted, and not asked.

    Raises:
        RecipeError: no judge is named.
    """

    def __init__(self, settings: JudgeSettings, log: VerdictLog, reporter: Reporter, *, replayed: bool = False) -> None:
        if settings.model is None and replayed and len(log.judges()) == 1:
            settings = settings.model_copy(update={"model": log.judges()[0]})
        if settings.model is None:
            known = f" {log.path} has {', '.join(log.judges()) or 'none'}." if replayed else ""
            raise RecipeError(f"No judge is named: set judge.model to its name on its server.{known}")
        self.settings, self.log, self.reporter, self.replayed = settings, log, reporter, replayed
        self.name = settings.model
        self.costs = Costs(settings)
        for verdict in log.verdicts.values():
            if verdict.judge == self.name:
                self.costs.count(verdict.usage)  # at today's prices
        self.asked = self.lacking = 0
        self.used: list[Verdict] = []
        if log.broken:
            fate = "are counted as lacking" if replayed else "will be asked again"
            reporter.say(f"{log.path}: {log.broken} lines are cut or damaged; their verdicts {fate}")

    def ask(self, questions: Sequence[Question], label: str = "judge") -> list[Verdict | None]:
        """Return a verdict for each question; None for what a replayed file lacks.

        Raises:
            BudgetError: asking more would exceed the budget; what was judged is kept.
            ServerError: the judge gave no answer to a question, after all retries; what was judged is kept.
        """
        missing = {
            self.key(question, "text"): question for question in questions if self.answered_way(question) is None
        }
        if missing and self.replayed:
            self.lacking += len(missing)
            self.reporter.say(
                f"{label}: {self.log.path} lacks the verdicts of {self.name} on {len(missing):,} of {len(questions):,} "
                f"questions, or they were asked in another way. It has {len(self.log.verdicts):,} verdicts of "
                f"{', '.join(self.log.judges())}."
            )
        elif missing:
            self._ask_missing(list(missing.values()), label)
        verdicts = [self._find(question) for question in questions]
        self.used += [verdict for verdict in verdicts if verdict is not None]
        return verdicts

    def describe(self) -> dict[str, Any]:
        """Return who judged and how, for results: of the verdicts that ``ask`` returned."""
        dates = sorted({verdict.date for verdict in self.used})
        return {
            "judge": self.name,
            "answered_as": sorted({verdict.answered_as for verdict in self.used if verdict.answered_as}),
            "decoding": [json.loads(text) for text in dict.fromkeys(json.dumps(v.decoding) for v in self.used)],
            "dates": [dates[0], dates[-1]] if dates else [],
            "verdicts": len(self.used),
            "failed": sum(verdict.verdict is None for verdict in self.used),
            "lacking": self.lacking,
        }

    def allowed(self, question: Question) -> list[Way]:
        """Return how a question may be asked, the best way first."""
        if question.labels is None or question.by_logprobs is None or self.settings.protocol == "text":
            return ["text"]
        return ["logprobs"] if self.settings.protocol == "logprobs" else ["logprobs", "text"]

    def answered_way(self, question: Question) -> Way | None:
        """Return in which way a question was asked before, if it was."""
        return next((way for way in self.allowed(question) if self.key(question, way) in self.log.verdicts), None)

    def decoding(self, question: Question, way: Way) -> Decoding:
        """Return how the judge is to write: as the settings say, else as the question does."""
        default = question.by_logprobs if way == "logprobs" and question.by_logprobs else question.by_text
        temperature, max_tokens = self.settings.temperature, self.settings.max_tokens
        return Decoding(
            default.temperature if temperature is None else temperature,
            default.max_tokens if max_tokens is None else max_tokens,
        )

    def most_written(self, question: Question, way: Way) -> int:
        """Return how many tokens an answer may have at most, by whichever setting allows the most."""
        given = (self.settings.request.get(name) for name in ("max_tokens", "max_completion_tokens"))
        return max([self.decoding(question, way).max_tokens, *(most for most in given if isinstance(most, int))])

    def request(self, question: Question, way: Way) -> dict[str, Any]:
        """Return what a request says beside the judge's name and the messages."""
        decoding = self.decoding(question, way)
        request: dict[str, Any] = {"temperature": decoding.temperature, "max_tokens": decoding.max_tokens}
        if way == "logprobs":
            request |= {"logprobs": True, "top_logprobs": self.settings.top_logprobs}
        return {name: value for name, value in (request | self.settings.request).items() if value is not None}

    def key(self, question: Question, way: Way) -> str:
        """Return the key of a question that is asked in this way."""
        return key_of(self.name, self.request(question, way), messages_digest(question.messages))

    def _find(self, question: Question) -> Verdict | None:
        way = self.answered_way(question)
        if way is None:
            return None
        return read_answer(self.log.verdicts[self.key(question, way)], question, by_logprobs=way == "logprobs")

    def _ask_missing(self, questions: list[Question], label: str) -> None:
        from crosspref.engines import find_engine

        written = sum(max(self.most_written(question, way) for way in self.allowed(question)) for question in questions)
        estimate = self.costs.estimate(questions, written)
        self.reporter.say(f"{label}: {self.name} at {self.settings.url}: {estimate}")
        kept = (
            f"Every verdict is kept in {self.log.path}: give the same command again when the judge is well, or with "
            f"--judge replay {self.log.path} for the tables of what there is."
        )
        client = find_engine("client", "server")(self.settings.transport(), "judge", kept)
        try:
            with self.reporter.step(label, len(questions)) as meter:
                _Round(self, client, meter).run(questions)
        finally:
            client.close()
            self.log.close()
            spent = f"; {self.costs.spent:,.4f} spent on its verdicts so far" if self.settings.price_in else ""
            self.reporter.say(f"{label}: {self.asked:,} answers came and are kept in {self.log.path}{spent}")


@dataclass
class Costs:
    """Counts the money of one judge against the budget; without prices only tokens."""

    settings: JudgeSettings
    spent: float = 0.0
    reserved: float = 0.0
    tokens_per_byte: float = 1 / BYTES_PER_TOKEN

    def estimate(self, questions: Sequence[Question], written: int) -> str:
        """Return the line about what asking these questions will take; at most ``written`` tokens come back."""
        read = sum(question.size for question in questions) / BYTES_PER_TOKEN
        line = (
            f"{len(questions):,} questions, about {read:,.0f} tokens to read and at most {written:,} to write "
            f"(an estimate: {BYTES_PER_TOKEN:g} bytes of text a token)"
        )
        if self.settings.price_in is None or self.settings.price_out is None:
            return f"{line}; no price is given (judge.price_in, judge.price_out)"
        known = f", {self.spent:,.2f} of it spent before" if self.spent else ""
        limit = f"; the budget is {self.settings.budget:,.2f}{known}" if self.settings.budget is not None else ""
        return f"{line}: about {self.price(read, written):,.2f}{limit}"

    def price(self, tokens_in: float, tokens_out: float) -> float:
        """Return what tokens cost; 0 where no price is known."""
        return (tokens_in * (self.settings.price_in or 0.0) + tokens_out * (self.settings.price_out or 0.0)) / 1e6

    def reserve(self, cost: float) -> bool:
        """Set money aside for a question, and tell whether it is within the budget."""
        budget = self.settings.budget
        if budget is not None and self.spent + self.reserved + cost > budget:
            return False
        self.reserved += cost
        return True

    def count(self, usage: Mapping[str, object]) -> None:
        """Count tokens that were used."""
        tokens = usage_of(usage)
        self.spent += self.price(tokens.prompt_tokens or 0, tokens.completion_tokens or 0)


class _Token(BaseModel):
    token: str
    logprob: float
    top_logprobs: list["_Token"] | None = None

    @field_validator("logprob", mode="before")
    @classmethod
    def _possible(cls, value: object) -> object:
        return value if is_logprob(value) else math.nan

    def with_rivals(self) -> list["_Token"]:
        """Return the token and those that might have stood in its place."""
        return [self, *(self.top_logprobs or ())]


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Choice(BaseModel):
    index: Index = None
    message: Message
    finish_reason: str | None = None
    logprobs: Any = None


class _Reply(BaseModel):
    model: str | None = None
    choices: tuple[_Choice]
    usage: Any = None


class _Round:
    """Asks the questions of one round.

    The first ones are asked one by one until an answer tells what the server can do, and how many tokens it counts.
    From then on every choice is asked in the same way, and what the server refuses is a failed verdict and not an
    error. An answer that cannot be used after all retries always is, since it was paid for and would come again.
    """

    def __init__(self, judge: Judge, client: "ServerClient", meter: Meter) -> None:
        self.judge, self.client, self.meter = judge, client, meter
        self.served = client.unlisted("the judge", judge.name)
        self.way: Way | None = None
        self.ready = False
        self.refused: list[Question] = []
        self.refusal: RefusedError | None = None
        self.unusable = 0
        self.nonsense: UnusableError | None = None
        self.stopped: Exception | None = None
        self.left = 0

    def run(self, questions: Sequence[Question]) -> None:
        """Ask all; after an error or at the end of the budget no more are asked, but pending answers are awaited.

        Raises:
            BudgetError: the budget does not suffice for all.
            ServerError: the server gave no answer to a question.
        """
        waiting = sorted(questions, key=lambda question: len(self.judge.allowed(question)), reverse=True)
        while waiting and not self.ready and self.stopped is None and len(self.refused) + self.unusable < REFUSALS:
            self._gather([waiting.pop(0)])
            if self.refused:  # perhaps it was too long
                waiting.sort(key=lambda question: (-len(self.judge.allowed(question)), question.size))
        if not self.ready and (self.refused or self.unusable):
            self.way = self._way_before(questions[0])
            self.ready = self.way is not None
        if self.ready:
            for question in self.refused:
                self._keep_refused(question)
        elif self.refused or waiting:
            self.stopped = self.stopped or self.refusal or self.nonsense
        self._gather(waiting)
        if isinstance(self.stopped, BudgetError):
            raise BudgetError(
                f"The budget of {self.judge.settings.budget:,.4g} would be exceeded: {self.judge.costs.spent:,.4g} is "
                f"spent, and {self.left:,} questions are left. Every verdict is kept in {self.judge.log.path}: to "
                "continue, give the same command with a larger judge.budget."
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
                except Exception as error:  # noqa: BLE001 - raised once pending answers, which are paid for, are kept
                    self.stopped = self.stopped or error
                else:
                    return
            self.left += 1

    async def _answer(self, question: Question) -> None:
        """Ask a question; while no way is known to work, in each way that it allows."""
        ways = self.judge.allowed(question)
        if len(ways) > 1 and self.way is not None:
            ways = [self.way]
        why = ""
        for way in ways:
            is_last = way == ways[-1]
            try:
                verdict = await self._send(question, way)
            except RefusedError as error:
                if self.ready:
                    self._keep_refused(question)
                    return
                if is_last:
                    self.refused.append(question)
                    self.refusal = error
                    return
                why = f"refuses to give log-probabilities: {str(error)[:300]}"
                continue
            if verdict.failure == NO_LOGPROBS and is_last and not self.ready:
                raise ServerError(
                    f"{self.served} gives no log-probabilities, for which judge.protocol asks: set it to auto or text."
                )
            if verdict.failure in (NO_LOGPROBS, UNUSABLE) and not is_last:
                why = "gives no log-probabilities"
                continue
            if why and verdict.failure != UNUSABLE:
                self.judge.reporter.say(f"The judge {why}. Its choices are read from its text, as 1 or 0.")
            self._keep(verdict)
            self._learn(verdict, way)
            return

    def _learn(self, verdict: Verdict, way: Way) -> None:
        """Take from a verdict in which way the judge answers, if it shows that."""
        if verdict.failure == UNUSABLE:
            self.unusable += 1
        elif verdict.failure != REFUSAL:
            self.way, self.ready = way, True

    def _way_before(self, question: Question) -> Way | None:
        """Return in which way the judge has answered others in an earlier round, if it has."""
        judge = self.judge
        answered = [one.decoding for one in judge.log.verdicts.values() if one.judge == judge.name and one.text]
        return next((way for way in judge.allowed(question) if judge.request(question, way) in answered), None)

    def _keep_refused(self, question: Question) -> None:
        """Keep that the server refuses a question, as asked in the way in which it answers others."""
        ways = self.judge.allowed(question)
        self._keep(self._verdict(question, self.way if self.way in ways else ways[-1], {}, failure=REFUSED))

    async def _send(self, question: Question, way: Way) -> Verdict:
        """Ask once, and count what that took."""
        costs, most_written = self.judge.costs, self.judge.most_written(question, way)
        # The most that it should cost: by the most tokens per byte seen so far, and a full answer.
        cost = costs.price(question.size * costs.tokens_per_byte, most_written)
        while not costs.reserve(cost):
            if costs.reserved < 1e-9:
                raise BudgetError
            await asyncio.sleep(0.02)  # pending answers may cost less than was set aside for them
        wasted = Counter[str]()
        try:
            reply, places = await self.client.complete(
                self.served,
                partial(self._read, way, wasted),
                any_name=True,
                messages=[dict(message) for message in question.messages],
                extra_body=self.judge.request(question, way),
            )
        except UnusableError as error:
            self.nonsense = error
            return self._verdict(question, way, dict(wasted), failure=UNUSABLE)
        finally:
            costs.reserved -= cost
        usage = self._used(question, reply, most_written)
        costs.count(usage)
        costs.tokens_per_byte = max(costs.tokens_per_byte, usage["prompt_tokens"] / max(question.size, 1))
        [choice] = reply.choices
        failure = NO_LOGPROBS if way == "logprobs" and not places else None
        # What is ruled out counts like what is not there; JSON has no infinity.
        logprobs = {place.token: place.logprob for place in places if place.logprob > -math.inf} if places else None
        if any(math.isnan(place.logprob) for place in places):
            logprobs, failure = None, IMPOSSIBLE
        if choice.message.refusal or choice.finish_reason == "content_filter":
            failure = REFUSAL
        return self._verdict(
            question,
            way,
            usage,
            failure=failure,
            text=choice.message.text or None,
            logprobs=logprobs,
            answered_as=reply.model,
            finish_reason=choice.finish_reason,
        )

    def _used(self, question: Question, reply: _Reply, most_written: int) -> dict[str, int]:
        """Return the tokens that an answer took; where the server does not say it, the most that they should be."""
        usage: dict[str, int] = usage_of(reply.usage).model_dump(exclude_none=True)
        if len(usage) < len(Usage.model_fields):
            read = round(question.size * self.judge.costs.tokens_per_byte)
            usage = {"prompt_tokens": read, "completion_tokens": most_written, **usage, "estimated": 1}
        return usage

    def _read(self, way: Way, wasted: Counter[str], body: bytes) -> tuple[_Reply, list[_Token]]:
        """Return the reply in a body, and its first token with its rivals, where log-probabilities were asked for.

        One that cannot be used may have its price all the same, which ``wasted`` counts.
        """
        try:
            reply = _Reply.model_validate_json(body)
            said = reply.choices[0].logprobs if way == "logprobs" else None
            tokens = [] if said is None else _Logprobs.model_validate(said).content
        except ValidationError:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                usage = usage_of(from_json(body)["usage"]).model_dump(exclude_none=True)
                wasted.update(usage)
                self.judge.costs.count(usage)
            raise
        return reply, tokens[0].with_rivals() if tokens else []

    def _verdict(self, question: Question, way: Way, usage: Mapping[str, int], **answer: Any) -> Verdict:
        request, messages = self.judge.request(question, way), messages_digest(question.messages)
        verdict = Verdict(
            key=key_of(self.judge.name, request, messages),
            judge=self.judge.name,
            decoding=request,
            date=dt.datetime.now(dt.UTC).date().isoformat(),
            messages=messages,
            usage=usage,
            **{"text": None, "logprobs": None, "verdict": None, **answer},
        )
        return read_answer(verdict, question, by_logprobs=way == "logprobs")

    def _keep(self, verdict: Verdict) -> None:
        self.judge.log.append(verdict)
        self.judge.asked += 1
        tokens = verdict.usage.get("prompt_tokens", 0) + verdict.usage.get("completion_tokens", 0)
        self.meter.advance(1, tokens)
