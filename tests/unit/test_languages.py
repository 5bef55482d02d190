import re
import subprocess
import sys

import pytest

from crosspref.errors import DataError
from crosspref.languages import CROSSLINGUAL_PREFIX, ENGLISH, LANGUAGES, crosslingual_instruction, language_name


def test_table_is_about_a_hundred_well_formed_tags_with_distinct_names():
    assert len(LANGUAGES) >= 100
    assert len(set(LANGUAGES.values())) == len(LANGUAGES)
    for tag, name in LANGUAGES.items():
        assert re.fullmatch(r"[a-z]{2,3}(-([a-z]{2,4}|419))?", tag), tag
        assert name == name.strip(), tag
        assert name[0].isupper(), tag


@pytest.mark.parametrize(("tag", "name"), [("en", "English"), ("sw", "Swahili"), ("pt-br", "Brazilian Portuguese")])
def test_names(tag, name):
    assert LANGUAGES[tag] == name
    assert language_name(tag) == name


def test_english_instruction_is_unchanged():
    assert crosslingual_instruction("  Why?\n", ENGLISH) == "  Why?\n"


def test_other_languages_get_the_prefix_of_the_paper_with_its_comma_and_a_blank_line():
    assert crosslingual_instruction("Why is {x} blue?", "es") == (
        "Please answer the following instruction using only Spanish, unless explicitly instructed to respond in a "
        "different language.\n\nWhy is {x} blue?"
    )
    assert CROSSLINGUAL_PREFIX.count("{language}") == 1


@pytest.mark.parametrize(
    ("tag", "near"), [("Spanish", "es (Spanish)"), ("ES", "es (Spanish)"), ("zh-hand", "zh-hant (")]
)
def test_unknown_tag_names_near_matches(tag, near):
    with pytest.raises(DataError) as error:
        crosslingual_instruction("Why?", tag)
    assert repr(tag) in str(error.value)
    assert near in str(error.value)


def test_unknown_tag_without_near_match_says_what_a_tag_is():
    with pytest.raises(DataError, match="ISO 639"):
        language_name("qqqqqq")


@pytest.mark.slow
def test_import_is_light():
    code = "import crosspref.languages, sys; assert not {'torch', 'pyarrow', 'numpy', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
