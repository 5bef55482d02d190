"""Units of results: files that are either whole or absent, with done-markers and fingerprints.

A unit is one file (or folder) of results together with its done-marker ``NAME.done.json``. Results are written to a
temporary name, flushed and renamed; the marker is written last, so a unit either is finished or does not count. The
marker holds the fingerprint of everything that determined the content, a few figures about how it was made, the size
and SHA-256 of each file, and a seal: a hash of all that it holds itself.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosspref.data.records import SCHEMA_VERSION, from_table, to_table
from crosspref.data.rows import parse_json
from crosspref.errors import RunError, raise_if_machine_failed
from crosspref.escape import json_text
from crosspref.paths import MOST_BYTES, flush, read_text, replacing, require_file, temporary_name, writing
from crosspref.run.ranks import is_main

DIGEST = "[0-9a-f]{20}"
"""A regular expression for what ``digest_of`` returns."""
_DIGEST = re.compile(rf'{{\s*"digest": "({DIGEST})"'.encode())
_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=True)
PART = ".part.json"
"""How the name of what is kept of an unfinished unit ends."""
DONE = ".done.json"
"""How the name of a done-marker ends."""
_MOST = 1e15
"""More rows, tokens or seconds than anything in a run has."""
ROW_GROUP = 8192
"""Rows that are written together, at least, where a table comes in parts."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What determines a unit's content: the settings that matter to it, and the digests of its inputs."""

    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Any]:
        """Everything that counts, by name."""
        return {"schema": SCHEMA_VERSION, **self.settings, **self.inputs}

    @property
    def digest(self) -> str:
        """A hash that changes when any part does."""
        return digest_of(self.parts)


def digest_of(content: Any) -> str:
    """Return a short hash of anything that JSON can hold."""
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()[:20]


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a JSON file is to hold, with a hash of it, so that damage to the file shows."""
    return {**content, "seal": digest_of(content)}


def is_whole(content: Mapping[str, Any], unsealed: Collection[str]) -> bool:
    """Tell whether content fits its seal; older files have none, and only the keys in ``unsealed``."""
    if "seal" not in content:
        return content.keys() <= set(unsealed)
    return bool(content["seal"] == digest_of({key: value for key, value in content.items() if key != "seal"}))


def file_record(file: Path) -> dict[str, Any]:
    """Return the size and the SHA-256 of a file, as markers hold them."""
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


@dataclass(frozen=True, slots=True)
class Unit:
    """One file or folder of results and its done-marker.

    ``beside`` are files elsewhere that belong to it: they are written with it, and have no markers of their own.
    """

    path: Path
    beside: tuple[Path, ...] = ()

    @property
    def marker(self) -> Path:
        """The done-marker's path."""
        return self.path.with_name(self.path.name + DONE)

    @property
    def part(self) -> Path:
        """The path of what is kept of the unit until it is done; see ``run.kept``."""
        return self.path.with_name(self.path.name + PART)

    def finished(self, fingerprint: Fingerprint) -> bool:
        """Tell whether the unit is done, with this fingerprint.

        Raises:
            RunError: it is done, but was made from other settings or inputs, or its file is gone.
        """
        if (known := self._known_digest()) is None and not self.marker.exists():
            return False
        if known == fingerprint.digest and os.path.exists(self.path):  # noqa: PTH110 - of ten thousand shards it shows
            return True
        stored = self.read_marker()
        if stored["digest"] != fingerprint.digest:
            raise RunError(_stale(self.path, stored["parts"], fingerprint.parts))
        if not self.path.exists():
            raise RunError(f"{self.path} is gone, though its marker says it is done. To do it again: rm {self.marker}")
        return True

    def read_marker(self) -> dict[str, Any]:
        """Return what the marker holds: digest, parts, rows and figures.

        Raises:
            RunError: there is none, or it is damaged.
            FileError, LimitError: the machine fails to read it.
        """
        try:
            return _checked_marker(parse_json(read_text(self.marker)))
        except FileNotFoundError as error:
            raise RunError(f"{self.path} is not finished: there is no {self.marker.name} beside it.") from error
        except (OSError, ValueError) as error:
            raise_if_machine_failed(error)
            raise RunError(
                f"The done-marker {self.marker} is damaged. To do this unit again: rm {self.marker}"
            ) from error

    @property
    def digest(self) -> str:
        """The fingerprint's digest of a finished unit."""
        return self._known_digest() or str(self.read_marker()["digest"])

    def _known_digest(self) -> str | None:
        """Return the digest that a marker as written here begins with: quicker than to parse it."""
        with contextlib.suppress(OSError):
            require_file(self.marker, MOST_BYTES)
            with open(self.marker, "rb", 0) as marker:  # noqa: PTH123 - of ten thousand shards it shows
                content = marker.readall()
            if content.endswith(b"}") and (found := _DIGEST.match(content)):  # it was not cut off
                return found[1].decode()
        return None

    def write_rows(self, rows: list[Any], kind: type) -> None:
        """Write rows of one kind as Parquet, without marking the unit as done."""
        self.write_table(to_table(rows, kind))

    def write_table(self, table: pa.Table) -> None:
        """Write an Arrow table as Parquet, without marking the unit as done."""
        with replacing(self.path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @contextlib.contextmanager
    def writer(self, kind: type) -> Iterator[Callable[[pa.Table], None]]:
        """Write tables of one kind one after another, without marking the unit as done; the file appears at the end.

        All have the columns of the first one.
        """
        waiting: list[pa.Table] = []
        with replacing(self.path) as temporary, contextlib.ExitStack() as stack:
            file: pq.ParquetWriter | None = None

            def write_out() -> None:
                nonlocal file
                table = pa.concat_tables(waiting) if waiting else to_table([], kind)
                file = file or stack.enter_context(pq.ParquetWriter(temporary, table.schema, compression="zstd"))
                if waiting:
                    file.write_table(table)
                    waiting.clear()

            def write(table: pa.Table) -> None:
                waiting.append(table)
                if sum(map(len, waiting)) >= ROW_GROUP:
                    write_out()

            yield write
            if waiting or file is None:
                write_out()

    def finish(self, fingerprint: Fingerprint, rows: int, **figures: Any) -> None:
        """Mark the unit as done. Call this after all its files are written."""
        content = {"digest": fingerprint.digest, "parts": fingerprint.parts, "rows": rows, "figures": figures}
        self._mark({**content, "files": {self.label(file): file_record(file) for file in self._files()}})
        self.part.unlink(missing_ok=True)

    def publish(self, temporary: Path) -> None:
        """Move a finished folder to the unit's place; what lay there unfinished is removed. Only rank 0 does it."""
        if is_main():
            shutil.rmtree(self.path, ignore_errors=True)
        publish_directory(temporary, self.path)

    def label(self, file: Path) -> str:
        """Return what the marker calls a file of the unit: its path as seen from the marker."""
        return os.path.relpath(file, self.path.parent)

    def replace_text(self, file: Path, text: str) -> None:
        """Replace a small file of the unit. Its marker comes first, so that a kill in between shows."""
        marker = self.read_marker() if self.marker.exists() else {}
        if "files" in marker:
            data = text.encode()
            record = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            files = {**marker["files"], self.label(file): record}
            self._mark({**{name: value for name, value in marker.items() if name != "seal"}, "files": files})
        write_text(file, text)

    def _files(self) -> list[Path]:
        inside = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        return [file for file in [*inside, *self.beside] if file.is_file()]

    def _mark(self, content: Mapping[str, Any]) -> None:
        write_text(self.marker, json_text(sealed(content), indent=1))

    def temporary(self) -> Path:
        """Return a fresh folder beside the unit, to be filled and then published; only rank 0 makes it."""
        folder = temporary_name(self.path)
        if not is_main():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        with writing(self.path):
            folder.mkdir(parents=True)
        return folder

    def rows(self, kind: type) -> list[Any]:
        """Read the unit's rows.

        Raises:
            RunError: the file is damaged, or holds something else.
        """
        table = self.table()
        try:
            return from_table(table, kind)
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{self.path} holds no {kind.__name__.lower()}s: {error}\n"
                f"To make it again: rm {self.path} {self.marker}"
            ) from error

    def table(self) -> pa.Table:
        """Read the unit's table.

        Raises:
            RunError: the file is damaged.
            FileError, LimitError: the machine fails to read it.
        """
        try:
            # Not pq.read_table: it would read directory names such as "language=es" as columns.
            return pq.ParquetFile(self.path).read()
        except (OSError, pa.ArrowException) as error:
            raise_if_machine_failed(error)
            raise RunError(
                f"{self.path} cannot be read: {error}\nTo make it again: rm {self.path} {self.marker}"
            ) from error


