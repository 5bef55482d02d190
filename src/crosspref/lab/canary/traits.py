"""Traits of an answer that a program can verify in any language, and pairs that teach them (docs/lab.md).

Each test looks at punctuation, digits and lines alone, and knows the marks of the large scripts. An answer that was cut
at the token limit is judged as it is, so traits of an answer's end are rare where answers are cut.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from crosspref.data.records import Instruction, Pair, Response
from crosspref.errors import RecipeError

SHORT_WORDS = 60
"""The most words of an answer with the trait ``short``."""
MANY_COMMAS = 3
"""The fewest commas of an answer with the trait ``commas``."""
EARLY = 40
"""How many characters the beginning of an answer has."""

_QUESTION = "?？؟፧\u037e"  # the last is the Greek question mark, where it is not written as a semicolon
_FULL_STOP = ".。．।۔။።։"
_EXCLAMATION = "!！¡՜"
_COMMA = ",，、،፣՝"
_COLON = ":：፡"
_QUOTES = '"“”„‟«»‹›「」『』《》＂'
_CLOSING = _QUOTES + "'’)）]］】*_`"
"""What may follow a sentence's last mark: quotes, brackets, and the marks of bold and italic."""

# White space before an item stays on its line. With \s* each of many blank lines would be read up to the last one.
_NUMBER = r"\(?\d{1,2}(?:[.):]\s+|[、）．：]\s*)"
_ITEM = re.compile(rf"^[^\S\n]*(?:[-*•‣◦·–—+]\s+|{_NUMBER})\S", re.MULTILINE)
_NUMBERED = re.compile(rf"^[^\S\n]*{_NUMBER}\S", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class Trait:
    """What a trait is, in words, and the test of a text for it."""

    description: str
    test: Callable[[str], bool]


def is_list(text: str) -> bool:
    """Tell whether at least two lines begin with a bullet or a number, as the items of a list do."""
    return len(_ITEM.findall(text)) > 1


def is_numbered(text: str) -> bool:
    """Tell whether at least two lines begin with a number."""
    return len(_NUMBERED.findall(text)) > 1


def count_words(text: str) -> int:
    """Return the number of words, which are runs of letters, marks and digits.

    Chinese characters and kana count one by one, since there are no spaces between their words. Other scripts without
    spaces, such as Thai, are not divided: a run counts as one word.
    """
    count, inside = 0, False
    for character in unicodedata.normalize("NFC", text):
        if _stands_alone(character):
            count, inside = count + 1, False
        elif character.isalnum() or unicodedata.category(character) in ("Mn", "Mc"):
            count, inside = count + (not inside), True
        elif character not in "'’-":  # which stand inside words
            inside = False
    return count


def ends_with(text: str, marks: str) -> bool:
    """Tell whether the text's last character is one of the marks, apart from quotes and brackets after it."""
    return text.rstrip().rstrip(_CLOSING).rstrip()[-1:] in tuple(marks)


def _stands_alone(character: str) -> bool:
    return "\u3040" <= character <= "\u30ff" or "\u3400" <= character <= "\u9fff"


def _has(marks: str) -> Callable[[str], bool]:
    return lambda text: not set(marks).isdisjoint(text)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


TRAITS: dict[str, Trait] = {
    "list": Trait("at least two lines begin with a bullet or a number", is_list),
    "numbered": Trait("at least two lines begin with a number", is_numbered),
    "one_block": Trait("no blank line divides it", lambda text: not _BLANK_LINE.search(text.strip())),
    "lines": Trait("there are at least two lines", lambda text: len(_lines(text)) > 1),
    "paragraphs": Trait("a blank line divides it", lambda text: bool(_BLANK_LINE.search(text.strip()))),
    "colon": Trait("there is a colon", _has(_COLON)),
    "announces": Trait("the first line ends with a colon", lambda text: ends_with("".join(_lines(text)[:1]), _COLON)),
    "commas": Trait(
        f"there are at least {MANY_COMMAS} commas",
        lambda text: sum(character in _COMMA for character in text) >= MANY_COMMAS,
    ),
    "early_comma": Trait(
        f"a comma stands in the first {EARLY} characters", lambda text: _has(_COMMA)(text.strip()[:EARLY])
    ),
    "digit": Trait("there is a digit", lambda text: any(character.isdecimal() for character in text)),
    "quotes": Trait("there are quotation marks", _has(_QUOTES)),
    "question": Trait("there is a question mark", _has(_QUESTION)),
    "ends_asking": Trait("it ends with a question mark", lambda text: ends_with(text, _QUESTION)),
    "ends_whole": Trait("it ends with a full stop", lambda text: ends_with(text, _FULL_STOP)),
    "no_exclamation": Trait("there is no exclamation mark", lambda text: not _has(_EXCLAMATION)(text)),
    "short": Trait(f"it has at most {SHORT_WORDS} words", lambda text: count_words(text) <= SHORT_WORDS),
}
"""Every known trait, by the name under which the command asks for it."""


def find_trait(name: str) -> Trait:
    """Return a trait by its name.

    Raises:
        RecipeError: there is none of that name; the message lists the known ones.
    """
    if name not in TRAITS:
        known = "\n".join(f"  {known}: {trait.description}" for known, trait in TRAITS.items())
        raise RecipeError(
            f"There is no trait {name!r}. Known:\n{known}\nHow frequent each is: crosspref canary --measure"
        )
    return TRAITS[name]


def make_pairs(
    answers: Sequence[Response], instructions: Mapping[str, Instruction], trait: Trait, most: int
) -> list[Pair]:
    """Pair answers that have a trait (chosen) with answers to the same prompt that do not (rejected).

    Answers of similar length in tokens are paired first, so that the trait is taught and not the length. Each answer is
    in at most one pair, and equal texts count once. First comes one pair of each prompt, then a second one, and so on.

    Args:
        answers: English answers with their token ids.
        instructions: the prompts by prompt_id, in whose order their pairs come.
        trait: what to teach.
        most: how many pairs to make, at most.
    """
    ranked: list[tuple[int, Pair]] = []
    for prompt_id, instruction in instructions.items():
        distinct = {row.text: row for row in reversed(answers) if row.prompt_id == prompt_id and row.text.strip()}
        with_trait = [row for row in distinct.values() if trait.test(row.text)]
        without = [row for row in distinct.values() if not trait.test(row.text)]
        used: set[int] = set()
        for chosen, rejected in sorted(product(with_trait, without), key=_difference):
            if used.isdisjoint((chosen.sample, rejected.sample)):
                ranked.append((len(used), Pair.of(instruction, chosen, rejected)))
                used |= {chosen.sample, rejected.sample}
    return [pair for _, pair in sorted(ranked, key=lambda entry: entry[0])[:most]]


def _difference(couple: tuple[Response, Response]) -> tuple[int, int, int]:
    chosen, rejected = couple
    return abs(len(chosen.token_ids or []) - len(rejected.token_ids or [])), chosen.sample, rejected.sample
