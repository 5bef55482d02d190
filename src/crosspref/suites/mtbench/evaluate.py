"""Multilingual MT-Bench: questions of two turns, each answer graded from 1 to 10 by a judge, per language."""

from collections import Counter
from collections.abc import Mapping, Sequence

from crosspref.data.items import Problems
from crosspref.data.records import FollowUp, Prompt, as_messages
from crosspref.data.sources import read_languages
from crosspref.errors import DataError, RecipeError
from crosspref.reports.table import Report
from crosspref.suites.mtbench.files import QUESTIONS, REFERENCES, TwoTurns, read_questions
from crosspref.suites.mtbench.tables import write_judgements, write_results
from crosspref.suites.mtbench.turn import Turn
from crosspref.suites.targets import Candidate
from crosspref.suites.work import Evaluation

NAME = "mtbench"
Questions = Mapping[str, Sequence[TwoTurns]]
"""The questions of each language."""


def evaluate(work: Evaluation) -> list[Report]:
    """Run the suite; see ``suites``. What is wrong with settings and files shows before a model answers.

    Raises:
        RecipeError: no questions are named, or annotations are.
        DataError: nothing can be judged.
    """
    if work.annotations is not None:
        raise RecipeError("--annotations: the suite mtbench reads none. To replay verdicts: --judge replay FILE.")
    problems: dict[str, Problems] = {}
    questions = _questions(work, problems)
    judge = work.judge
    turns = [turn for candidate in work.target.models for turn in _answer(work, candidate, questions)]
    for turn in turns:
        turn.prepare(without_reference=work.settings.mtbench.without_reference == "judge")
    # Those of every model and language at once, so that the estimate is of the whole.
    asked = [(turn, turn.asked) for turn in turns if turn.asked is not None]
    for (turn, _), verdict in zip(asked, judge.ask([question for _, question in asked], NAME), strict=True):
        turn.take(verdict)
    judgements = write_judgements(work, turns)
    if all(turn.grade is None for turn in turns):
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(turn.failure for turn in turns).items())
        raise DataError(
            f"MT-Bench: no answer of a model has a grade that can be read: {reasons}. What the judge said is in "
            f"{judgements}. Where it is cut off, set a larger judge.max_tokens, else name another judge."
        )
    return write_results(work, turns, problems)


def _questions(work: Evaluation, problems: dict[str, Problems]) -> dict[str, list[TwoTurns]]:
    settings = work.settings.mtbench
    if settings.questions is None:
        raise RecipeError("The suite mtbench needs its questions: set mtbench.questions to their file or directory.")
    every = read_languages(settings.questions, "mtbench.questions", work.languages, QUESTIONS)
    references = {}
    if settings.references is not None:
        references = read_languages(settings.references, "mtbench.references", list(every), REFERENCES)
    found = {}
    for language, rows in every.items():
        counted = problems.setdefault(language, Problems())
        found[language] = read_questions(rows, references.get(language, []), counted)
        _say_missing(work, language, found[language], counted)
    for language in dict.fromkeys([*found, *(work.languages or ())]):
        if not found.get(language):
            problems.setdefault(language, Problems()).counts["language without questions"] = 1
            work.reporter.say(f"mtbench {language}: there are no questions, so nothing is judged in this language.")
    if not any(found.values()):
        raise DataError(f"mtbench.questions: {settings.questions} has no question in the languages that are wanted.")
    return {language: questions for language, questions in found.items() if questions}


def _say_missing(work: Evaluation, language: str, questions: Sequence[TwoTurns], problems: Problems) -> None:
    """Count and say which turns have no reference answer that they need, and what becomes of them."""
    needed = [question for question in questions if question.needs_references()]
    missing = sum(not question.has_references(turn) for question in needed for turn in (1, 2))
    if not missing:
        return
    left_out = work.settings.mtbench.without_reference == "leave_out"
    fate = "not judged" if left_out else "judged without one"
    problems.counts[f"turns that need a reference answer and have none: {fate}"] = missing
    advice = " (mtbench.references; mtbench.without_reference: judge would grade them all the same)" if left_out else ""
    work.reporter.say(
        f"mtbench {language}: {missing} of {2 * len(needed)} turns of math, reasoning and coding have no reference "
        f"answer, and are {fate}{advice}."
    )


def _answer(work: Evaluation, candidate: Candidate, questions: Questions) -> list[Turn]:
    """Return both turns of every question, as far as the model answers: the second one goes on from the first."""
    every = [(language, question) for language, own in questions.items() for question in own]
    first = {
        (language, question): Prompt(f"{question.question_id}.1", language, question.turns[0])
        for language, question in every
    }
    opened = _texts(work, candidate, first)
    second = {
        key: FollowUp(
            f"{key[1].question_id}.2",
            key[0],
            key[1].turns[1],
            [*as_messages(key[1].turns[0]), {"role": "assistant", "content": text}],
        )
        for key, text in opened.items()
    }
    closed = _texts(work, candidate, second)
    return [
        Turn(candidate.name, *key, number, tuple(texts[key] for texts in (opened, closed)[:number] if key in texts))
        for key in every
        for number in (1, 2)
    ]


Key = tuple[str, TwoTurns]
"""A language and a question."""


def _texts(work: Evaluation, candidate: Candidate, prompts: Mapping[Key, Prompt]) -> dict[Key, str]:
    """Return a model's answers, each at the temperature of its question's category; there may be none."""
    temperatures = [question.temperature for _, question in prompts]
    rows = work.answers(NAME, candidate, list(prompts.values()), temperatures=temperatures)
    found = {(row.language, row.prompt_id): row.text for row in rows}
    places = {key: (prompt.language, prompt.prompt_id) for key, prompt in prompts.items()}
    return {key: found[place] for key, place in places.items() if place in found}
