"""Multilingual MT-Bench: questions of two turns, each answer graded from 1 to 10 by a judge, per language."""

from collections import Counter
from collections.abc import Mapping, Sequence

from crosspref.data.items import Problems
from crosspref.data.records import Instruction, Prompt, as_messages
from crosspref.data.sources import read_languages
from crosspref.errors import DataError, RecipeError
from crosspref.reports.table import Report, write_table
from crosspref.suites.mtbench.files import QUESTIONS, REFERENCES, TwoTurns, read_answers, read_questions
from crosspref.suites.mtbench.results import NAME, Judgement, Turn, write
from crosspref.suites.work import Candidate, Evaluation

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
    if work.given is not None:
        turns = _given(work, questions, problems)
    else:
        turns = [turn for candidate in work.target.models for turn in _answer(work, candidate, questions)]
    for turn in turns:
        turn.prepare(without_reference=work.settings.mtbench.without_reference == "judge")
    # Ask about every model and language at once, so that the price estimate covers everything.
    prepared = [(turn, turn.asked) for turn in turns if turn.asked is not None]
    for (turn, _), verdict in zip(prepared, judge.ask([asked for _, asked in prepared], NAME), strict=True):
        turn.take(verdict)
    judgements = work.target.folder / NAME / "judgements"
    write_table(judgements, [turn.judgement() for turn in turns], Judgement)
    if all(turn.grade is None for turn in turns):
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(turn.failure for turn in turns).items())
        raise DataError(
            f"MT-Bench: no answer of a model has a grade that can be read: {reasons}. What the judge said is in "
            f"{judgements}.csv. Where it is cut off, set a larger judge.max_tokens, else name another judge."
        )
    return write(work, turns, problems)


def _questions(work: Evaluation, problems: dict[str, Problems]) -> dict[str, list[TwoTurns]]:
    settings = work.settings.mtbench
    if settings.questions is None:
        raise RecipeError("The suite mtbench needs its questions: set mtbench.questions to their file or directory.")
    given = read_languages(settings.questions, "mtbench.questions", work.languages, QUESTIONS)
    references = {}
    if settings.references is not None:
        references = read_languages(settings.references, "mtbench.references", list(given), REFERENCES)
    questions = {}
    for language, rows in given.items():
        counts = problems.setdefault(language, Problems())
        questions[language] = read_questions(rows, references.get(language, []), counts)
        _say_missing(work, language, questions[language], counts)
    for language in dict.fromkeys([*questions, *(work.languages or ())]):
        if not questions.get(language):
            problems.setdefault(language, Problems())["language without questions"] = 1
            work.reporter.say(f"mtbench {language}: there are no questions, so nothing is judged in this language.")
    if not any(questions.values()):
        raise DataError(f"mtbench.questions: {settings.questions} has no question in the languages that are wanted.")
    return {language: every for language, every in questions.items() if every}


def _say_missing(work: Evaluation, language: str, questions: Sequence[TwoTurns], problems: Problems) -> None:
    """Count the turns without a reference answer that they need, and say what happens to them."""
    needed = [question for question in questions if question.needs_references()]
    missing = sum(not question.has_references(turn) for question in needed for turn in (1, 2))
    if not missing:
        return
    left_out = work.settings.mtbench.without_reference == "leave_out"
    fate = "not judged" if left_out else "judged without one"
    problems[f"turns that need a reference answer and have none: {fate}"] = missing
    advice = " (mtbench.references; mtbench.without_reference: judge would grade them all the same)" if left_out else ""
    work.reporter.say(
        f"mtbench {language}: {missing} of {2 * len(needed)} turns of math, reasoning and coding have no reference "
        f"answer, and are {fate}{advice}."
    )


def _given(work: Evaluation, questions: Questions, problems: Mapping[str, Problems]) -> list[Turn]:
    """Return both turns of every question, with answers that exist already."""
    turns = []
    for given in work.given_answers(list(questions)):
        for language, every in questions.items():
            ids = [question.question_id for question in every]
            rows = given.known(language, ids, problems[language], work.reporter)
            answers = read_answers(rows, every, problems[language])
            turns += [
                Turn(given.model, language, question, number, answers.get(question.question_id, ())[:number])
                for question in every
                for number in (1, 2)
            ]
    return turns


Asked = tuple[str, TwoTurns]
"""A language and a question."""


def _answer(work: Evaluation, candidate: Candidate, questions: Questions) -> list[Turn]:
    """Return both turns of every question, with the model's answers; the second turn continues the first."""
    every_question = [(language, question) for language, every in questions.items() for question in every]
    opened = _texts(work, candidate, 1, {one: one[1].turns[0] for one in every_question})
    conversations: dict[Asked, Instruction] = {}
    for (language, question), text in opened.items():
        answer = {"role": "assistant", "content": text}
        conversations[language, question] = [*as_messages(question.turns[0]), answer, *as_messages(question.turns[1])]
    closed = _texts(work, candidate, 2, conversations)
    return [
        Turn(candidate.name, *one, number, tuple(texts[one] for texts in (opened, closed)[:number] if one in texts))
        for one in every_question
        for number in (1, 2)
    ]


def _texts(
    work: Evaluation, candidate: Candidate, turn: int, instructions: Mapping[Asked, Instruction]
) -> dict[Asked, str]:
    """Return a model's answers, each sampled at the temperature of its category; some may be missing."""
    prompts = {
        (language, question): Prompt(f"{question.question_id}.{turn}", language, instruction)
        for (language, question), instruction in instructions.items()
    }
    temperatures = [question.temperature for _, question in prompts]
    responses = work.answers(NAME, candidate, list(prompts.values()), temperatures=temperatures)
    texts = {(row.language, row.prompt_id): row.text for row in responses}
    places = {one: (prompt.language, prompt.prompt_id) for one, prompt in prompts.items()}
    return {one: texts[place] for one, place in places.items() if place in texts}
