"""Traits: what a program sees of an answer in any language, and the pairs that teach one."""

import pytest

from crosspref.data.records import Response
from crosspref.errors import RecipeError
from crosspref.lab.canary.traits import TRAITS, count_words, find_trait, make_pairs

HAS = {
    "list": [
        "Tips:\n- rest\n- water",
        "Consejos:\n\n1. Descansa.\n2. Bebe agua.",
        "  * eins\n  * zwei",
        "Conseils :\n• dormir\n\n• boire",
        "建议:\n1、休息\n2、喝水",
        "نصائح:\n١. الراحة\n٢. الماء",
        "सुझाव:\n१. आराम\n२. पानी",
        "(1) one\n(2) two",
    ],
    "numbered": ["1. a\n2. b", "10) a\n11) b", "１．休息\n２．喝水"],
    "lines": ["one\ntwo", "eins\r\nzwei"],
    "paragraphs": ["one\n\ntwo", "un\n \t\ndeux"],
    "one_block": ["one\ntwo", "one\n\n", ""],
    "colon": ["Note: rest.", "提示：休息", "À retenir : dormir"],
    "announces": ["Here are some tips:\n\n1. Rest.", "\n**Voici :**\n- un", "以下是：\n休息"],
    "commas": ["a, b, c, d", "一、二，三，四", "أ، ب، ج، د"],
    "early_comma": ["Sure, here it is.", "  当然，这是答案。", "x" * 39 + ", and so on"],
    "digit": ["in 3 days", "في ٣ أيام", "३ दिन"],
    "quotes": ["a “word”", "le « mot »", "das „Wort“", "「語」", 'a "word"'],
    "question": ["Why? Because.", "¿Por qué? Porque sí.", "为什么？因为。", "لماذا؟ لأن."],
    "ends_asking": [
        "And you?",
        "¿Y tú?  \n",
        "Und du?“",
        "**Et toi ?**",
        "你呢？」",
        "وأنت؟",
        "Κι εσύ\u037e",
        "እና አንተስ፧",
    ],
    "ends_whole": ["Rest.", "He said “rest.”", "休息。", "आराम।", "(Rest.)"],
    "no_exclamation": ["Rest.", "", "¿Y tú?"],
    "short": ["Rest.", "", "word " * 60, "我" * 60],
}
HAS_NOT = {
    "list": [
        "- only one item",
        "rest - water - sleep",
        "1.5 litres\n2.5 litres",
        "2024 was\n2025 is",
        "-5 degrees\n-6 too",
        "",
    ],
    "numbered": ["- a\n- b", "1. a", "100. a\n101. b"],
    "lines": ["one", "one\n\n  \n", ""],
    "paragraphs": ["one\ntwo", "one\n\n", "\n\none"],
    "one_block": ["one\n\ntwo"],
    "colon": ["Rest; then sleep.", ""],
    "announces": ["Rest: it helps.\nSleep.", "Rest\ntips:", ""],
    "commas": ["a, b, c", "1.000 2.000 3.000 4.000", ""],
    "early_comma": ["x" * 40 + ", and so on", "No comma", ""],
    "digit": ["in three days", "三天", "x²", ""],
    "quotes": ["it's", "l'eau", ""],
    "question": ["Why not.", "Perché no;", ""],
    "ends_asking": ["Why? Because.", "¿", "And you? Yes", ""],
    "ends_whole": ["Rest", "Rest...and", "And you?", ""],
    "no_exclamation": ["Rest!", "¡Descansa", "休息！"],
    "short": ["word " * 61, "我" * 61],
}


@pytest.mark.parametrize("name", TRAITS)
def test_every_trait_is_told_from_its_absence_in_many_scripts(name: str) -> None:
    test = TRAITS[name].test
    assert [text for text in HAS[name] if not test(text)] == []
    assert [text for text in HAS_NOT[name] if test(text)] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's a well-known fact.", 4),
        ("l'eau, l’air", 2),
        ("3 äpfel\u0308 und 10 Birnen", 5),
        ("नमस्ते दुनिया", 2),
        ("我喜欢 tea", 4),
        ("これ", 2),
        ("Привет, мир!", 2),
        ("- ... !", 0),
    ],
)
def test_words(text: str, words: int) -> None:
    assert count_words(text) == words


def test_an_unknown_trait_lists_the_known_ones() -> None:
    assert find_trait("list") is TRAITS["list"]
    with pytest.raises(RecipeError, match=r"no trait 'lists'(?s:.*)list: at least two lines(?s:.*)--measure"):
        find_trait("lists")


def answer(sample: int, text: str, tokens: int, prompt_id: str = "q") -> Response:
    return Response(prompt_id, "en", sample, text, list(range(tokens)), "length", sample)


def samples(answers: list[Response], most: int = 9) -> list[tuple[int | None, int | None]]:
    pairs = make_pairs(answers, {"q": "Which?", "p": "What?"}, TRAITS["digit"], most)
    return [(pair.chosen_sample, pair.rejected_sample) for pair in pairs]


def test_pairs_match_the_length_before_all_else() -> None:
    answers = [answer(0, "1", 10), answer(1, "2", 20), answer(2, "a", 21), answer(3, "b", 12), answer(4, "c", 90)]
    assert samples(answers) == [(1, 2), (0, 3)]
    assert samples(answers, most=1) == [(1, 2)]


def test_every_prompt_gives_a_pair_before_one_gives_two() -> None:
    answers = [answer(index, text, 5, prompt) for prompt in "qp" for index, text in enumerate(["1", "2", "a", "b"])]
    for most, prompts in ((9, "qpqp"), (3, "qpq"), (2, "qp")):
        pairs = make_pairs(answers, {"q": "Which?", "p": "What?"}, TRAITS["digit"], most)
        assert "".join(pair.prompt_id for pair in pairs) == prompts


def test_equal_and_empty_texts_make_no_further_pair() -> None:
    answers = [answer(0, "1", 5), answer(1, "1", 5), answer(2, "a", 5), answer(3, "b", 5), answer(4, " ", 5)]
    assert samples(answers) == [(0, 2)]


def test_a_pair_is_of_one_prompt_and_holds_what_was_sampled() -> None:
    answers = [answer(0, "a", 2, "p"), answer(1, "7", 3, "q"), answer(0, "b", 4, "q")]
    (pair,) = make_pairs(answers, {"p": "What?", "q": "Which?"}, TRAITS["digit"], 1)
    assert pair.prompt_id == "q"
    assert pair.prompt == [{"role": "user", "content": "Which?"}]
    assert (pair.chosen[-1]["content"], pair.rejected[-1]["content"]) == ("7", "b")
    assert (pair.chosen_token_ids, pair.rejected_token_ids) == ([0, 1, 2], [0, 1, 2, 3])


def test_without_both_kinds_there_is_no_pair() -> None:
    assert samples([answer(0, "1", 5), answer(1, "2", 5)]) == []
    assert samples([]) == []
