"""Pairs by language imbalance: who is chosen and rejected in either language, joins, and what makes no pair."""

import random
from dataclasses import replace
from typing import Any

import pytest

from crosspref.data.records import Dropped, Pair, Response, Translation
from crosspref.errors import DataError
from crosspref.stages.select.language_imbalance import Answered, language_imbalance_pairs

SPANISH = {"p": "¿Por qué?", "q": "¿Qué?"}
ENGLISH = {"p": "Why?", "q": "What?", "z": "Only in English?"}


def answer(prompt_id: str, language: str, **changes: Any) -> Response:
    ids = [len(prompt_id + language), ord(prompt_id), ord(language[0]), 2]
    return replace(Response(prompt_id, language, 0, f"{prompt_id} by {language}", ids, "stop", 7), **changes)


def translation(prompt_id: str, language: str, target: str, **changes: Any) -> Translation:
    text, ids = f"{prompt_id} by {language} in {target}", [ord(prompt_id), ord(language[0]), ord(target[0])]
    return replace(Translation(prompt_id, language, 0, target, text, ids, "stop", None), **changes)


OWN = [answer("p", "es"), answer("q", "es")]
THERE = [answer("p", "en"), answer("q", "en"), answer("z", "en")]
TRANSLATIONS = [translation(prompt, *way) for prompt in "pq" for way in (("es", "en"), ("en", "es"))]


def make(**changes: Any) -> tuple[list[Pair], list[Dropped]]:
    arguments: dict[str, Any] = {
        "language": "es",
        "instructions": SPANISH,
        "english_instructions": ENGLISH,
        "answers": OWN,
        "english_answers": THERE,
        "translations": TRANSLATIONS,
        "translation_prompts": [],
    }
    given = {**arguments, **changes}
    english = Answered("en", given.pop("english_instructions"), given.pop("english_answers"))
    foreign = Answered(given.pop("language"), given.pop("instructions"), given.pop("answers"))
    return language_imbalance_pairs(foreign, english, **given)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_english_is_preferred_in_both_languages() -> None:
    pairs, dropped = make()
    assert dropped == []
    p, e, s = ord("p"), ord("e"), 2
    assert pairs[:2] == [
        Pair(
            *("p", "es", user("¿Por qué?"), assistant("p by en in es"), assistant("p by es"), None, 0),
            *([p, e, e], [3, p, e, s], None, None, None),
        ),
        Pair(
            *("p", "en", user("Why?"), assistant("p by en"), assistant("p by es in en"), 0, None),
            *([3, p, e, s], [p, e, e], None, None, None),
        ),
    ]
    assert [(pair.prompt_id, pair.language) for pair in pairs] == [("p", "es"), ("p", "en"), ("q", "es"), ("q", "en")]
    assert pairs[2].prompt == user("¿Qué?")
    assert pairs[2].chosen == assistant("q by en in es")
    assert pairs[3].rejected == assistant("q by es in en")


def test_texts_that_were_cut_do_not_end() -> None:
    cut: dict[str, Any] = {"token_ids": None, "finish_reason": "length"}
    pairs, _ = make(
        answers=[replace(OWN[0], **cut), replace(OWN[1], finish_reason="length")],
        translations=[TRANSLATIONS[0], replace(TRANSLATIONS[1], **cut), *TRANSLATIONS[2:]],
        truncated="keep",
    )
    assert [(pair.chosen_ended, pair.rejected_ended) for pair in pairs] == [(False, False), *[(None, None)] * 3]


def test_rows_are_joined_by_id() -> None:
    expected = make()
    rng = random.Random(0)
    for _ in range(5):
        shuffled = {
            name: rng.sample(rows, len(rows))
            for name, rows in (("answers", OWN), ("english_answers", THERE), ("translations", TRANSLATIONS))
        }
        assert make(**shuffled) == expected


def test_a_translation_prompt_takes_the_english_answer_as_it_stands() -> None:
    plain, _ = make()
    pairs, dropped = make(translation_prompts=["p"], translations=TRANSLATIONS[:1] + TRANSLATIONS[2:])
    assert dropped == []  # p was not translated into Spanish, and need not be
    assert pairs[0].chosen == assistant("p by en")
    assert pairs[0].chosen_token_ids == THERE[0].token_ids
    assert pairs[0].chosen_sample is None  # it is no sample of the Spanish prompt
    assert (pairs[0].prompt, pairs[0].rejected) == (user("¿Por qué?"), assistant("p by es"))
    assert pairs[1:] == plain[1:]


def test_a_failed_translation_makes_no_pair() -> None:
    looped = [replace(row, failure="loops") for row in TRANSLATIONS[:2]]
    pairs, dropped = make(translations=[*looped, *TRANSLATIONS[2:]])
    assert [pair.prompt_id for pair in pairs] == ["q", "q"]
    assert dropped == [
        Dropped("p", "es", "select", "translation of the English answer failed (loops)"),
        Dropped("p", "en", "select", "translation of the answer in es failed (loops)"),
    ]


