"""Keys of servers and of the hub: taken out of what others say, of logs, and of messages about settings.

A server may repeat a key, in one form or another, and a person may give one in the wrong place.
"""

import base64
import functools
import os
import re
from collections.abc import Iterator
from typing import AnyStr

_PLACEHOLDER = re.compile(r".{0,7}|[a-z-]{8,15}", re.DOTALL)
"""Keys of servers that want none, such as EMPTY and not-needed; they are secret to nobody, and words of other texts."""

LONGEST = 300
"""Characters of a key; to look for all forms of a longer secret, such as a certificate, would take seconds."""

_SECRET = re.compile(r"(^|_)(API)?(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
"""How environment variables are called that hold secrets."""

_GIVEN_AWAY = re.compile(
    r"(?<=://)[^/@\s]+(?=@)|(?<=[?&.])(?P<name>[\w-]*(?:key|key_variable|token|secret|password)=)[^\s&'\"]+",
    re.IGNORECASE,
)
"""Where secrets stand in addresses and arguments."""

_WORD = re.compile(r"[\w-]{16,}", re.ASCII)
_RUN = re.compile(r"[A-Za-z0-9]{16,}")


def without_key(text: AnyStr, key: str) -> AnyStr:
    """Return a text with *** in the place of a key, also where it is escaped, URL-encoded, in base64 or hexadecimal.

    Args:
        text: what somebody else said.
        key: printable ASCII; a placeholder, of up to 7 characters or a lower-case word of up to 15, stays.
    """
    if _PLACEHOLDER.fullmatch(key):
        return text
    if isinstance(text, bytes):
        return re.sub(_forms(key).encode(), b"***", text)
    return re.sub(_forms(key), "***", text)


def without_secrets(text: str) -> str:
    """Return a text without the values of secret environment variables, and what addresses and arguments give away."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name):
            text = re.sub(_forms(value), "***", text)
    return _GIVEN_AWAY.sub(lambda found: f"{found['name'] or ''}***", text)


def without_token(error: BaseException) -> str:
    """Return what an error says without the token for the hub, which the hub may repeat."""
    from huggingface_hub import get_token

    try:
        token = get_token() or ""
    except Exception:  # noqa: BLE001 - where it cannot be read, it was not sent either
        token = ""
    return without_key(str(error), token)


def without_what_looks_like_a_key(text: str) -> str:
    """Return a text with *** in the place of words with 16 or more letters and digits in a row, and some of both."""

    def hidden(word: re.Match[str]) -> str:
        is_mixed = any(not run.isalpha() and not run.isdecimal() for run in _RUN.findall(word[0]))
        return "***" if is_mixed else word[0]

    return _WORD.sub(hidden, text)


@functools.lru_cache
def _forms(key: str) -> str:
    """Return the pattern of all forms of a key.

    A very long one is not looked for where it is escaped; nor is one with many backslashes in a row, since each of them
    could be an escape of the next, and the time would double with each.
    """
    signs = map(_sign, key) if len(key) <= LONGEST and "\\" * 6 not in key else [re.escape(key)]
    return "|".join(["".join(signs), *map(re.escape, _encoded(key))])


def _sign(sign: str) -> str:
    """Return the pattern of a character: itself, or escaped as in JSON, URLs and HTML, perhaps more than once.

    Repetitions are bounded, so that a text of nothing but backslashes takes no longer than another.
    """
    code = f"{ord(sign):02x}"
    escaped = f"(?i:u00{code})" if sign.isalnum() else f"(?:(?i:u00{code})|{re.escape(sign)})"
    quoted = f"&#(?:0{{0,5}}{ord(sign)}|(?i:x0{{0,5}}{code}));"
    return rf"(?:{re.escape(sign)}|\\{{1,4}}{escaped}|%(?:25){{0,3}}(?i:{code})|{quoted})"


def _encoded(key: str) -> Iterator[str]:
    """Yield the key in hexadecimal, and as it is in base64, wherever it stands in the text that was encoded."""
    content = key.encode("utf-8", "surrogateescape")
    yield content.hex()
    yield content.hex().upper()
    for before in range(3):
        text = bytes(before) + content
        # The characters at both ends also depend on what stands beside the key.
        encoded = base64.b64encode(text[: len(text) // 3 * 3]).decode()[-(-before * 8 // 6) :]
        yield encoded
        yield encoded.translate(str.maketrans("+/", "-_"))
