"""A fake judge: OpenAI's chat protocol over a real socket, and no model behind it.

Its opinion is a number that follows from the question alone, so that two runs agree. It stands in for a hosted judge;
what it says of an answer means nothing.
"""

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from http_server import JsonHandler, LocalServer
from rich.console import Console

from crosspref.run.progress import Reporter
from crosspref.run.verdicts import VerdictLog
from crosspref.suites.judge.judge import Judge
from crosspref.suites.settings import JudgeSettings

TOKENS_IN, TOKENS_OUT = 100, 1
"""What every answer is said to have taken."""


def make_judge(path: Path, url: str = "http://127.0.0.1:9/v1", *, replayed: bool = False, **settings: Any) -> Judge:
    """A judge named j on a file of verdicts; without an address nobody is there."""
    reporter = Reporter(Console(file=io.StringIO(), width=400))
    log = VerdictLog.open(path, writable=not replayed)
    return Judge(JudgeSettings(**{"model": "j", "url": url, "retries": 3} | settings), log, reporter, replayed=replayed)


class FakeJudge(LocalServer):
    """Answers until it is closed; ``asked`` has every body that it was sent.

    Args:
        logprobs: whether it gives log-probabilities; ``refuses`` says that it answers 400 when it is asked for them.
        odd: what it says where a text stands in the question, in the place of a label or a grade; or what is laid over
            the choice there.
        usage: whether it reports tokens, or what it reports.
        delay: seconds that every answer takes.
        known_as: the name that its answers bear, if it is another one than it was asked by.
        says: what it says of messages, in the place of a label.
        unwilling: it answers 400 where this text stands in the question.
    """

    def __init__(
        self,
        *,
        logprobs: bool = True,
        refuses: bool = False,
        odd: Mapping[str, str | dict[str, Any]] | None = None,
        usage: bool | dict[str, Any] = True,
        delay: float = 0.0,
        known_as: str | None = None,
        says: Callable[[list[dict[str, str]]], str] | None = None,
        unwilling: str | None = None,
    ) -> None:
        self.logprobs, self.refuses, self.odd, self.usage = logprobs, refuses, odd or {}, usage
        self.delay, self.known_as, self.says, self.unwilling = delay, known_as, says, unwilling
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        super().__init__(_Handler)

    def questions(self) -> list[str]:
        """What it was asked, a text each, without what only asks whether it gives log-probabilities."""
        return [json.dumps(body["messages"]) for body in self.asked]

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        question = json.dumps(body["messages"], ensure_ascii=False)
        odd = next((said for text, said in self.odd.items() if text in question), None)
        first = opinion(body["messages"])
        label = self.says(body["messages"]) if self.says else "m" if first >= 0.5 else "M"
        if "[[" in question:
            label = f"It could be shorter. Grade: [[{grade(body['messages'])}]]"
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": odd if isinstance(odd, str) else label},
            "finish_reason": "stop",
        }
        if body.get("logprobs") and self.logprobs:
            chances = {"m": first, "M": 1 - first, "Both": 1e-6} if odd is None else {"I": 0.9, "The": 0.05}
            tokens = [{"token": token, "logprob": math.log(chance)} for token, chance in chances.items()]
            choice["logprobs"] = {"content": [{**tokens[0], "top_logprobs": tokens}]}
        if isinstance(odd, dict):
            choice |= odd
        answer = {"id": "fake", "object": "chat.completion", "model": self.known_as or body["model"]}
        usage = {"prompt_tokens": TOKENS_IN, "completion_tokens": TOKENS_OUT, "total_tokens": TOKENS_IN + TOKENS_OUT}
        if isinstance(self.usage, dict):
            usage |= self.usage
        return {**answer, "choices": [choice], **({"usage": usage} if self.usage else {})}


def opinion(messages: list[dict[str, str]]) -> float:
    """The probability of the first label."""
    text = "\n".join(message["content"] for message in messages)
    return 0.05 + 0.9 * int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32


def grade(messages: list[dict[str, str]]) -> int:
    """What it gives an answer, from 1 to 10, where the question asks for a grade in double brackets."""
    return round(1 + 9 * opinion(messages))


class _Handler(JsonHandler):
    def post(self, content: bytes) -> None:
        judge: FakeJudge = self.owner
        body = json.loads(content)
        with judge.lock:
            judge.asked.append(body)
            judge.keys.add(self.headers.get("Authorization"))
        time.sleep(judge.delay)
        if not self.path.startswith("/v1/"):
            self.refuse(404, "there is nothing here")
        elif judge.refuses and body.get("logprobs"):
            self.refuse(400, "logprobs are not supported")
        elif judge.unwilling is not None and judge.unwilling in json.dumps(body["messages"]):
            self.refuse(400, "the prompt is too long")
        else:
            self.send_json(200, judge.answer(body))