def test_each_language_stands_for_itself() -> None:
    pairs, dropped = make(translations=TRANSLATIONS[1:])
    assert [(pair.prompt_id, pair.language) for pair in pairs] == [("p", "es"), ("q", "es"), ("q", "en")]
    assert dropped == [Dropped("p", "en", "select", "translation of the answer in es is missing")]


def test_a_translation_of_nothing_that_came_as_good_makes_no_pair() -> None:
    blank = replace(TRANSLATIONS[1], text=" \n")
    _, dropped = make(translations=[TRANSLATIONS[0], blank, *TRANSLATIONS[2:]])
    assert [row.reason for row in dropped] == ["translation of the English answer failed (empty)"]


@pytest.mark.parametrize("asked", [[], ["p"]])
def test_a_missing_or_empty_answer_makes_no_pair(asked: list[str]) -> None:
    pairs, dropped = make(answers=OWN[1:], translations=TRANSLATIONS[1:], translation_prompts=asked)
    assert [pair.prompt_id for pair in pairs] == ["q", "q"]
    assert [(row.language, row.reason) for row in dropped] == [
        ("es", "the answer in es is missing"),
        ("en", "the answer in es is missing"),
    ]
    empty = [answer("p", "en", text=" \n"), *THERE[1:]]
    failed = [TRANSLATIONS[0], replace(TRANSLATIONS[1], text="", failure="empty"), *TRANSLATIONS[2:]]
    pairs, dropped = make(english_answers=empty, translations=failed, translation_prompts=asked)
    assert [pair.prompt_id for pair in pairs] == ["q", "q"]
    assert {(row.prompt_id, row.reason) for row in dropped} == {("p", "the English answer is empty")}


def test_no_answers_at_all_are_reported_prompt_by_prompt() -> None:
    pairs, dropped = make(answers=[], english_answers=[], translations=[])
    assert pairs == []
    assert [(row.prompt_id, row.language) for row in dropped] == [("p", "es"), ("p", "en"), ("q", "es"), ("q", "en")]


def test_equal_texts_make_no_pair() -> None:
    same = replace(TRANSLATIONS[1], text="p by es")
    pairs, dropped = make(translations=[TRANSLATIONS[0], same, *TRANSLATIONS[2:]])
    assert [(pair.prompt_id, pair.language) for pair in pairs] == [("p", "en"), ("q", "es"), ("q", "en")]
    assert dropped == [Dropped("p", "es", "select", "chosen and rejected are the same text")]


def test_ids_are_kept_where_there_are_any() -> None:
    pairs, _ = make(
        answers=[replace(row, token_ids=None) for row in OWN],
        translations=[replace(row, token_ids=None) for row in TRANSLATIONS],
    )
    assert (pairs[0].chosen_token_ids, pairs[0].rejected_token_ids) == (None, None)
    assert (pairs[1].chosen_token_ids, pairs[1].rejected_token_ids) == (THERE[0].token_ids, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "en"}, "no pairs of English"),
        ({"english_instructions": {"p": "Why?"}}, "1 prompts in 'es' are not there in English, the first: 'q'"),
        ({"answers": [*OWN, answer("p", "es", sample=1)]}, r"'p' \(es\) has two answers, samples 0 and 1"),
        ({"english_answers": [*THERE, answer("q", "en")]}, r"'q' \(en\) has two answers"),
        ({"answers": [*OWN, answer("x", "es")]}, "no prompt in 'es' for the answer to 'x'"),
        ({"answers": [answer("p", "de")]}, "'p' is in 'de', among those in 'es'"),
        ({"translations": [*TRANSLATIONS, TRANSLATIONS[1]]}, r"two translations of prompt 'p', sample 0 \(en to es\)"),
        ({"translations": [translation("p", "de", "en")]}, "other languages than es and en"),
        ({"translations": [translation("p", "es", "de")]}, "other languages than es and en"),
        ({"translations": [translation("p", "es", "es")]}, "other languages than es and en"),
        ({"translations": [translation("x", "es", "en")]}, "no answer for the translation of prompt 'x'"),
        ({"translations": [translation("p", "es", "en", sample=1)]}, "no answer for the translation of prompt 'p'"),
    ],
)
def test_rows_that_do_not_belong_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(**changes)


@pytest.mark.parametrize("language", ["es", "en"])
def test_an_answer_that_was_cut_makes_no_pair_unless_it_is_kept(language: str) -> None:
    cut = {
        "answers" if language == "es" else "english_answers": [
            replace(row, finish_reason="length") for row in (OWN[:1] if language == "es" else THERE)
        ]
    }
    whose = "the answer in es" if language == "es" else "the English answer"
    rows = {"instructions": {"p": SPANISH["p"]}, "answers": OWN[:1], "translations": TRANSLATIONS[:2], **cut}
    pairs, dropped = make(**rows)
    assert (pairs, {row.reason for row in dropped}) == ([], {f"{whose} is truncated"})
    assert len(make(**rows, truncated="keep")[0]) == 2
