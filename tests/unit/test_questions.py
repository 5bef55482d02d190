"""Reading a judge's answers, and which answer of X-AlpacaEval stands first."""

import math
import random
from pathlib import Path
from typing import Any

import pytest

from crosspref.errors import RecipeError
from crosspref.run.verdicts import Verdict
from crosspref.suites.judge.questions import Template, UnreadableError, first_label_probability, read_answer, read_label
from crosspref.suites.xalpaca.prompt import LABELS, OWN, ask_about, is_switched, preference


@pytest.mark.parametrize(("text", "value"), [("m", 1.0), ("M", 0.0), (" m\n", 1.0), ("**M**.", 0.0), ('"m"', 1.0)])
def test_a_label_alone_is_a_verdict(text: str, value: float) -> None:
    assert read_label(text, LABELS) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        ("Model m is better.", "no label"),
        ("mM", "no label"),
        ('{"better": "m', "half JSON"),
        ('```json\n{"better": "m"}\n```', "JSON"),
        ("```json\n{", "half JSON"),
    ],
)
def test_anything_else_is_counted_by_kind_and_not_guessed(text: str, kind: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        read_label(text, LABELS)
    assert str(caught.value) == kind


@pytest.mark.parametrize(("piece", "count"), [("[", 100_000), ('{"a":', 100_000), ("[9", 1), ("`", 1_000_000)])
def test_json_that_python_cannot_read_is_half_json(piece: str, count: int) -> None:
    """It is nested beyond the interpreter's stack, or has a number of too many digits."""
    with pytest.raises(UnreadableError, match="half JSON"):
        read_label(piece * count + "9" * 10_000, LABELS)


def test_the_probability_of_the_first_label_by_hand() -> None:
    logprobs = {"m": math.log(0.6), "M": math.log(0.2), "The": math.log(0.1)}
    assert first_label_probability(logprobs, LABELS) == pytest.approx(0.75, abs=1e-12)


@pytest.mark.parametrize(
    ("logprobs", "value"),
    [
        ({"m": -3.0, "x": -0.1}, 1.0),
        ({"M": -3.0, "x": -0.1}, 0.0),
        ({"m": -0.5, " m": -0.1, "M": -0.5}, 0.5),  # as it stands, where it stands so
        ({" m": -0.5, " M": -0.5}, 0.5),
        ({"m": 0.0, "M": -9999.0}, 1.0),
        ({"m": -9999.0, "M": 0.0}, 0.0),
    ],
)
def test_probabilities_at_the_edges(logprobs: dict[str, float], value: float) -> None:
    assert first_label_probability(logprobs, LABELS) == pytest.approx(value, abs=1e-12)


def test_without_either_label_there_is_no_probability() -> None:
    with pytest.raises(UnreadableError, match="no label"):
        first_label_probability({"The": -0.1, "Both": -3.0}, LABELS)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5, 1e308, True, "-0.5", None, [-1.0]])
@pytest.mark.parametrize("token", ["m", "M", "The"])
def test_what_is_no_log_probability_makes_no_probability(token: str, value: Any) -> None:
    with pytest.raises(UnreadableError, match="impossible log-probabilities"):
        first_label_probability({"m": -0.1, "M": -2.0, token: value}, LABELS)


def test_an_answer_that_was_cut_says_so() -> None:
    question = ask_about("Say hello.", "Hello!", "Hi!")
    for text, finish_reason, failure, by_logprobs, said in (
        ("The better answer is", "length", None, False, (None, "cut off")),
        ("Sorry", "stop", "refusal", False, (None, "refusal")),
        ("m", "length", None, False, (1.0, None)),
        ("m", "stop", None, True, (None, "no label")),
    ):
        verdict = Verdict("", "j", {}, "", "", text, None, None, failure, {}, finish_reason=finish_reason)
        read = read_answer(verdict, question, by_logprobs=by_logprobs)
        assert (read.verdict, read.failure) == said


def test_the_order_follows_the_instruction_as_alpaca_eval_has_it() -> None:
    texts = [f"Instruction {number}: ¿qué?" for number in range(400)]
    for text in texts:
        expected = random.Random("is_switched_outputs" + text + "0").choices([False, True])[0]
        assert is_switched(text) is expected
    assert 150 < sum(map(is_switched, texts)) < 250


def test_the_preference_is_for_the_model_whichever_stands_first() -> None:
    straight = next(text for text in map(str, range(99)) if not is_switched(text))
    switched = next(text for text in map(str, range(99)) if is_switched(text))
    # The baseline stands first: the model wins by what is not the first label's.
    assert preference(straight, 0.75) == 2 - 0.75
    assert preference(switched, 0.75) == 1 + 0.75
    for text, order in ((straight, ("theirs", "ours")), (switched, ("ours", "theirs"))):
        asked = ask_about(text, "theirs", "ours").messages[-1]["content"]
        assert asked.index(order[0]) < asked.index(order[1])


def test_braces_in_an_answer_stay_as_they_are() -> None:
    asked = ask_about("Write {code}", "{first} {0}", "{{second}} {").messages[-1]["content"]
    for text in ("Write {code}", "{first} {0}", "{{second}} {"):
        assert text in asked


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(
        "<|im_start|>system\nRank.\n<|im_end|>\n"
        "<|im_start|>user\n{instruction}\nm: {output_1}\nM: {output_2}\n<|im_end|>\n"
    )
    text = next(text for text in map(str, range(99)) if not is_switched(text))
    asked = ask_about(text, "theirs {output_2}", "ours", Template.read(str(file), "xalpaca.prompt", OWN))
    assert asked.messages == [
        {"role": "system", "content": "Rank."},
        {"role": "user", "content": f"{text}\nm: theirs {{output_2}}\nM: ours"},
    ]
    file.write_text("{instruction} {output_1} {output_2}")
    template = Template.read(str(file), "xalpaca.prompt", OWN)
    assert [message["role"] for message in ask_about(text, "a", "b", template).messages] == ["user"]
    file.write_text("{instruction} {output_1}")
    with pytest.raises(RecipeError, match=r"has no \{output_2\}"):
        Template.read(str(file), "xalpaca.prompt", OWN)
