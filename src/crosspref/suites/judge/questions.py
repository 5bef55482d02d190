"""Questions to a judge, and how its answers are read. An answer that cannot be read is never guessed at."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from crosspref.data.records import Message

DECORATION = " \t\r\n\"'`*.()[]"
"""What may stand around a label that is the whole answer."""

REFUSAL, REFUSED, NO_LOGPROBS = "refusal", "refused by the server", "no log-probabilities"
NO_ANSWER = (REFUSAL, REFUSED, NO_LOGPROBS)
"""Failures that an answer comes with, and that are not found by reading it."""


LACKING = "not in the replayed file"
"""Why a question has no verdict where nobody is asked."""

_PART = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A judge's prompt: roles and texts, in which parts in braces, such as {instruction}, stand for what is judged."""

    messages: tuple[tuple[str, str], ...]

    def fill(self, **parts: str) -> list[Message]:
        """Return the messages; all at once, since an answer may itself hold braces."""
        return [
            {"role": role, "content": _PART.sub(lambda found: parts.get(found[1], found[0]), text)}
            for role, text in self.messages
        ]


class UnreadableError(ValueError):
    """An answer holds no verdict; the message is the kind of failure, one of a few, so that they can be counted."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a judge writes its answer."""

    temperature: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Question:
    """One question to a judge.

    ``read`` turns an answer's text into a number, or raises UnreadableError. Where there are ``labels``, the answer is
    one of these two, and the verdict is the probability of the first: by log-probabilities, for which ``by_logprobs``
    is the decoding, or 1 or 0 from text.
    """

    messages: Sequence[Message]
    by_text: Decoding
    read: Callable[[str], float]
    labels: tuple[str, str] | None = None
    by_logprobs: Decoding | None = None


def read_label(text: str, labels: tuple[str, str]) -> float:
    """Return 1.0 for the first label and 0.0 for the second, if one of them is the whole answer.

    Raises:
        UnreadableError: the answer is something else.
    """
    bare = text.strip(DECORATION)
    if bare in labels:
        return 1.0 if bare == labels[0] else 0.0
    raise unreadable(text, "no label")


def unreadable(text: str, kind: str) -> UnreadableError:
    """Return the error of an answer without what was asked for; ``kind`` is said where nothing else can be."""
    if not text.strip():
        return UnreadableError("empty")
    if text.lstrip().startswith(("{", "[", "```")):
        return UnreadableError("JSON" if _is_json(text) else "half JSON")
    return UnreadableError(kind)


def first_label_probability(logprobs: Mapping[str, float], labels: tuple[str, str]) -> float:
    """Return the probability of the first label among both, from the log-probabilities (nats) of one token.

    A label that is not among them counts as impossible. White space around a token is overlooked where no token is a
    label as it stands.

    Raises:
        UnreadableError: neither label is there.
    """
    found = {label: logprobs[label] for label in labels if label in logprobs}
    if not found:
        for token, logprob in logprobs.items():
            if token.strip() in labels:
                found[token.strip()] = max(logprob, found.get(token.strip(), -math.inf))
    first, second = (found.get(label, -math.inf) for label in labels)
    if max(first, second) == -math.inf:
        raise UnreadableError("no label")
    return 1.0 / (1.0 + math.exp(min(second - first, 700.0))) if first > -math.inf else 0.0


def read_answer(
    question: Question,
    text: str | None,
    logprobs: Mapping[str, float] | None,
    finish_reason: str | None,
    failure: str | None,
    *,
    by_logprobs: bool,
) -> tuple[float | None, str | None]:
    """Return the verdict that an answer holds and None, or None and the kind of failure."""
    if failure in NO_ANSWER:
        return None, failure
    try:
        if by_logprobs and question.labels:
            return first_label_probability(logprobs or {}, question.labels), None
        return question.read(text or ""), None
    except UnreadableError as error:
        return None, "cut off" if finish_reason == "length" and not by_logprobs else str(error)


def _is_json(text: str) -> bool:
    try:
        json.loads(text.strip().removeprefix("```json").strip("`"))
    except ValueError:
        return False
    return True