def seal_text(text: str) -> str:
    """Return a YAML text with a last line by which damage to it shows; its seal is a comment."""
    return f"{text}# seal: {hashlib.sha256(text.encode()).hexdigest()}\n"


def fits_seal(text: str) -> bool | None:
    """Tell whether a text is what ``seal_text`` returned; None if it never was sealed."""
    last = text.removesuffix("\n").rpartition("\n")[2]
    if not last.startswith("#"):
        return None
    return text == seal_text(text[: len(text.removesuffix("\n")) - len(last)])


def write_text(path: Path, text: str) -> None:
    """Write a small text file so that it is either whole or absent.

    Raises:
        FileError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def publish_directory(temporary: Path, path: Path) -> None:
    """Move a finished folder to its place, where nothing may lie. Only rank 0 does it.

    Raises:
        FileError: something lies there, or it cannot be written.
    """
    if not is_main():
        return
    with writing(path):
        for file in temporary.rglob("*"):
            if file.is_file():
                flush(file)
        temporary.rename(path)
        flush(path.parent)


def is_amount(value: object) -> bool:
    """Tell whether a value from a file is an amount of something: a number that is finite and not negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST


def _checked_marker(content: Any) -> dict[str, Any]:
    """Return what a marker holds, or raise ValueError: it may be damaged, or somebody else's."""
    marker: dict[str, Any] = {"figures": {}, **content} if isinstance(content, dict) else {}
    digest, rows = marker.get("digest"), marker.get("rows")
    is_named = isinstance(digest, str) and re.fullmatch(DIGEST, digest)
    is_counted = isinstance(rows, int) and is_amount(rows)
    if not (is_named and is_counted and all(isinstance(marker.get(name), dict) for name in ("parts", "figures"))):
        raise ValueError("this is no marker")
    return marker


def _stale(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changed = [
        f"  - {name}: it was made with {old.get(name, 'nothing')!r}, now it is {new.get(name, 'nothing')!r}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    return (
        f"{path} was made from other settings or inputs:\n" + "\n".join(changed) + "\n"
        "Nothing was overwritten. Set them back, or use a new run directory."
    )
