"""What is kept of an unfinished unit, so that a kill costs minutes of work and not a whole unit.

It lies beside the unit as ``NAME.part.json``, with the digest of the unit's fingerprint: what was made from other
settings or inputs is not used. The file is replaced as a whole, so it is always one state of the work, and it is
removed when the unit is done. What a unit holds in the end must not depend on when a kill came. So each engine keeps
only states from which it goes on just as it does when nobody disturbs it.

The file may come from somebody else, with a digest that fits. So each engine checks what was kept, and where it holds
what the work cannot have left, the work is done again.
"""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, Strict, StrictFloat, StrictStr, TypeAdapter

from crosspref.data.records import FinishReason
from crosspref.data.rows import parse_json
from crosspref.errors import FileError
from crosspref.paths import read_text
from crosspref.protocols import Advance
from crosspref.run.store import Fingerprint, Unit, is_whole, sealed, write_text

SECONDS = 60.0
"""How long what is finished may wait to be written."""

UNSEALED = ("digest", "items")
"""What such a file held before there were seals."""


def _no_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("it is no number")
    return value


Count = Annotated[int, Strict(), Field(ge=0, lt=2**31)]
Number = Annotated[StrictFloat, AfterValidator(_no_nan)]
Ids = list[Count]
Answer = tuple[StrictStr, Ids | None, FinishReason, Count | None]
"""The fields of a ``Sampled``."""

_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
_IDS = TypeAdapter(Ids)

T = TypeVar("T")


class Kept:
    """Counts what is finished of a unit, as an ``Advance``, and keeps it.

    ``items`` holds what is kept, as JSON values, under names that the work chooses. Without a unit nothing is written.
    """

    def __init__(self, advance: Advance, unit: Unit | None = None, fingerprint: Fingerprint | None = None) -> None:
        self.advance, self.unit = advance, unit
        self.digest = fingerprint.digest if fingerprint is not None else ""
        self.items: dict[str, Any] = self._read()
        self.saved, self.written = time.monotonic(), True
        self.lock = threading.Lock()

    @classmethod
    def of(cls, advance: Advance, check: Callable[[str, Any], object]) -> "Kept":
        """Return what an engine was given to count with, if that keeps; else what keeps nothing on disk.

        See ``require`` for ``check``.
        """
        kept = advance if isinstance(advance, Kept) else cls(advance)
        kept.require(check)
        return kept

    def require(self, check: Callable[[str, Any], object]) -> None:
        """Forget everything if ``check`` raises ValueError or LookupError for some name and its value."""
        try:
            for name, value in self.items.items():
                check(name, value)
        except (LookupError, ValueError):
            self.items.clear()

    def __call__(self, units: int, tokens: int) -> None:
        """Count finished units and the tokens that they took."""
        self.advance(units, tokens)

    def keep(self, items: Mapping[str, Any]) -> None:
        """Keep JSON values by name; together with those before they must be a state from which work can go on."""
        self.items.update(items)
        self.written = self.written and not items
        if time.monotonic() - self.saved >= SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is not written yet.

        Raises:
            FileError: it cannot be written.
        """
        with self.lock:  # answers of a server come in a thread of their own, also while Ctrl-C is dealt with
            if self.unit is not None and not self.written:
                self.saved, self.written = time.monotonic(), True
                content = sealed({"digest": self.digest, "items": self.items.copy()})
                write_text(self.unit.part, json.dumps(content))

    def _read(self) -> dict[str, Any]:
        content = {} if self.unit is None else _content(self.unit.part)
        if content.get("digest") != self.digest or not is_whole(content, UNSEALED):
            return {}  # it is of other settings or inputs, or is damaged
        items: dict[str, Any] = content["items"]
        return items


def read_part(part: Path) -> dict[str, Any]:
    """Return the digest and the items of what was kept, and the seal if there is one.

    Raises:
        OSError: it cannot be read, or there is none.
        ValueError: something else lies there.
    """
    content = parse_json(read_text(part, math.inf))  # as large as the work: that of a long sampling has gigabytes
    if not (isinstance(content, dict) and "digest" in content and isinstance(content.get("items"), dict)):
        raise ValueError("nothing is kept here")
    return content


def _content(part: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return read_part(part)
    return {}


def checked(kind: TypeAdapter[list[T]], value: object, count: int) -> list[T]:
    """Return a kept list, if it has the values that the work leaves, and so many; else raise ValueError."""
    values = kind.validate_python(value)
    if len(values) != count:
        raise ValueError(f"it has {len(values)} values instead of {count}")
    return values


def check_answer(value: object, vocabulary: int) -> None:
    """Raise ValueError unless a kept value is an ``Answer`` of a model with so many token ids."""
    text, ids, _, _ = _ANSWER.validate_python(value)
    text.encode()  # half a surrogate pair cannot be
    check_ids(ids or [], vocabulary)


def check_ids(value: object, vocabulary: int) -> Ids:
    """Return a kept list of token ids, if a model with so many of them has them; else raise ValueError."""
    ids = _IDS.validate_python(value)
    if max(ids, default=-1) >= vocabulary:
        raise ValueError("it has token ids that the model does not have")
    return ids


@contextlib.contextmanager
def keeping(advance: Advance, unit: Unit, fingerprint: Fingerprint) -> Iterator[Kept]:
    """Work on a unit and keep what is finished, also where an error or Ctrl-C ends the work."""
    kept = Kept(advance, unit, fingerprint)
    try:
        yield kept
    except BaseException:
        kept.save()
        raise


class Parts:
    """What is kept beside a table that is made at once, without shards, as stages do that run alone.

    ``fingerprint`` holds everything that determines the table. A table may be made in several pieces of work, each of
    which has a part of its own; all parts stay until the table is written. Without a table nothing is kept.
    """

    def __init__(self, table: Path | None, fingerprint: Fingerprint) -> None:
        self.table, self.fingerprint = table, fingerprint
        self.units: list[Unit] = []

    def keeping(self, advance: Advance, *piece: str) -> AbstractContextManager[Kept]:
        """Work on the piece of that name, or on the whole table, and keep what is finished of it.

        Raises:
            FileError: another file lies where that would be kept.
        """
        if self.table is None:
            return contextlib.nullcontext(Kept(advance))
        unit = Unit(self.table.with_name("-".join([self.table.name, *piece])))
        if unit.part.exists() and not _content(unit.part):
            advice = f"Move it elsewhere: what is finished of {self.table.name} is kept there."
            raise FileError(unit.part, "is in the way, and was not written by crosspref", advice)
        self.units.append(unit)
        return keeping(advance, unit, self.fingerprint)

    def remove(self) -> None:
        """Remove the parts. Call this after the table is written."""
        for unit in self.units:
            unit.part.unlink(missing_ok=True)
