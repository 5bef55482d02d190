"""Chat messages as files and callers give them: how they are read, and which of them a model can answer."""

import re
from collections.abc import Sequence
from typing import Any

from crosspref.data.records import Instruction, Message, as_instruction
from crosspref.data.rows import text_problem
from crosspref.errors import DataError, shown

ROLES = ("system", "user", "assistant")
_WRITTEN_OUT = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")
_OF_TOOLS = ("tool_calls", "tool_call_id", "function_call")


class MessagesError(DataError):
    """Messages cannot be used. ``reason`` is one of a few, so that problems can be counted by it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_instruction(value: object) -> Instruction:
    """Return a text, or a conversation that a model can answer.

    Raises:
        MessagesError: it is something else, or holds nothing, or is messages that were written out as a text.
    """
    if isinstance(value, list) and any(isinstance(message, dict) for message in value):
        return read_conversation(value)
    trouble = text_problem(value)
    if trouble is not None:
        raise MessagesError(*trouble)
    text = str(value)
    if _WRITTEN_OUT.match(text):  # as a table of texts, such as CSV, gets them
        detail = f"the text is chat messages, written out: {text[:60]}. Store them as a list (JSONL, Parquet)"
        raise MessagesError("messages as text", detail)
    return text


def read_conversation(value: Sequence[Any]) -> Instruction:
    """Return a conversation that a model can answer; its text where there is only a message of the user.

    An optional system message comes first. Then user and assistant take turns, and the user has the last one.

    Raises:
        MessagesError: it is something else, or a message cannot be read.
    """
    messages = read_messages(value)
    roles = [message["role"] for message in messages]
    for number, role in enumerate(roles, start=1):
        if role == "system" and number > 1:
            detail = f"message {number} is of 'system', which may only be the first"
            raise MessagesError("misplaced system message", detail)
    if roles[-1] != "user":
        raise MessagesError("nothing to answer", f"the last message is of {roles[-1]!r}, not of 'user'")
    begin = 1 if roles[0] == "system" else 0
    for place, role in enumerate(roles[begin:]):
        expected = ("user", "assistant")[place % 2]
        if role != expected:
            detail = f"message {begin + place + 1} is of {role!r} where {expected!r} has its turn"
            raise MessagesError("turns do not alternate", detail)
    return as_instruction(messages)


def read_messages(value: Sequence[Any]) -> list[Message]:
    """Return a list of chat messages with role and content alone. Content in parts of text is joined.

    Raises:
        MessagesError: there are none, or one is not a known role and a text.
    """
    if not value:
        raise MessagesError("no messages", "the list of messages is empty")
    return [_read_message(message, f"message {number}") for number, message in enumerate(value, start=1)]


def _read_message(message: object, where: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise MessagesError("no message", f'{where} is not {{"role": ..., "content": ...}}')
    of_tools = [name for name in _OF_TOOLS if message.get(name)]
    if of_tools:
        raise MessagesError("tool calls", f"{where} has {of_tools[0]}, and tools cannot be called")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_of_part(part, where) for part in content)
    # An empty system message is a way to switch off a template's own.
    trouble = None if (message["role"], content) == ("system", "") else text_problem(content)
    if trouble is not None:
        raise MessagesError(trouble[0], f"{where}: {trouble[1]}")
    if message["role"] not in ROLES:
        detail = f"{where} is of {shown(message['role'])}, and not of {', '.join(ROLES)}"
        raise MessagesError("unknown role", detail)
    return {"role": message["role"], "content": str(content)}


def _text_of_part(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text":
        raise MessagesError("not text", f"{where} has a part of type {shown(kind)}, and only text can be used")
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise MessagesError("not text", f"{where} has a part without its text")
    return text
