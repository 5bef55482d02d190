"""The file of verdicts: one line of JSON per answer of a judge, only ever appended to.

A question is identified by its key, a hash of the judge's name, the decoding and the messages: what has a verdict in
the file is not asked again, whichever model, iteration or suite it was asked for. Answers are kept as they came, and
read anew each time; the verdict in a line says how the answer was read then.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from crosspref.data.records import Message
from crosspref.errors import DataError
from crosspref.escape import json_text
from crosspref.paths import require_file, writing
from crosspref.run.store import digest_of

VERDICTS = "verdicts.jsonl"
"""The name of the file."""

ROUNDING = 1e-3
"""Nats by which rounding may lift a log-probability above 0."""


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
            for _, verdict in read_verdicts(path) if path.exists() or not writable else ():
                if verdict is None:
                    log.broken += 1
                else:
                    log.verdicts.setdefault(verdict.key, verdict)
        except OSError as error:
            raise DataError(f"The file of verdicts {path} cannot be read: {error}") from error
        if log.broken and not log.verdicts and not writable:
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


def is_logprob(value: object) -> bool:
    """Tell whether a value can be the log-probability of a token, nats: a number up to 0, or -inf."""
    return type(value) in (int, float) and value <= ROUNDING  # type: ignore[operator]


def read_verdicts(path: Path) -> Iterator[tuple[int, Verdict | None]]:
    """Yield the number and the verdict of every line that is not empty; None if it is cut in half or no verdict.

    Raises:
        OSError: the file cannot be read, or is no file.
    """
    require_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _parse(line)


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
