"""What judging costs: an estimate before anything is asked, and a count of what was reported, against the budget."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from crosspref.suites.judge.questions import Question
from crosspref.suites.judge.verdicts import Verdict
from crosspref.suites.settings import JudgeSettings

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes of a text per token, for the estimate: of bytes, since a character of other scripts takes more tokens."""


def size_of(question: Question) -> int:
    """Return the UTF-8 bytes of a question."""
    return sum(len(message["content"].encode("utf-8", "replace")) for message in question.messages)


@dataclass
class Costs:
    """Counts the money of one judge; without prices only tokens."""

    settings: JudgeSettings
    spent: float = 0.0
    reserved: float = 0.0
    tokens_per_byte: float = 1 / BYTES_PER_TOKEN

    def price(self, tokens_in: float, tokens_out: float) -> float:
        """Return what tokens cost; 0 where no price is known."""
        return (tokens_in * (self.settings.price_in or 0.0) + tokens_out * (self.settings.price_out or 0.0)) / 1e6

    def expected(self, question: Question, most_written: int) -> float:
        """Return the most that a question should cost: by the most tokens per byte seen so far, and a full answer."""
        return self.price(size_of(question) * self.tokens_per_byte, most_written)

    def reserve(self, cost: float) -> bool:
        """Set money aside for a question, and tell whether it is within the budget."""
        budget = self.settings.budget
        if budget is not None and self.spent + self.reserved + cost > budget:
            return False
        self.reserved += cost
        return True

    def settle(self, cost: float, usage: Mapping[str, int] | None = None, size: int = 0) -> None:
        """Count what a question of so many bytes took, in the place of what was set aside for it."""
        self.reserved -= cost
        if usage is not None:
            self.count(usage)
            self.tokens_per_byte = max(self.tokens_per_byte, usage.get("prompt_tokens", 0) / max(size, 1))

    def count(self, usage: Mapping[str, int]) -> None:
        """Count tokens."""
        self.spent += self.price(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))

    def count_before(self, verdicts: Iterable[Verdict]) -> None:
        """Count what the judge's verdicts in the file cost, at today's prices."""
        for verdict in verdicts:
            if verdict.judge == self.settings.model:
                self.count(verdict.usage)

    def expected_usage(self, question: Question, most_written: int) -> dict[str, int]:
        """Return what stands for the usage that a server does not report."""
        read = round(size_of(question) * self.tokens_per_byte)
        return {"prompt_tokens": read, "completion_tokens": most_written, "estimated": 1}

    def estimate(self, questions: Sequence[Question], written: int) -> str:
        """Return the line about what asking these questions will take; ``written`` tokens come back at most."""
        read = sum(map(size_of, questions)) / BYTES_PER_TOKEN
        line = (
            f"{len(questions):,} questions, about {read:,.0f} tokens to read and at most {written:,} to write "
            f"(an estimate: {BYTES_PER_TOKEN:g} bytes of text a token)"
        )
        if self.settings.price_in is None or self.settings.price_out is None:
            return f"{line}; no price is given (judge.price_in, judge.price_out)"
        known = f", {self.spent:,.2f} of it spent before" if self.spent else ""
        limit = f"; the budget is {self.settings.budget:,.2f}{known}" if self.settings.budget is not None else ""
        return f"{line}: about {self.price(read, written):,.2f}{limit}"
