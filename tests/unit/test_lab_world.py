"""The laboratory's world: what is said in it, and what gold says of it, worked out by hand."""

import json
import random
from pathlib import Path

import pytest

from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import load_prompts
from crosspref.lab.world.files import SCARCE, World, examples, write_preferences, write_prompts
from crosspref.lab.world.world import (
    LANGUAGE_OF,
    LANGUAGES,
    WORDS,
    Answer,
    ask,
    draw_meaning,
    foreign_words,
    gold,
    meaning_of,
    speak,
    write,
)
from crosspref.recipe.sections import PromptSettings

RED_APPLE_OLD_CHAIR = ((0, 0), (2, 4))


def test_languages_share_no_word_and_have_equally_many() -> None:
    assert len(LANGUAGE_OF) == sum(len(words.items) + len(words.attributes) + 4 + 2 for words in WORDS.values())
    shapes = {(len(words.items), len(words.attributes), len(words.details)) for words in WORDS.values()}
    assert shapes == {(16, 8, 4)}


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en", "red apple , old chair now thanks"),
        ("es", "manzana rojo , silla viejo ahora gracias"),
        ("de", "rot Apfel , alt Stuhl jetzt danke"),
        ("ru", "красный яблоко , старый стул сейчас спасибо"),
        ("sw", "tofaa nyekundu , kiti zamani sasa asante"),
    ],
)
def test_an_answer_in_words(language: str, said: str) -> None:
    assert speak(Answer(RED_APPLE_OLD_CHAIR, (2,), True), language) == said


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_prompt_tells_its_meaning(language: str) -> None:
    rng = random.Random(1)
    for _ in range(50):
        meaning = draw_meaning(rng, 4)
        assert meaning_of(ask(meaning, language), language) == meaning


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("red apple , old chair", 1.0),
        ("red apple , old chair now truly thanks", 1.25),  # two details and the closer
        ("red apple , old chair now truly here now", 1.0),  # two details too many
        ("red apple", 0.5),
        ("green apple , old chair", 0.7),  # .4 for the item, nothing for its attribute
        ("apple red , old chair", 0.7),  # the attribute on the wrong side
        ("old chair , red apple", 0.8),  # out of order
        ("red apple , red apple , old chair", 0.75),
        ("red apple , old chair , big house", 0.75),  # not asked for
        ("green apple , red apple , old chair", 0.45),  # what is said first counts, and the rest is a repetition
        ("thanks red apple , old chair", 1.0),  # the closer belongs at the end
        ("red apple , old Stuhl", 0.4),  # an item in another language is not named, and foreign
        ("", 0.0),
    ],
)
def test_gold_by_hand(response: str, expected: float) -> None:
    assert gold(response, RED_APPLE_OLD_CHAIR, "en") == pytest.approx(expected)


def test_gold_of_an_answer_that_was_cut() -> None:
    assert gold("red apple , old chair", RED_APPLE_OLD_CHAIR, "en", ended=False) == pytest.approx(0.7)


def test_gold_where_attributes_stand_behind() -> None:
    assert gold("manzana rojo , silla viejo", RED_APPLE_OLD_CHAIR, "es") == pytest.approx(1.0)
    assert gold("rojo manzana , silla viejo", RED_APPLE_OLD_CHAIR, "es") == pytest.approx(0.7)


def test_foreign_words() -> None:
    assert foreign_words("red Apfel , alt chair", "en") == 2
    assert foreign_words("red Apfel , alt chair nonsense", "de") == 2


@pytest.mark.parametrize("language", LANGUAGES)
def test_gold_is_the_same_in_every_language_and_grows_with_quality(language: str) -> None:
    rng = random.Random(2)
    means = []
    for quality in (0.0, 0.5, 1.0):
        golds = []
        for _ in range(300):
            meaning = draw_meaning(rng, 3)
            answer = write(meaning, quality, rng)
            golds.append(gold(speak(answer, language), meaning, language))
            assert golds[-1] == pytest.approx(gold(speak(answer, "en"), meaning, "en"))
        means.append(sum(golds) / len(golds))
    assert means[0] < 0.45 < 0.6 < means[1] < 0.9 < 1.1 < means[2]


def test_the_corpus_keeps_its_mix() -> None:
    drawn = list(examples(World(), 4000, False, random.Random(3)))
    english = sum(prompt.startswith("show ") for prompt, _ in drawn)
    total = sum(map(sum, SCARCE.values()))
    assert english / 4000 == pytest.approx(SCARCE["native"][0] / total, abs=0.03)
    assert any(prompt.startswith("Please answer") and "using only Swahili" in prompt for prompt, _ in drawn)


def test_preferences_and_prompts_are_read_by_the_product(tmp_path: Path) -> None:
    world = World(preferences=300)
    write_preferences(world, tmp_path / "preferences.jsonl", random.Random(4))
    pairs = load_preferences(str(tmp_path / "preferences.jsonl"))
    assert 250 < len(pairs) <= 300
    better = 0
    for pair in pairs:
        meaning = meaning_of(pair.prompt[0]["content"], "en")
        chosen, rejected = (gold(side[0]["content"], meaning, "en") for side in (pair.chosen, pair.rejected))
        better += chosen > rejected
    assert 0.85 < better / len(pairs) < 1  # the annotator likes length, so not every label is pure gold
    write_prompts(world, tmp_path / "prompts.jsonl", 20, random.Random(5))
    prompts = load_prompts(PromptSettings(source=str(tmp_path / "prompts.jsonl")), LANGUAGES).prompts
    assert len(prompts) == 20 * len(LANGUAGES)
    assert json.loads((tmp_path / "prompts.jsonl").read_text().splitlines()[0])["prompt_id"] == "00000"
