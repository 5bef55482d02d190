"""The prompts for the judge of MT-Bench, in our own words, and how its grades from 1 to 10 are read."""

import re

from crosspref.run.store import digest_of
from crosspref.suites.judge.questions import Decoding, Question, Template, UnreadableError, unreadable
from crosspref.suites.mtbench.files import TwoTurns

DECODING = Decoding(temperature=0.0, max_tokens=2048)

_NUMBER = r"\[(\d++(?:\.\d*+)?)\]"
_GRADES = [re.compile(rf"\[{_NUMBER}\]"), re.compile(_NUMBER)]
"""A grade's two forms; the second one counts only if the first is nowhere. A text of digits is read only once."""

_SYSTEM = "You grade the answers of language models. You are careful and fair, and you grade what is there."
_WHAT = (
    "Judge how good the answer is for the person who asked: whether it is right, helpful, to the point, thorough, and, "
    "where that is wanted, inventive. A longer answer is not better for its length. An answer should be in the "
    "language of the question, unless another one is asked for."
)
_AGAINST = (
    "The reference answers are right. Compare the answer with them: find what is wrong in it, and say what would have "
    "been right. A right answer need not be worded, or found, as the reference is."
)
_GRADE = (
    "First explain your judgement in a few sentences. Then end with the grade, a number from 1 (worst) to 10 (best), "
    "in double square brackets, exactly like this: Grade: [[6]]"
)


def _turn(number: int, *, reference: bool) -> str:
    parts = [f'<question turn="{number}">\n{{question_{number}}}\n</question>']
    if reference:
        parts.append(f'<reference turn="{number}">\n{{reference_{number}}}\n</reference>')
    return "\n\n".join([*parts, f'<answer turn="{number}">\n{{answer_{number}}}\n</answer>'])


def _template(turn: int, *, reference: bool) -> Template:
    if turn == 1:
        task = "A person asked a language model a question. Read the question and the answer, and grade the answer."
    else:
        task = (
            "A person had a conversation of two turns with a language model. Read all of it, and grade the answer of "
            "the second turn, and that one alone: how well it goes on from what came before."
        )
    shown = "\n\n".join(_turn(number, reference=reference) for number in range(1, turn + 1))
    parts = [task, _WHAT, *([_AGAINST] if reference else []), shown, _GRADE]
    return Template((("system", _SYSTEM), ("user", "\n\n".join(parts))))


TEMPLATES = {
    **{f"turn {turn}": _template(turn, reference=False) for turn in (1, 2)},
    **{f"turn {turn} with reference": _template(turn, reference=True) for turn in (1, 2)},
}
"""The prompts by name."""


def describe_prompts() -> dict[str, dict[str, object]]:
    """Return the prompts for the results, each with its hash."""
    return {
        name: {"digest": digest_of(template.messages), "messages": [list(message) for message in template.messages]}
        for name, template in TEMPLATES.items()
    }


def ask_about(question: TwoTurns, turn: int, answers: tuple[str, ...]) -> tuple[str, Question]:
    """Return the prompt's name and the question of how good the answer in a turn (1 or 2) is; its verdict is a grade.

    Reference answers are shown if the category needs them and each turn shown has one.
    """
    referenced = question.needs_references() and question.has_references(turn)
    name = f"turn {turn} with reference" if referenced else f"turn {turn}"
    parts: dict[str, str] = {}
    for number, (text, answer) in enumerate(zip(question.turns, answers, strict=False), start=1):
        parts |= {f"question_{number}": text, f"answer_{number}": answer}
        parts[f"reference_{number}"] = question.references[number - 1] or ""
    return name, Question(TEMPLATES[name].fill(**parts), DECODING, read_grade)


def read_grade(text: str) -> float:
    """Return the grade in a judge's answer: the first number in [[ ]], or else the first one in [ ].

    Raises:
        UnreadableError: there is none, or it is not from 1 to 10.
    """
    match = next((match for form in _GRADES if (match := form.search(text))), None)
    if match is None:
        raise unreadable(text, "no grade")
    grade = float(match[1])
    if not 1 <= grade <= 10:
        raise UnreadableError("grade out of 1..10")
    return grade
