"""Changes that nobody means: odd values, trees with something else in some place, broken bytes, and odd files."""

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ESCAPES = "m\x1b[31m\x1b]0;title\x07\x1b[2J<script>alert(1)</script>"
TEXTS = [
    *("", " ", "\u200b", "\ufeff", "\x00", "a\x00b", "\ud800", "\u2028", "\u202eabc", "e\u0301" * 50, "a" * 100_000),
    *(ESCAPES, "\x9b31m", "=1+1", "| a | b |", "![t](http://127.0.0.1:9/t.png)", "[x](javascript:alert(1))"),
    *("\\input{/etc/hostname}", "{{ 7 * 7 }}", "{0}", "{language}", "%s%n", "$(touch stray)", "; touch stray"),
    *("../../outside", "/", "~", "~nobody/x", ".", "a/b", "a/b@c:d#e", "hub:a/b", "package:os/x", "recipe:quickstart"),
    *("x" * 300, "/" + "y/" * 3000, "http://[::1", "file:///etc/hostname", "http://127.0.0.1:9/v1", "auto", "en"),
    *("1", "-1", "1e3", "0x10", "010", "1_000", "nan", "Infinity", "true", "no", "null", "2025-02-30"),
    *("[" * 5000, '{"a":' * 500),
]  # fmt: skip
NUMBERS = [
    *(0, 1, -1, 2, 3, 64, 255, 2**15, 2**31, 2**31 - 1, -(2**31), 2**53 + 1, 2**63, 2**64, 10**20, 10**400),
    *(True, False, 0.0, -0.0, 0.5, 1.0000001, 1e-9, 5e-324, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
]  # fmt: skip

Change = Callable[[random.Random, bytes], bytes]


def nested(levels: int, of: type = list) -> Any:
    """Return lists, or objects, in each other."""
    value: Any = 1
    for _ in range(levels):
        value = [value] if of is list else {"a": value}
    return value


def odd_value(chance: random.Random) -> Any:
    """Return a value that hardly any place expects."""
    kind = chance.randrange(10)
    if kind < 4:
        return chance.choice(TEXTS)
    if kind < 8:
        return chance.choice(NUMBERS)
    trees = (None, [], {}, [[]], [None], {"": None}, {"a": 1, "A": 2}, [1, "a", None, {}], list(range(1000)))
    return copy.deepcopy(chance.choice((*trees, nested(40), nested(90), nested(90, dict))))


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in a tree, as what holds it and its key or number there."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from places(tree[key])


def change_tree(chance: random.Random, tree: Any, value: Callable[[random.Random], Any] = odd_value) -> Any:
    """Return a tree of JSON values with something else in one place, or without that place."""
    tree = copy.deepcopy(tree)
    found = list(places(tree))
    if not found or chance.random() < 0.03:
        return value(chance)
    # A tokenizer has thousands of words and a handful of settings: every level has its turn.
    holders = list({id(holder): holder for holder, _ in found}.values())
    holder = chance.choice(holders)
    key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    kind = chance.randrange(8)
    if kind < 4:
        holder[key] = value(chance)
    elif kind == 4:
        del holder[key]
    elif kind == 5:
        other, place = chance.choice(found)
        if place in (other if isinstance(other, dict) else range(len(other))):
            holder[key] = copy.deepcopy(other[place])
    elif kind == 6:
        holder[key] = [holder[key]] * chance.choice((1, 2, 50))
    elif isinstance(holder, dict):
        holder[str(value(chance))[:200]] = holder.pop(key)
    else:
        holder.insert(key, value(chance))
    return tree


def dump_json(chance: random.Random, tree: Any) -> bytes:
    """Return a tree as JSON, with numbers that are not finite, and other alphabets in one of two spellings."""
    return as_json(tree, ascii_only=chance.random() < 0.5)


def as_json(tree: Any, *, ascii_only: bool = False) -> bytes:
    """Return a tree as JSON; halves of surrogates stand in it as they are unless it is to be ASCII."""
    return json.dumps(tree, ensure_ascii=ascii_only, default=str).encode("utf-8", "surrogatepass")


INSERTED = [
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n\n", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\\ud800", b"\x1b[31m"),
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 100_000, b'{"a":' * 5000, b"null", b",,,"),
    *(b'"', b"\\", b"\t", b"'", b"<!--", b"{{"),
]  # fmt: skip


def change_bytes(chance: random.Random, data: bytes) -> bytes:
    """Return bytes with one to four changes: bits turned, pieces gone, doubled, moved or put in, or the end cut off."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((1, 1, 2, 8, 100, len(data))))
        piece = data[start:end]
        changed: Change = chance.choice(_BYTE_CHANGES)
        data = data[:start] + changed(chance, piece) + data[end:]
    return data


_BYTE_CHANGES: list[Change] = [
    lambda _, piece: b"",
    lambda _, piece: piece + piece,
    lambda chance, piece: bytes(byte ^ (1 << chance.randrange(8)) for byte in piece[:16]) + piece[16:],
    lambda chance, piece: chance.randbytes(min(len(piece), 64)),
    lambda chance, piece: chance.choice(INSERTED) + piece,
    lambda chance, piece: chance.choice(INSERTED),
    lambda _, piece: piece[::-1],
]


def odd_file(chance: random.Random, path: Path) -> str:
    """Put something into the place of a file that is no ordinary one, and return what."""
    name = chance.choice(list(_ODD_FILES))
    path.unlink(missing_ok=True)
    _ODD_FILES[name](path)
    return name


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _loop(path: Path) -> None:
    path.symlink_to(path)


_ODD_FILES: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "nothing": lambda path: None,
    "an empty file": Path.touch,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": _loop,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte of holes": _sparse,
}
