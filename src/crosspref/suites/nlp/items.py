"""The items of the suite ``nlp`` from files, in the columns of the data sets on the hub.

If the harness cannot read an item, it gives up the whole task or, worse, counts a wrong answer of the model. So each
row is checked here: what cannot be used is counted, and the rest is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from crosspref.data.items import Problems
from crosspref.data.rows import is_blank, read_id
from crosspref.data.sources import all_language_files, language_files, match_languages, read_language
from crosspref.errors import DataError
from crosspref.languages import ENGLISH
from crosspref.paths import existing, expanded
from crosspref.run.store import digest_of
from crosspref.suites.nlp.tasks import ENGLISH_MMLU, SHOTS, TaskName


def _require_text(text: str) -> str:
    if is_blank(text):
        raise ValueError("nothing of the text can be seen")
    return text


Text = Annotated[str, AfterValidator(_require_text)]
Texts = Annotated[list[Text], Field(min_length=2)]
Id = Annotated[str | None, BeforeValidator(read_id)]


class _Columns(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    def _has_answer(self) -> bool:
        return True

    @model_validator(mode="after")
    def _check_answer(self) -> Self:
        if not self._has_answer():
            raise ValueError("the answer is none of the choices, or cannot be told from them")
        return self


class _Lettered(_Columns):
    """Options in columns of their own, of which the last ones may be empty, and the letter of the right one."""

    id: Id = None
    instruction: Text
    option_a: Text
    option_b: Text
    option_c: str | None = None
    option_d: str | None = None
    answer: Literal["A", "B", "C", "D", "E"]

    def _has_answer(self) -> bool:
        given = [bool(value and value.strip()) for name, value in self if name.startswith("option_")]
        return "ABCDE".index(self.answer) < sum(given) and all(given[: sum(given)])


class Arc(_Lettered):
    """A row of alexandrainst/m_arc."""

    option_e: str | None = None


class Mmlu(_Lettered):
    """A row of alexandrainst/m_mmlu."""

    option_c: Text
    option_d: Text


class _Choices(_Columns):
    text: Texts
    label: list[Text]


class EnglishArc(_Columns):
    """A row of allenai/ai2_arc."""

    id: Id = None
    question: Text
    choices: _Choices
    answerKey: str  # noqa: N815 - the data set's name

    def _has_answer(self) -> bool:
        return len(self.choices.text) == len(self.choices.label) and self.answerKey in self.choices.label


class HellaSwag(_Columns):
    """A row of alexandrainst/m_hellaswag, and of Rowan/hellaswag."""

    ind: int | None = None
    activity_label: str
    ctx_a: str
    ctx_b: str
    endings: Texts
    label: Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]

    def _has_answer(self) -> bool:
        return self.label in map(str, range(len(self.endings)))


class EnglishMmlu(_Columns):
    """A row of cais/mmlu."""

    question: Text
    subject: Text
    choices: Annotated[list[Text], Field(min_length=4, max_length=4)]
    answer: Annotated[int, Field(ge=0, le=3)]


class _Targets(_Columns):
    choices: Texts
    labels: list[Literal[0, 1]]


def _are_usable(first: _Targets, second: _Targets) -> bool:
    """Tell whether each choice has a label, MC1's first one alone is right, and MC2 has right and wrong ones."""
    return (
        all(len(targets.choices) == len(targets.labels) for targets in (first, second))
        and first.labels[0] == sum(first.labels) == 1  # the harness takes this for granted
        and 0 < sum(second.labels) < len(second.labels)
    )


class TruthfulQa(_Columns):
    """A row of alexandrainst/m_truthfulqa."""

    question: Text
    mc1_targets_choices: Texts
    mc1_targets_labels: list[Literal[0, 1]]
    mc2_targets_choices: Texts
    mc2_targets_labels: list[Literal[0, 1]]

    def _has_answer(self) -> bool:
        first = _Targets(choices=self.mc1_targets_choices, labels=self.mc1_targets_labels)
        return _are_usable(first, _Targets(choices=self.mc2_targets_choices, labels=self.mc2_targets_labels))


