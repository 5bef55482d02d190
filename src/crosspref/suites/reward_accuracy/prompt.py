"""What the judge of reward accuracy is asked (E.3): which of two answers is better, answer1, answer2, or a tie."""

import re

from crosspref.languages import language_name
from crosspref.suites.judge.questions import Decoding, Question, Template, UnreadableError
from crosspref.suites.reward_accuracy.pairs import Comparison

BY_TEXT = Decoding(temperature=0.0, max_tokens=256)

SYSTEM = (
    "You compare answers to instructions in {language}. You decide which of two answers would serve the person who "
    "gave the instruction better; where both are poor, that is the one with fewer faults."
)
ASKED = """\
Which of these two answers to an instruction in {language} is better? Go by the following.

1. A good answer is in {language}, unless the instruction asks for another language.
2. It does what the instruction asks for.
3. What it says is correct and makes sense.
4. Its grammar is right and it reads fluently.

<instruction>
{instruction}
</instruction>

<answer1>
{output_1}
</answer1>

<answer2>
{output_2}
</answer2>

Write one sentence first that compares the two and says which one you prefer, and why. Then write your choice on a \
line of its own: answer1 or answer2, or tie if they are equally good or equally bad. Use this form:

Comparison: <one sentence>
Preferred: <answer1, answer2 or tie>"""

OWN = Template((("system", SYSTEM), ("user", ASKED)))

_CHOICE = re.compile(r"(?:preferred *: *)?(answer ?[12]|tie)", re.IGNORECASE)
_DECORATION = re.compile(r"""["'`*_<>()\[\].]""")
"""What may stand around a label."""


def ask_about(pair: Comparison, template: Template = OWN, *, turned: bool = False) -> Question:
    """Return the question which answer is better, a shown first unless ``turned``.

    Its verdict is 1 for the answer that is shown first, 0 for the other one, 0.5 for a tie.
    """
    first, second = (pair.answer_b, pair.answer_a) if turned else (pair.answer_a, pair.answer_b)
    messages = template.fill(
        language=language_name(pair.language), instruction=pair.instruction, output_1=first, output_2=second
    )
    return Question(messages, BY_TEXT, read_choice)


def read_choice(text: str) -> float:
    """Return 1.0 for answer1, 0.0 for answer2 and 0.5 for a tie, if the last line is one of these and nothing else.

    Raises:
        UnreadableError: it is something else.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UnreadableError("empty")
    found = _CHOICE.fullmatch(_DECORATION.sub("", lines[-1]).strip())
    if found is None:
        raise UnreadableError("no label")
    return {"answer1": 1.0, "answer2": 0.0, "tie": 0.5}[found[1].lower().replace(" ", "")]
