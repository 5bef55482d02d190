"""Questions and reference answers of MT-Bench, as files in FastChat's format.

What cannot be used is counted, and the rest is used. References are joined by id.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from crosspref.data.items import Item, Problems, columns_error, id_of, join, unique
from crosspref.data.rows import Row, column_names, is_unicode, text_problem
from crosspref.data.sources import ID_COLUMNS, TEXT_COLUMNS

QUESTIONS, REFERENCES = "question", "reference_answer"
"""Names of a language's files where each language has a folder."""

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "stem": 0.1,
    "humanities": 0.1,
    **dict.fromkeys(("reasoning", "math", "coding", "extraction"), 0.0),
}
"""The sampling temperature for each category's answers (Zheng et al., 2023, as in FastChat)."""

WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories in which the judge is shown a reference answer."""


@dataclass(frozen=True, slots=True)
class TwoTurns:
    """One question of MT-Bench: its two turns, and a reference answer to each if there is one."""

    question_id: str
    category: str
    turns: tuple[str, str]
    references: tuple[str | None, str | None] = (None, None)

    @property
    def temperature(self) -> float:
        """The sampling temperature of the answers; 0 in a category that MT-Bench does not know."""
        return TEMPERATURES.get(self.category, 0.0)

    def has_references(self, turn: int) -> bool:
        """Tell whether each turn up to this one (1 or 2) has a reference; the judge is shown all of them."""
        return None not in self.references[:turn]

    def needs_references(self) -> bool:
        """Tell whether the judge is to be shown reference answers."""
        return self.category in WITH_REFERENCE


def read_questions(rows: Sequence[Row], references: Sequence[Row], problems: Problems) -> list[TwoTurns]:
    """Return the questions of one language, without those whose id has two different questions."""
    read = []
    for row in rows:
        question_id, turns = id_of(row), row.values.get("turns")
        category = str(row.values.get("category") or "none").strip().lower()
        if question_id is None:
            problems["questions without id"] += 1
        elif not isinstance(turns, list) or len(turns) != 2 or any(text_problem(turn) for turn in turns):
            problems["questions without two turns"] += 1
        else:
            if category not in TEMPERATURES:
                problems[f"questions of the unknown category {category}"] += 1
            given = _references(row.values.get("reference"))
            question = TwoTurns(question_id, category, (turns[0], turns[1]), given)
            read.append((question_id, (category, turns), question))
    questions = unique(read, problems).values()
    joined = join(references, _items(questions), "choices", problems)
    return [_with_references(question, joined.get(question.question_id)) for question in questions]


def read_answers(rows: Sequence[Row], questions: Sequence[TwoTurns], problems: Problems) -> dict[str, tuple[str, ...]]:
    """Return a model's answers by question: the turns of the first choice, up to the first that is no text.

    Raises:
        DataError: no row has choices, or ids or questions.
    """
    there = column_names(rows)
    for which, columns in (("no choices", ("choices",)), ("no ids of questions", (*ID_COLUMNS, *TEXT_COLUMNS))):
        if there and not {*there} & {*columns}:
            raise columns_error("--answers", rows, which, columns)
    answers = {}
    for question_id, row in join(rows, _items(questions), "choices", problems).items():
        turns = _first_choice(row)
        texts = takewhile(lambda turn: isinstance(turn, str) and is_unicode(turn), turns)
        answers[question_id] = tuple(texts)
        problems["answers that are not two texts"] += len(answers[question_id]) != len(turns) or len(turns) != 2
    return answers


def _items(questions: Iterable[TwoTurns]) -> list[Item]:
    return [Item(question.question_id, place, question.turns[0]) for place, question in enumerate(questions)]


def _first_choice(row: Row) -> list[Any]:
    """Return the turns of a row's first choice."""
    match row.values.get("choices"):
        case [{"turns": [*turns]}, *_]:
            return turns
    return []


def _with_references(question: TwoTurns, row: Row | None) -> TwoTurns:
    """Return a question with the references in a row's first choice; without these it keeps its own."""
    if row is None:
        return question
    first, second = _references(_first_choice(row))
    return replace(question, references=(first or question.references[0], second or question.references[1]))


def _references(value: object) -> tuple[str | None, str | None]:
    given = value if isinstance(value, list) else [value]
    first, second, *_ = [*(None if text_problem(text) else str(text) for text in given), None, None]
    return first, second