class EnglishTruthfulQa(_Columns):
    """A row of truthfulqa/truthful_qa, multiple_choice."""

    question: Text
    mc1_targets: _Targets
    mc2_targets: _Targets

    def _has_answer(self) -> bool:
        return _are_usable(self.mc1_targets, self.mc2_targets)


KINDS: dict[TaskName, tuple[type[_Columns], type[_Columns]]] = {
    "arc": (EnglishArc, Arc),
    "hellaswag": (HellaSwag, HellaSwag),
    "mmlu": (EnglishMmlu, Mmlu),
    "truthfulqa": (EnglishTruthfulQa, TruthfulQa),
}
"""What a row must be: of English, and of any other language."""


@dataclass(frozen=True, slots=True)
class Items:
    """The usable rows of a task in a language, and the examples before each; ``digest`` tells whether they changed."""

    rows: list[dict[str, Any]]
    examples: list[dict[str, Any]]

    @property
    def digest(self) -> str:
        """A hash of all rows."""
        return digest_of([self.rows, self.examples])


def read_items(
    data: str, task: TaskName, language: str, problems: Problems, has_task: Callable[[str], bool]
) -> Items | None:
    """Return the items of ``DATA/TASK/LANGUAGE.jsonl`` and their examples, or None where there is no such file.

    Of English MMLU, rows are left out whose subject has too few examples, or is none of the harness's (``has_task``).

    Raises:
        DataError: a file cannot be read, or has no row that can be used; or there are too few examples.
    """
    rows = _read(expanded(data) / task, task, language, problems)
    if rows is None or task not in SHOTS:
        return None if rows is None else Items(rows, [])
    folder = expanded(data) / f"{task}_examples"
    examples, shots = _read(folder, task, language, problems) or [], SHOTS[task]
    if language == ENGLISH:
        usable = set()
        for name, items in by_subject(Items(rows, examples)).items():
            if not has_task(name):
                problems[f"rows of a subject that the harness has not ({name})"] += len(items.rows)
            elif len(items.examples) < shots:
                problems[f"rows of a subject with fewer than {shots} examples ({name})"] += len(items.rows)
            else:
                usable.add(name)
        rows = [row for row in rows if _task_of(row) in usable]
    if not rows or len(examples) < shots:
        each = " of each subject" if language == ENGLISH else ""
        raise DataError(
            f"{task} needs {shots} examples before each item{each}, and {folder} has {len(examples)} for {language}. "
            f"Put them into {folder / f'{language}.jsonl'}, in the columns of the items."
        )
    return Items(rows, examples)


def by_subject(items: Items) -> dict[str, Items]:
    """Return the items of English MMLU by the harness's task for their subject."""
    subjects: dict[str, Items] = {}
    for row in items.rows:
        subjects.setdefault(_task_of(row), Items([], [])).rows.append(row)
    for row in items.examples:
        if _task_of(row) in subjects:
            subjects[_task_of(row)].examples.append(row)
    return subjects


def _task_of(row: dict[str, Any]) -> str:
    return f"{ENGLISH_MMLU}_{row['subject']}"


def languages_of(data: str, tasks: Sequence[TaskName]) -> list[str]:
    """Return the languages that any task has a file of, English first."""
    places = [existing(expanded(data) / task) for task in tasks]
    folders = [place for place in places if place is not None and place.is_dir()]
    languages = {language for folder in folders for language in all_language_files(folder, str(folder))}
    return sorted(languages, key=lambda language: (language != ENGLISH, language))


def _read(folder: Path, task: TaskName, language: str, problems: Problems) -> list[dict[str, Any]] | None:
    place = existing(folder)
    files = language_files(folder, str(folder)) if place is not None and place.is_dir() else {}
    tag = match_languages(str(folder), files, [language]).get(language)
    if tag is None:
        return None
    file = files[tag]
    kind = KINDS[task][language != ENGLISH]
    usable = []
    for row in read_language(file, str(file), tag):
        try:
            usable.append(kind.model_validate(row.values).model_dump())
        except ValidationError as error:
            column = next(iter(error.errors()[0]["loc"]), "answer")
            problems[f"rows of {file.parent.name} without a usable {column}"] += 1
    if not usable:
        raise DataError(f"{file} has no row that can be used. Its columns must be {', '.join(kind.model_fields)}.")
    return usable
