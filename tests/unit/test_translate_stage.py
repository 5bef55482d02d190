"""The translation stage around a translator: order, joins, and what counts as a failure."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from crosspref.data.records import Response, Translation
from crosspref.protocols import Advance, Sampled
from crosspref.recipe.sections import TranslateSettings
from crosspref.stages.translate import translate

GOOD = Sampled("The sky is blue.", [5, 6, 7, 2], "stop")


class FakeTranslator:
    """Gives the answer that is written down for a text, and notes what it was asked."""

    def __init__(self, answers: dict[str, Sampled | None], extra: int = 0) -> None:
        self.answers, self.extra = answers, extra
        self.requests: list[tuple[str, str, str]] = []
        self.calls = 0

    def translate(self, requests: Sequence[tuple[str, str, str]], advance: Advance) -> list[Sampled | None]:
        self.calls += 1
        self.requests += requests
        found = [self.answers[text] for text, _, _ in requests]
        advance(len(found), sum(len(answer.token_ids) for answer in found if answer))
        return found + found[: self.extra]

    def close(self) -> None:
        pass


def response(prompt_id: str, text: str, language: str = "es", sample: int = 0) -> Response:
    return Response(prompt_id, language, sample, text, [9, 2], "stop", None)


def run(
    requests: Sequence[tuple[Response, str]],
    translator: FakeTranslator,
    identify: Callable[[str], str] | None = None,
    truncated: str = "drop",
) -> list[Translation]:
    settings = TranslateSettings(truncated=truncated)
    return translate(requests, translator, settings=settings, identify=identify, advance=lambda *_: None)


def one(
    answer: Sampled | None,
    identify: Callable[[str], str] | None = None,
    truncated: str = "drop",
    source: str = "es",
    target: str = "en",
) -> Translation:
    (row,) = run([(response("p", "texto", source), target)], FakeTranslator({"texto": answer}), identify, truncated)
    return row


def test_rows_keep_order_key_and_direction() -> None:
    requests = [
        (response("a", "hola", sample=3), "en"),
        (response("b", "  \n", sample=1), "en"),
        (response("a", "hi", "en"), "es"),
        (response("b", "largo"), "en"),
    ]
    translator = FakeTranslator(
        {"hola": Sampled("hello", [4, 2], "stop"), "hi": Sampled(" hola\n", [], "stop"), "largo": None}
    )
    steps: list[tuple[int, int]] = []
    rows = translate(
        requests, translator, settings=TranslateSettings(), identify=None, advance=lambda *step: steps.append(step)
    )
    assert rows == [
        Translation("a", "es", 3, "en", "hello", [4, 2], "stop", None),
        Translation("b", "es", 1, "en", "", None, "stop", "empty"),
        Translation("a", "en", 0, "es", " hola\n", None, "stop", None),  # as it came, from another tokenizer
        Translation("b", "es", 0, "en", "", None, "stop", "too long"),
    ]
    assert translator.requests == [("hola", "es", "en"), ("hi", "en", "es"), ("largo", "es", "en")]
    assert sum(units for units, _ in steps) == 4
    assert sum(tokens for _, tokens in steps) == 2


def test_nothing_to_translate_does_not_bother_the_translator() -> None:
    translator = FakeTranslator({})
    assert [row.failure for row in run([(response("a", ""), "en")], translator)] == ["empty"]
    assert run([], translator) == []
    assert translator.calls == 0


def test_a_translator_that_answers_too_often_is_noticed() -> None:
    requests = [(response("a", "uno"), "en"), (response("b", "dos"), "en")]
    with pytest.raises(ValueError, match="zip"):
        run(requests, FakeTranslator({"uno": GOOD, "dos": GOOD}, extra=1))


@pytest.mark.parametrize("text", ["", " \n\t ", "\u3000\n"])
def test_white_space_is_empty(text: str) -> None:
    row = one(Sampled(text, [8, 2], "stop"))
    assert (row.failure, row.text, row.token_ids) == ("empty", text, [8, 2])


def test_a_cut_translation_fails_unless_it_is_kept() -> None:
    cut = replace(GOOD, finish_reason="length")
    assert one(cut).failure == "cut at the token limit"
    assert one(cut, truncated="keep").failure is None
    assert one(cut).text == GOOD.text
    assert one(cut).finish_reason == "length"


@pytest.mark.parametrize(
    ("text", "ids", "failure"),
    [
        ("no no no no no", [], None),  # 2 grams, 1 of them repeated: half is not above half
        ("no no no no no no", [], "loops"),  # 3 grams, 2 repeated
        ("one two three four one two three four one two three four", [], "loops"),  # 9 grams, 4 of them new
        ("one two three four one two three four", [], None),  # 5 grams, 4 new
        ("fine words", [7] * 6, "loops"),
        ("fine words", [7] * 5, None),
        ("天空是蓝色的,因为阳光被大气散射。", [], None),
        ("天空" * 11, [], "loops"),  # no spaces: characters are counted
        ("A very ordinary sentence, in which a few letters, such as the and the, come again.", [], None),
    ],
)
def test_loops(text: str, ids: list[int], failure: str | None) -> None:
    row = one(Sampled(text, ids, "stop"))
    assert (row.failure, row.text) == (failure, text)


def test_a_loop_that_was_cut_is_a_loop_whatever_is_done_with_cut_ones() -> None:
    looping = Sampled("la " * 50, [3] * 50, "length")
    assert one(looping).failure == "loops"
    assert one(looping, truncated="keep").failure == "loops"


@pytest.mark.parametrize(
    ("found", "source", "target", "failure"),
    [
        ("es", "es", "en", "still in the source language"),
        ("en", "es", "en", None),
        ("fr", "es", "en", None),  # wrong as well, but identification of short texts is not good enough to say so
        ("pt", "pt-br", "en", "still in the source language"),
        ("pt", "pt-br", "pt-pt", None),  # what the identifier says is right for both
        ("en", "en", "es", "still in the source language"),
    ],
)
def test_untranslated_text(found: str, source: str, target: str, failure: str | None) -> None:
    assert one(GOOD, {GOOD.text: found}.__getitem__, source=source, target=target).failure == failure
