"""What a server says in a chat, in the forms in which servers say it: a text, parts, a refusal, or nothing at all."""

from pydantic import BaseModel, field_validator

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
    """The tokens that an answer took, as far as the server says so."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
