"""The part of an answer in which a model thinks aloud, and where the answer itself begins."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MARKS = (
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
)
"""What stands before and behind a model's thinking, by family: gpt-oss; Qwen, DeepSeek, SmolLM and others; Magistral;
Cohere; Seed. The template of a model that thinks, or one of its tokens, names the second one."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """The marks around a model's thinking; ``begun`` if the prompt ends inside it."""

    opens: str
    closes: str
    begun: bool

    def answer_begins(self, text: str) -> int | None:
        """Return where the answer begins in what was generated: 0 without thinking, None if it ends inside it."""
        place = text.find(self.closes)
        if place >= 0:
            rest = text[place + len(self.closes) :]
            return len(text) - len(rest.lstrip())
        return None if self.begun or text.lstrip().startswith(self.opens) else 0

    def before_answer(self, prompt: str) -> str:
        """Return what stands between a prompt and an answer whose thinking was cut, so that it stands behind thinking.

        gpt-oss begins every answer with the mark behind thinking.
        """
        if self.closes == MARKS[0][1]:
            return self.closes
        if not self.begun:
            return ""
        return f"\n{self.closes}\n\n" if prompt.endswith("\n") else self.closes

    def thinking_tokens(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int | None:
        """Return how many ids stand before the answer, white space included; None if the ids end inside the thinking.

        ``decode`` must leave no token out.
        """
        begin = self.answer_begins(decode(ids))
        if not begin:
            return begin
        count = bisect_left(range(len(ids)), True, key=lambda number: self.closes in decode(ids[:number]))
        while count < len(ids) and not decode(ids[count : count + 1]).strip():
            count += 1
        return count


def find_thinking(known: str, prompt: str) -> Thinking | None:
    """Return how a model thinks, or None if ``known``, its chat template and added tokens, does not know of thinking.

    ``prompt`` is one as the template makes it, up to where the answer begins.
    """
    for opens, closes in MARKS:
        if closes in known:
            return Thinking(opens, closes, begun=prompt.rfind(opens) > prompt.rfind(closes))
    return None
