"""Items of the suite nlp from files: what is used, what is counted, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from nlp_items import make_items, write_items
from running import write_lines

from crosspref.data.items import Problems
from crosspref.errors import DataError
from crosspref.suites.nlp.items import Items, by_subject, languages_of, read_items
from crosspref.suites.nlp.tasks import TaskName

TASKS: tuple[TaskName, ...] = ("arc", "hellaswag", "mmlu", "truthfulqa")


def read(folder: Path, task: TaskName, language: str) -> tuple[Items | None, Problems]:
    problems = Problems()
    return read_items(str(folder), task, language, problems, lambda _: True), problems


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("language", ["en", "es"])
def test_rows_come_through_as_they_are(tmp_path: Path, task: TaskName, language: str) -> None:
    write_items(tmp_path, {language: 6})
    items, problems = read(tmp_path, task, language)
    assert items is not None
    assert str(problems) == ""
    given = make_items(language, 6)[task]
    assert [{name: row[name] for name in own} for own, row in zip(given, items.rows, strict=True)] == given
    assert len(items.examples) == (10 if task == "mmlu" else 0)


def test_numbers_and_letters_of_the_hub_are_understood(tmp_path: Path) -> None:
    rows = make_items("en", 1)
    arc = {**rows["arc"][0], "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    write_lines(tmp_path / "arc" / "en.jsonl", [arc])
    write_lines(tmp_path / "hellaswag" / "en.jsonl", [{**rows["hellaswag"][0], "label": 2}])
    three = {**make_items("es", 1)["arc"][0], "option_d": None, "answer": "C"}
    write_lines(tmp_path / "arc" / "es.jsonl", [three, {**three, "option_d": "d", "option_e": "e", "answer": "E"}])
    for task, language, count in (("arc", "en", 1), ("hellaswag", "en", 1), ("arc", "es", 2)):
        items, problems = read(tmp_path, task, language)  # type: ignore[arg-type]
        assert items is not None
        assert (len(items.rows), str(problems)) == (count, "")


def spoilt(task: str, language: str) -> list[dict[str, Any]]:
    """Rows that the harness would fail at, or silently count as answered wrong."""
    row = make_items(language, 1)[task][0]
    changes: dict[tuple[str, str], list[dict[str, Any]]] = {
        ("arc", "en"): [{"answerKey": "E"}, {"choices": {"text": ["a", "b"], "label": ["A"]}}, {"question": None}],
        ("arc", "es"): [{"answer": "1"}, {"answer": "E"}, {"option_b": ""}, {"option_c": None, "answer": "D"}],
        ("hellaswag", "en"): [{"label": ""}, {"label": "4"}, {"endings": ["one"]}, {"label": True}],
        ("hellaswag", "es"): [{"label": -1}, {"endings": ["a", 2]}, {"ctx_b": None}],
        ("mmlu", "en"): [{"answer": 4}, {"answer": "A"}, {"choices": ["a", "b", "c"]}, {"subject": ""}],
        ("mmlu", "es"): [{"answer": "E"}, {"option_d": ""}, {"answer": 0}],
        ("truthfulqa", "en"): [{"mc1_targets": {"choices": ["a", "b"], "labels": [0, 1]}}, {"mc2_targets": None}],
        ("truthfulqa", "es"): [
            {"mc1_targets_labels": [0, 1, 0, 0]},
            {"mc1_targets_labels": [1, 1, 0, 0]},
            {"mc2_targets_labels": [1, 1, 1, 1, 1]},
            {"mc2_targets_labels": [1, 0]},
        ],
    }
    return [{**row, **change} for change in changes[task, language]]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("language", ["en", "es"])
def test_what_cannot_be_used_is_counted_and_the_rest_is_used(tmp_path: Path, task: TaskName, language: str) -> None:
    write_items(tmp_path, {language: 3})
    bad = spoilt(task, language)
    file = write_lines(tmp_path / task / f"{language}.jsonl", [*bad, *make_items(language, 3)[task]])
    with file.open("a") as lines:
        lines.write('{"half": ')
    items, problems = read(tmp_path, task, language)
    assert items is not None
    assert len(items.rows) == 3
    assert sum(problems.values()) == len(bad) + 1
    assert all(reason.startswith(f"rows of {task} without a usable ") for reason in problems)


def test_another_row_is_another_digest() -> None:
    rows = make_items("es", 3)["mmlu"]
    one, same, other = Items(rows, rows), Items([*rows], [*rows]), Items(rows, [*rows[1:], rows[0]])
    assert one.digest == same.digest != other.digest


def test_files_that_are_missing_or_hold_nothing(tmp_path: Path) -> None:
    write_items(tmp_path, {"es": 3})
    assert read(tmp_path, "arc", "fr")[0] is None
    assert read(tmp_path / "nowhere", "arc", "es")[0] is None
    write_lines(tmp_path / "arc" / "es.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"es\.jsonl has no row that can be used\. Its columns must be id, instruction"):
        read(tmp_path, "arc", "es")
    write_lines(tmp_path / "mmlu_examples" / "es.jsonl", make_items("es", 3)["mmlu_examples"][:4])
    with pytest.raises(DataError, match=r"mmlu needs 5 examples before each item, and .*mmlu_examples has 4 for es"):
        read(tmp_path, "mmlu", "es")
    assert languages_of(str(tmp_path), TASKS) == ["es"]
    write_items(tmp_path, {"en": 1})
    assert languages_of(str(tmp_path), TASKS) == ["en", "es"]
    assert languages_of(str(tmp_path), ["arc"]) == ["en", "es"]


def test_english_mmlu_needs_examples_of_each_subject(tmp_path: Path) -> None:
    write_items(tmp_path, {"en": 6})
    examples = [row for row in make_items("en", 6)["mmlu_examples"] if row["subject"] == "anatomy"]
    write_lines(tmp_path / "mmlu_examples" / "en.jsonl", examples)
    items, problems = read(tmp_path, "mmlu", "en")
    assert items is not None
    assert {name: len(own.rows) for name, own in by_subject(items).items()} == {"mmlu_anatomy": 3}
    assert problems == {"rows of a subject with fewer than 5 examples (mmlu_world_religions)": 3}
    problems = Problems()
    with pytest.raises(DataError, match="5 examples before each item of each subject"):
        read_items(str(tmp_path), "mmlu", "en", problems, lambda _: False)
    assert sum(problems.values()) == 6
