"""Questions to a judge, and how its answers are read. An answer that cannot be read is never guessed at."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from crosspref.data.records import Message
from crosspref.data.rows import parse_json
from crosspref.errors import RecipeError
from crosspref.paths import expanded, read_text
from crosspref.run.verdicts import Verdict, is_logprob

DECORATION = " \t\r\n\"'`*.()[]"
"""What may stand around a label that is the whole answer."""

REFUSAL, REFUSED, NO_LOGPROBS = "refusal", "refused by the server", "no log-probabilities"
UNUSABLE, IMPOSSIBLE = "no usable answer", "impossible log-probabilities"
NO_ANSWER = (REFUSAL, REFUSED, NO_LOGPROBS, UNUSABLE, IMPOSSIBLE)
"""Failures that come with an answer, and are not found by reading it."""

LACKING = "not in the replayed file"
"""Why a question has no verdict where nobody is asked."""

_PARTS = ("{instruction}", "{output_1}", "{output_2}")
"""What a prompt of one's own must have."""
_PART = re.compile(r"\{(\w+)\}")
_MESSAGE = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*)", re.DOTALL)
"""A chat message without its <|im_end|>, at which a text is cut first: so each part is read only once."""


@dataclass(frozen=True, slots=True)
class Template:
    """A judge's prompt: roles and texts, in which names in braces, such as {instruction}, stand for what is judged."""

    messages: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, path: str | None, setting: str, default: "Template") -> "Template":
        """Read a prompt from a file: chat messages between <|im_start|> and <|im_end|>, or one user's message.

        ``setting`` names the file in messages; without a file the prompt is ``default``.

        Raises:
            RecipeError: it cannot be read, or a part is missing.
        """
        if path is None:
            return default
        try:
            text = read_text(expanded(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{setting}: {path} cannot be read: {error}") from error
        ended = map(_MESSAGE.search, text.split("<|im_end|>")[:-1])
        messages = tuple((found[1], found[2].removesuffix("\n")) for found in ended if found) or (("user", text),)
        missing = [part for part in _PARTS if not any(part in content for _, content in messages)]
        if missing:
            raise RecipeError(f"{setting}: {path} has no {', '.join(missing)} in it.")
        return cls(messages)

    def fill(self, **parts: str) -> list[Message]:
        """Return the messages; all parts are filled in at once, since an answer may contain braces."""
        return [
            {"role": role, "content": _PART.sub(lambda match: parts.get(match[1], match[0]), text)}
            for role, text in self.messages
        ]


class UnreadableError(ValueError):
    """An answer holds no verdict; the message is the kind of failure, one of a few that can be counted."""


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

    @property
    def size(self) -> int:
        """Its length in UTF-8 bytes."""
        return sum(len(message["content"].encode("utf-8", "replace")) for message in self.messages)


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
    """Return the error of an answer without what was asked for; ``kind`` is the failure if nothing else is known."""
    if not text.strip():
        return UnreadableError("empty")
    if text.lstrip().startswith(("{", "[", "```")):
        return UnreadableError("JSON" if _is_json(text) else "half JSON")
    return UnreadableError(kind)


def read_answer(verdict: Verdict, question: Question, *, by_logprobs: bool) -> Verdict:
    """Return a verdict with what the answer says, or why it says nothing."""
    if verdict.failure in NO_ANSWER:
        return replace(verdict, verdict=None)
    try:
        if by_logprobs and question.labels:
            value = first_label_probability(verdict.logprobs or {}, question.labels)
        else:
            value = question.read(verdict.text or "")
    except UnreadableError as error:
        cut_off = verdict.finish_reason == "length" and not by_logprobs
        return replace(verdict, verdict=None, failure="cut off" if cut_off else str(error))
    return replace(verdict, verdict=value, failure=None)


def first_label_probability(logprobs: Mapping[str, float], labels: tuple[str, str]) -> float:
    """Return the probability of the first label among both, from the log-probabilities (nats) of one token.

    A label that is not among them counts as ruled out. White space around a token is ignored if no token is exactly a
    label.

    Raises:
        UnreadableError: neither label is there, or a number is no log-probability.
    """
    if not all(map(is_logprob, logprobs.values())):
        raise UnreadableError(IMPOSSIBLE)
    by_label = {label: logprobs[label] for label in labels if label in logprobs}
    if not by_label:
        for token, logprob in logprobs.items():
            if token.strip() in labels:
                by_label[token.strip()] = max(logprob, by_label.get(token.strip(), -math.inf))
    first, second = (by_label.get(label, -math.inf) for label in labels)
    if max(first, second) == -math.inf:
        raise UnreadableError("no label")
    return 1.0 / (1.0 + math.exp(min(second - first, 700.0))) if first > -math.inf else 0.0


def _is_json(text: str) -> bool:
    try:
        parse_json(text.strip().removeprefix("```json").strip("`"))
    except ValueError:
        return False
    return True
