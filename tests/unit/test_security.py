"""SECURITY.md: every test that is to hold a promise exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PROMISES = re.split(r"^\d+\. ", PAGE.partition("## What is promised")[2].partition("\n## ")[0], flags=re.MULTILINE)[1:]


def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_there_are_promises() -> None:
    assert len(PROMISES) > 5


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.partition("**")[2].partition("**")[0])
def test_each_promise_has_tests_that_exist(promise: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
    assert named
    assert len(named) == promise.count("::")
    for file, test in named:
        assert test in names_in(file), f"{file} has no {test}"
