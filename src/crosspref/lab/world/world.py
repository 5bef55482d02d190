"""The language of a world whose true reward is known: prompts, answers, and how good an answer is.

A meaning is a few distinct items, each with an attribute. A prompt in language l asks to show them; an answer names
them in l. No word belongs to two languages, so the language of every word is known.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from crosspref.languages import ENGLISH

SEPARATOR = ","
MAX_TOKENS = 32
"""The token limit of an answer; one that does not end by itself is worth less."""

MAX_DETAILS = 6
USEFUL_DETAILS = 2


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one language; ``item_first``: an attribute follows its item."""

    items: tuple[str, ...]
    attributes: tuple[str, ...]
    details: tuple[str, ...]
    verb: str
    closer: str
    item_first: bool


def _words(items: str, attributes: str, details: str, verb: str, closer: str, item_first: bool = False) -> Words:
    return Words(tuple(items.split()), tuple(attributes.split()), tuple(details.split()), verb, closer, item_first)


WORDS: dict[str, Words] = {
    "en": _words(
        "apple bread chair table house tree river horse bird fish book lamp knife shirt bottle wheel",
        "red green white black old new big small",
        "truly here now again",
        "show",
        "thanks",
    ),
    "es": _words(
        "manzana pan silla mesa casa árbol río caballo pájaro pez libro lámpara cuchillo camisa botella rueda",
        "rojo verde blanco negro viejo nuevo grande pequeño",
        "realmente aquí ahora otra",
        "muestra",
        "gracias",
        item_first=True,
    ),
    "de": _words(
        "Apfel Brot Stuhl Tisch Haus Baum Fluss Pferd Vogel Fisch Buch Lampe Messer Hemd Flasche Rad",
        "rot grün weiß schwarz alt neu groß klein",
        "wirklich hier jetzt wieder",
        "zeige",
        "danke",
    ),
    "ru": _words(
        "яблоко хлеб стул стол дом дерево река лошадь птица рыба книга лампа нож рубашка бутылка колесо",
        "красный зелёный белый чёрный старый новый большой маленький",
        "правда здесь сейчас снова",
        "покажи",
        "спасибо",
    ),
    "sw": _words(
        "tofaa mkate kiti meza nyumba mti mto farasi ndege samaki kitabu taa kisu shati chupa gurudumu",
        "nyekundu kijani nyeupe nyeusi zamani mpya kubwa dogo",
        "kweli hapa sasa tena",
        "onyesha",
        "asante",
        item_first=True,
    ),
}
"""Real words, so that answers can be read; the grammar is the world's own."""

LANGUAGES = tuple(WORDS)
LANGUAGE_OF = {
    word: language
    for language, words in WORDS.items()
    for word in (*words.items, *words.attributes, *words.details, words.verb, words.closer)
}

Phrase = tuple[int, int]
"""An item and its attribute, as indices into a language's words."""

Meaning = tuple[Phrase, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer before it is put into words: phrases in order, details, and whether it ends with the closer."""

    phrases: tuple[Phrase, ...]
    details: tuple[int, ...]
    closes: bool


def draw_meaning(rng: random.Random, most: int) -> Meaning:
    """Draw 2 to ``most`` distinct items, each with an attribute."""
    words = WORDS[ENGLISH]
    items = rng.sample(range(len(words.items)), rng.randint(2, most))
    return tuple((item, rng.randrange(len(words.attributes))) for item in items)


def write(meaning: Meaning, quality: float, rng: random.Random) -> Answer:
    """Answer as the noisy teacher does: at ``quality`` 1 nothing is left out, wrong or repeated; at 0 much is."""
    careless = 1 - quality
    phrases: list[Phrase] = []
    for item, attribute in meaning:
        if rng.random() < 0.5 * careless:
            continue
        if rng.random() < 0.6 * careless:
            attribute = rng.randrange(len(WORDS[ENGLISH].attributes))
        phrases.append((item, attribute))
        if rng.random() < 0.35 * careless:
            phrases.append(rng.choice([(item, attribute), rng.choice(meaning)]))
    details: list[int] = []
    while len(details) < MAX_DETAILS and rng.random() < 0.5:
        details.append(rng.randrange(len(WORDS[ENGLISH].details)))
    return Answer(tuple(phrases or meaning[:1]), tuple(details), rng.random() < 0.15 + 0.6 * quality)


def speak(answer: Answer, language: str) -> str:
    """Put an answer into words."""
    words = WORDS[language]
    text = [_phrases(answer.phrases, words), *(words.details[detail] for detail in answer.details)]
    return " ".join([*text, words.closer] if answer.closes else text)


def ask(meaning: Meaning, language: str) -> str:
    """Put a meaning into words as a prompt."""
    return f"{WORDS[language].verb} {_phrases(meaning, WORDS[language])}"


def _phrases(phrases: Sequence[Phrase], words: Words) -> str:
    spoken = []
    for item, attribute in phrases:
        pair = [words.attributes[attribute], words.items[item]]
        spoken.append(" ".join(reversed(pair) if words.item_first else pair))
    return f" {SEPARATOR} ".join(spoken)


def meaning_of(prompt: str, language: str) -> Meaning:
    """Return what a prompt of the world asks for."""
    words = WORDS[language]
    phrases = []
    for phrase in prompt.removeprefix(words.verb).split(SEPARATOR):
        first, second = phrase.split()
        item, attribute = (first, second) if words.item_first else (second, first)
        phrases.append((words.items.index(item), words.attributes.index(attribute)))
    return tuple(phrases)


def gold(response: str, meaning: Meaning, language: str, ended: bool = True) -> float:
    """Return the true reward of a response: at most 1.25, and 1 for exactly what was asked for.

    The mean over the items asked for, each .4 if it is named and .6 more if its attribute is beside it; -.25 for each
    item too many; -.2 if they are out of order; +.05 for each of the first two details and -.05 for each further one;
    +.15 for the closer at the end; -.3 if the response does not end; -.1 for each word of another language.
    """
    words, tokens = WORDS[language], response.split()
    named = [(place, words.items.index(token)) for place, token in enumerate(tokens) if token in words.items]
    first: dict[int, int] = {}
    for place, item in named:
        first.setdefault(item, place)
    worth = 0.0
    beside = 1 if words.item_first else -1
    for item, attribute in meaning:
        if item in first:
            place = first[item] + beside
            right = 0 <= place < len(tokens) and tokens[place] == words.attributes[attribute]
            worth += 0.4 + 0.6 * right
    wanted = [item for item, _ in meaning]
    order = [wanted.index(item) for item in first if item in wanted]
    details = sum(token in words.details for token in tokens)
    return (
        worth / len(meaning)
        - 0.25 * (len(named) - len(order))
        - 0.2 * (order != sorted(order))
        + 0.05 * min(details, USEFUL_DETAILS)
        - 0.05 * max(0, details - USEFUL_DETAILS)
        + 0.15 * (tokens[-1:] == [words.closer])
        - 0.3 * (not ended)
        - 0.1 * foreign_words(response, language)
    )


def foreign_words(response: str, language: str) -> int:
    """Return how many words of a response belong to another language."""
    return sum(LANGUAGE_OF.get(token, language) != language for token in response.split())
