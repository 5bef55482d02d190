"""One turn of one question of MT-Bench: a model's answer, and what a judge said of it."""

import math
from dataclasses import dataclass

from crosspref.suites.judge.questions import LACKING, Question
from crosspref.suites.judge.verdicts import Verdict
from crosspref.suites.mtbench.files import TwoTurns
from crosspref.suites.mtbench.prompt import ask_about
from crosspref.suites.results import Judgement

NO_ANSWER, NO_REFERENCE = "no answer", "no reference"


@dataclass
class Turn:
    """A model's answers to a question up to one turn (``number``, 1 or 2), and the judge's verdict on the last.

    ``answers`` is shorter than ``number`` where there was no answer. ``failure`` says why there is no grade, and is
    empty where there is one. ``plain`` tells that the category needs a reference answer and the judge saw none.
    """

    model: str
    language: str
    question: TwoTurns
    number: int
    answers: tuple[str, ...]
    prompt: str = ""
    asked: Question | None = None
    verdict: Verdict | None = None
    failure: str = NO_ANSWER
    plain: bool = False

    def prepare(self, *, without_reference: bool) -> None:
        """Make the question to the judge, where there is something to be judged."""
        if len(self.answers) < self.number:
            return
        missing = self.question.needs_references() and not self.question.has_references(self.number)
        if missing and not without_reference:
            self.failure = NO_REFERENCE
            return
        self.plain = missing
        self.prompt, self.asked = ask_about(self.question, self.number, self.answers)

    def take(self, verdict: Verdict | None) -> None:
        """Take what the judge said; None is a verdict that a replayed file lacks."""
        self.verdict = verdict
        self.failure = LACKING if verdict is None else verdict.failure or ""

    @property
    def grade(self) -> float | None:
        """From 1 to 10, where there is one."""
        return None if self.verdict is None else self.verdict.verdict

    def row(self) -> Judgement:
        """Return it as a row of the table of judgements."""
        said = self.verdict
        return Judgement(
            model=self.model,
            language=self.language,
            question_id=self.question.question_id,
            category=self.question.category,
            turn=self.number,
            answer=self.answers[-1] if len(self.answers) == self.number else "",
            prompt=self.prompt,
            score=math.nan if self.grade is None else self.grade,
            failure=self.failure,
            judgement=(said.text or "") if said else "",
            judge=said.judge if said else "",
            date=said.date if said else "",
            key=said.key if said else "",
        )
