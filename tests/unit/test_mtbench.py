"""MT-Bench: what is read from files, what the judge is asked, and how its grade is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from crosspref.data.items import Problems
from crosspref.data.rows import Row
from crosspref.data.sources import read_languages
from crosspref.errors import DataError
from crosspref.suites.judge.questions import UnreadableError
from crosspref.suites.mtbench.files import REFERENCES, TwoTurns, read_questions
from crosspref.suites.mtbench.prompt import TEMPLATES, ask_about, describe_prompts, read_grade
from crosspref.suites.mtbench.results import NO_ANSWER, NO_REFERENCE, Turn

SUM = TwoTurns("111", "math", ("What is 2 + 2?", "And times 3?"), ("It is 4.", "It is 12."))
POEM = TwoTurns("81", "writing", ("Write a line.", "Now in prose."), ("A line.", "Prose."))


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Good. Grade: [[1]]", 1.0),
        ("[[7.5]]", 7.5),
        ("Grade: [8]", 8.0),
        ("See [1], and [2]. Grade: [[3]]", 3.0),  # single brackets count only where there are no double ones
        ("It would be [[10]] but for the end: [[4]]", 10.0),  # the first one, as upstream reads it
        ("গ্রেড: [[৭]]", 7.0),
    ],
)
def test_a_grade_is_read(text: str, grade: float) -> None:
    assert read_grade(text) == grade


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" \n", "empty"),
        ("La respuesta es buena: 7/10", "no grade"),
        ("Grade: [[-3]]", "no grade"),
        ("Grade: [[7", "no grade"),
        ("Grade: [[10/10]]", "no grade"),
        ("[[seven]]", "half JSON"),
        ('{"grade": 7}', "JSON"),
        ("Grade: [[0]]", "grade out of 1..10"),
        ("Grade: [[11]]", "grade out of 1..10"),
        ("Grade: [[0.5]] or rather [[5]]", "grade out of 1..10"),
    ],
)
def test_anything_else_has_no_grade_and_is_counted_by_kind(text: str, kind: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        read_grade(text)
    assert str(caught.value) == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [("1" * 1_000_000, "no grade"), ("[[1" * 300_000, "no grade"), ("9" * 10_000 + "]]", "grade out of 1")],
)
def test_a_text_without_end_is_read_once(text: str, kind: str) -> None:
    """From each of a million digits to the last one it would take days."""
    with pytest.raises(UnreadableError, match=kind):
        read_grade(f"Grade: [[{text}")


def asked(question: TwoTurns, turn: int, *answers: str) -> tuple[str, str]:
    name, found = ask_about(question, turn, answers)
    assert (found.by_text.temperature, found.by_text.max_tokens, found.labels) == (0.0, 2048, None)
    return name, found.messages[-1]["content"]


def test_each_prompt_shows_what_it_is_about_and_nothing_else() -> None:
    first, second = asked(POEM, 1, "ONE"), asked(POEM, 2, "ONE", "TWO")
    assert (first[0], second[0]) == ("turn 1", "turn 2")
    assert [text in first[1] for text in ("Write a line.", "ONE", "Now in prose.", "A line.")] == [1, 1, 0, 0]
    places = [second[1].index(text) for text in ("Write a line.", "ONE", "Now in prose.", "TWO")]
    assert places == sorted(places)
    assert "reference" not in second[1]  # which writing has, and does not need
    assert "that one alone" in second[1]
    first, second = asked(SUM, 1, "ONE"), asked(SUM, 2, "ONE", "TWO")
    assert (first[0], second[0]) == ("turn 1 with reference", "turn 2 with reference")
    assert [text in first[1] for text in ("It is 4.", "It is 12.", "And times 3?")] == [1, 0, 0]
    places = [second[1].index(text) for text in ("2 + 2?", "It is 4.", "ONE", "times 3?", "It is 12.", "TWO")]
    assert places == sorted(places)


def test_every_part_of_a_prompt_is_filled_and_braces_of_an_answer_stay() -> None:
    for turn in (1, 2):
        for question in (SUM, POEM):
            _, text = asked(question, turn, "{question_1} {0}", "}{")
            assert "{question_1} {0}" in text
            assert text.count("{question_1}") == 1
            assert "{question_2}" not in text
            assert "{reference_" not in text
            assert "{answer_" not in text
    digests = {name: prompt["digest"] for name, prompt in describe_prompts().items()}
    assert list(digests) == list(TEMPLATES)
    assert len(set(digests.values())) == 4


def test_what_is_judged_and_why_not() -> None:
    def prepared(question: TwoTurns, number: int, *answers: str, plainly: bool = False) -> Turn:
        turn = Turn("m", "es", question, number, answers)
        turn.prepare(without_reference=plainly)
        return turn

    none = TwoTurns("1", "coding", ("a", "b"))
    half = TwoTurns("1", "coding", ("a", "b"), ("reference", None))
    assert prepared(none, 1, "x").failure == NO_REFERENCE
    assert prepared(none, 1, "x").asked is None
    assert [prepared(half, number, "x", "y"[: number - 1]).prompt for number in (1, 2)] == ["turn 1 with reference", ""]
    assert prepared(half, 2, "x", "y").failure == NO_REFERENCE
    plain = prepared(half, 2, "x", "y", plainly=True)
    assert (plain.prompt, plain.plain) == ("turn 2", True)
    assert prepared(SUM, 2, "x", plainly=True).failure == NO_ANSWER
    assert not prepared(SUM, 2, "x", "y").plain
    assert prepared(POEM, 1, "").asked is not None  # an answer of no characters is one, and is graded


def row(**values: Any) -> Row:
    return Row("file", 1, values)


def question(number: int, **changes: Any) -> Row:
    return row(**{"question_id": number, "category": "writing", "turns": ["One?", "Two?"], **changes})


def test_questions_that_cannot_be_used_are_counted_and_the_rest_comes_out() -> None:
    problems = Problems()
    rows = [
        question(81),
        question(82, turns=["Only one?"]),
        question(83, turns=["One?", "Two?", "Three?"]),
        question(84, turns="One? Two?"),
        question(85, turns=["One?", " "]),
        question(86, turns=None),
        row(category="math", turns=["a", "b"]),
        row(),
        question(87),
        question(87),
        question(88),
        question(88, turns=["Other?", "Two?"]),
        question(89, category="Math"),
        question(90, category="cooking"),
    ]
    found = read_questions(rows, [], problems)
    assert [one.question_id for one in found] == ["81", "87", "89", "90"]
    assert dict(problems) == {
        "questions without two turns": 5,
        "questions without id": 2,
        "duplicated ids": 2,
        "questions of the unknown category cooking": 1,
    }
    assert [one.needs_references() for one in found] == [False, False, True, False]


def test_temperatures_are_those_of_the_categories() -> None:
    expected = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
    for name in (*expected, "extraction", "math", "coding", "reasoning", "cooking"):
        assert TwoTurns("1", name, ("a", "b")).temperature == expected.get(name, 0.0)


def test_references_are_joined_by_id_and_a_file_goes_before_the_column() -> None:
    def answer(number: int, *turns: Any) -> Row:
        return row(question_id=number, model_id="judge", choices=[{"index": 0, "turns": list(turns)}])

    rows = [
        question(101, category="math", reference=["own 1", "own 2"]),
        question(102, category="math", reference=["own 1", "own 2"]),
        question(103, category="math", reference=["own 1", ""]),
        question(104, category="math"),
        question(105, category="math", reference="own 1"),
        question(106, category="math"),
        question(107, category="math"),
    ]
    problems = Problems()
    given = [answer(104, "r1", "r2"), answer(102, "r1", "r2"), answer(103, "r1"), answer(999, "r1", "r2")]
    odd = [row(question_id=106, choices=[]), row(question_id=107, choices=[{"turns": [7, "r2"]}]), row(question_id=101)]
    found = {one.question_id: one.references for one in read_questions(rows, [*given, *odd], problems)}
    assert found == {
        "101": ("own 1", "own 2"),
        "102": ("r1", "r2"),
        "103": ("r1", None),
        "104": ("r1", "r2"),
        "105": ("own 1", None),
        "106": (None, None),
        "107": (None, "r2"),
    }
    assert dict(problems) == {"rows without item or choices": 1}


def test_files_lie_as_fastchat_has_them_per_language(tmp_path: Path) -> None:
    line = json.dumps({"question_id": 81, "category": "writing", "turns": ["a", "b"]}) + "\n"
    (tmp_path / "de" / "reference_answer").mkdir(parents=True)
    (tmp_path / "de" / "question.jsonl").write_text(line)
    (tmp_path / "de" / "reference_answer" / "gpt-4.jsonl").write_text(line)
    (tmp_path / "fr.jsonl").write_text(line + "{half a line\n")
    found = read_languages(str(tmp_path), "mtbench.questions", None, "question")
    assert {language: len(rows) for language, rows in found.items()} == {"de": 1, "fr": 2}
    assert list(read_languages(str(tmp_path), "mtbench.references", ["de"], REFERENCES)) == ["de"]
    (tmp_path / "de" / "reference_answer" / "gpt-4o.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"two files for de: .*gpt-4\.jsonl, .*gpt-4o\.jsonl"):
        read_languages(str(tmp_path), "mtbench.references", ["de"], REFERENCES)
