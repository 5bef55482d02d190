"""What a server says in a chat, in the forms in which servers say it: a text, parts, a refusal, or nothing at all."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, field_validator

Index = Literal[0] | None
"""The number of the only choice that was asked for, as far as a server says it."""

MOST_TOKENS = 100_000_000
"""No model reads or writes more in one answer."""

THOUGHT = ("thinking", "reasoning")
"""Kinds of parts that are left out of an answer."""


class _Part(BaseModel):
    type: str
    text: str | None = None
    refusal: str | None = None

    def said(self) -> str:
        """Return what the part adds to the answer."""
        if self.type in THOUGHT:
            return ""
        text = self.refusal if self.text is None else self.text
        if text is None:
            raise ValueError(f"a part of the kind {self.type!r} holds no text")
        return text


class Message(BaseModel):
    """One message of an answer; thinking that stands beside its content, as in ``reasoning_content``, is not read."""

    content: str | None = None
    refusal: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: object) -> object:
        if isinstance(content, list):
            return "".join(_Part.model_validate(part).said() for part in content)
        return content

    @property
    def text(self) -> str:
        """What the model said: its answer, or else its refusal; empty where every token went into thinking."""
        return self.content or self.refusal or ""


class Usage(BaseModel):
    """The tokens that an answer took, as far as the server says so; a count that cannot be is none."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @field_validator("prompt_tokens", "completion_tokens", mode="before")
    @classmethod
    def _possible(cls, count: object) -> object:
        return count if type(count) is int and 0 <= count <= MOST_TOKENS else None


def usage_of(said: object) -> Usage:
    """Return what a server says of the tokens that an answer took, whatever that is."""
    return Usage.model_validate(dict(said) if isinstance(said, Mapping) else {})
