"""What the judge of X-AlpacaEval is asked: which of two answers to an instruction is better, m or M."""

import random

from crosspref.suites.judge.questions import Decoding, Question, Template, read_label

LABELS = ("m", "M")
BY_LOGPROBS = Decoding(temperature=1.0, max_tokens=1)
BY_TEXT = Decoding(temperature=0.0, max_tokens=16)

SYSTEM = (
    "You rank the answers of language models. You are careful and fair, and you say which of two answers most people "
    "would like better."
)
ASKED = """\
Two language models, called m and M, were given the same instruction. Read the instruction and both answers, and \
decide which answer is better from the point of view of the person who gave it: what it says should be right, helpful, \
and what was asked for. An answer should be in the language of the instruction, unless the instruction asks for \
another one.

<instruction>
{instruction}
</instruction>

<answer model="m">
{output_1}
</answer>

<answer model="M">
{output_2}
</answer>

Which model gave the better answer? Reply with its name alone, m or M, and with nothing else: no quotation marks, no \
explanation."""


OWN = Template((("system", SYSTEM), ("user", ASKED)))


def is_switched(instruction: str) -> bool:
    """Tell whether the model's answer comes first; like alpaca_eval, decide it from the instruction alone."""
    stream = random.Random(f"is_switched_outputs{instruction}0")  # noqa: S311 - nothing to do with secrets
    return stream.choices([False, True])[0]


def ask_about(instruction: str, baseline: str, output: str, template: Template = OWN) -> Question:
    """Return the question of which answer is better; its verdict is the probability that the first one is."""
    first, second = (output, baseline) if is_switched(instruction) else (baseline, output)
    messages = template.fill(instruction=instruction, output_1=first, output_2=second)
    return Question(messages, BY_TEXT, lambda text: read_label(text, LABELS), LABELS, BY_LOGPROBS)


def preference(instruction: str, first: float) -> float:
    """Return the preference in [1, 2], where 2 is the model's answer, from the probability of the first answer."""
    shown = 2.0 - first
    return 3.0 - shown if is_switched(instruction) else shown
