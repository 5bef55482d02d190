"""Texts of others are searched in a time that grows with their length, and not with its square."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crosspref.engines.transformers.chat import SIGN
from crosspref.errors import RecipeError
from crosspref.keys import without_key
from crosspref.lab.canary.traits import TRAITS
from crosspref.reports.table import csv_text
from crosspref.suites.judge.questions import Template
from crosspref.suites.xalpaca.prompt import OWN

SHORT = 1000
"""Characters of the shorter text; the longer one has 8 times as many."""


def seconds(search: Callable[[], object]) -> float:
    """Return the shortest of several times of the processor: what else the machine does only adds to it."""

    def once() -> float:
        begin = time.thread_time()
        search()
        return time.thread_time() - begin

    return min(once() for _ in range(7))


def is_linear(search: Callable[[str], object], hostile: Callable[[int], str]) -> bool:
    """Tell whether 8 times the text takes about 8 times as long; 64 times would be the square."""
    short, long = hostile(SHORT), hostile(8 * SHORT)
    return seconds(lambda: search(long)) < 24 * seconds(lambda: search(short))


@pytest.mark.parametrize("repeated", ["\n", " ", "-\n"])
def test_the_traits_of_an_answer(repeated: str) -> None:
    slow = [name for name, trait in TRAITS.items() if not is_linear(trait.test, lambda length: repeated * length)]
    assert slow == []


def test_a_cell_that_is_nearly_a_number() -> None:
    assert is_linear(lambda cell: csv_text([cell], [], quoted=False), lambda length: "1" * length + "x")


def test_a_token_of_a_model_that_is_nearly_a_sign() -> None:
    assert is_linear(SIGN.fullmatch, lambda length: "<" + "a" * length)


def test_a_judges_prompt_whose_messages_do_not_end(tmp_path: Path) -> None:
    def read(text: str) -> None:
        file = tmp_path / "prompt.txt"
        file.write_text(text)
        with pytest.raises(RecipeError):
            Template.read(str(file), "xalpaca.prompt", OWN)

    assert is_linear(read, lambda length: "<|im_start|>user\n" * length)


def test_a_key_of_backslashes_which_could_escape_each_other() -> None:
    def search(length: int) -> float:
        key = "\\" * length + "x"
        return seconds(lambda: without_key("\\" * 20, key))

    assert search(12) < 24 * search(6)
