"""The file of verdicts: one line of JSON per answer of a judge, only ever appended to.

A question is identified by its key, a hash of the judge's name, the decoding and the messages: what has a verdict in
the file is not asked again, whichever model, iteration or suite it was asked for. Answers are kept as they came, and
read anew each time; the verdict in a line says how the answer was read then.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from crosspref.data.records import Message
from crosspref.errors import DataError
from crosspref.escape import json_text
from crosspref.paths import require_file, writing
from crosspref.run.store import digest_of
from crosspref.suites.judge.questions import NO_ANSWER, Question, UnreadableError, first_label_probability


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge answered to one question.

    ``text`` is the answer; ``logprobs`` are the log-probabilities (nats) of its first token and that token's rivals,
    where they were asked for. ``verdict`` is what was read from them; if it is None, ``failure`` says why. ``usage``
    are the tokens that the server reported or, with ``estimated``, that were assumed. ``answered_as`` is the name that
    the server gave the judge.
    """

    key: str
    judge: str
    decoding: Mapping[str, Any]
    date: str
    messages: str
    text: str | None
    logprobs: Mapping[str, float] | None
    verdict: float | None
    failure: str | None
    usage: Mapping[str, int]
    answered_as: str | None = None
    finish_reason: str | None = None

    def read(self, question: Question, *, by_logprobs: bool) -> "Verdict":
        """Return this verdict with what the answer says, or why it says nothing."""
        if self.failure in NO_ANSWER:
            return replace(self, verdict=None)
        try:
            if by_logprobs and question.labels:
                value = first_label_probability(self.logprobs or {}, question.labels)
            else:
                value = question.read(self.text or "")
        except UnreadableError as error:
            cut_off = self.finish_reason == "length" and not by_logprobs
            return replace(self, verdict=None, failure="cut off" if cut_off else str(error))
        return replace(self, verdict=value, failure=None)


def messages_digest(messages: Sequence[Message]) -> str:
    """Return the SHA-256 of messages, as it stands in the file."""
    pairs = [[message["role"], message["content"]] for message in messages]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def key_of(judge: str, decoding: Mapping[str, Any], messages: str) -> str:
    """Return the key of a question; ``messages`` is their digest."""
    return digest_of([judge, dict(decoding), messages])


@dataclass
class VerdictLog:
    """The verdicts of one file, by key; of two with one key the first counts. ``broken`` counts lines cut in half."""

    path: Path
    writable: bool = True
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    broken: int = 0
    _file: BinaryIO | None = None

    @classmethod
    def open(cls, path: Path, *, writable: bool = True) -> "VerdictLog":
        """Read a file of verdicts; one that is written may be absent.

        Raises:
            DataError: it cannot be read, or nothing in it is a verdict.
        """
        log = cls(path, writable)
        try:
            content = b""
            if path.exists() or not writable:
                require_file(path)
                content = path.read_bytes()
        except OSError as error:
            raise DataError(f"The file of verdicts {path} cannot be read: {error}") from error
        for line in content.split(b"\n"):
            if not line.strip():
                continue
            verdict = _parse(line)
            if verdict is None:
                log.broken += 1
            else:
                log.verdicts.setdefault(verdict.key, verdict)
        if content.strip() and not log.verdicts and not writable:
            raise DataError(f"{path} holds no verdict: {log.broken} lines are none. Give a run's verdicts.jsonl.")
        return log

    def append(self, verdict: Verdict) -> None:
        """Add a verdict, and hand it to the operating system at once."""
        with writing(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
                self._file = self.path.open("ab")
                # The last line may have been cut off by a kill; it must not swallow this one.
                self._file.write(b"" if whole else b"\n")
            self.verdicts.setdefault(verdict.key, verdict)
            self._file.write(json_text(asdict(verdict)).encode() + b"\n")
            self._file.flush()

    def judges(self) -> list[str]:
        """Return the names of the judges in the file."""
        return list(dict.fromkeys(verdict.judge for verdict in self.verdicts.values()))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


_VERDICT = TypeAdapter(Verdict)


def _parse(line: bytes) -> Verdict | None:
    """Return the verdict of a line, or None if it is not whole or no verdict: others' files may hold anything."""
    try:
        verdict = _VERDICT.validate_json(line, strict=True)
    except ValidationError:
        return None
    is_possible = verdict.verdict is None or math.isfinite(verdict.verdict)
    if not is_possible or any(count < 0 for count in verdict.usage.values()):
        return None
    return verdict if verdict.key == key_of(verdict.judge, verdict.decoding, verdict.messages) else None
