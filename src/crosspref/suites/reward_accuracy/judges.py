"""Who says which answer of a pair is better: a judge who is asked in both orders, a reward model, or people."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from crosspref.data.records import Prompt, Response, Score, as_text
from crosspref.data.rows import READERS, Row, column_names, read_file, read_id, split_name
from crosspref.engines import EngineFactory
from crosspref.errors import DataError, RunError
from crosspref.escape import listed
from crosspref.languages import language_name
from crosspref.maths.statistics import nominal_alpha
from crosspref.models.locate import ModelFiles
from crosspref.paths import existing
from crosspref.protocols import Advance, RewardModel
from crosspref.reports.table import csv_text
from crosspref.run.job import Filling, Shard, Workers, asking_of, digest_rows, fill
from crosspref.run.store import Fingerprint, Unit, write_text
from crosspref.run.verdicts import Verdict
from crosspref.stages.score import rate
from crosspref.suites.judge.judge import Judge
from crosspref.suites.judge.questions import Decoding, Question, Template, UnreadableError
from crosspref.suites.reward_accuracy.pairs import Comparison
from crosspref.suites.work import Evaluation, folder_name

JUDGE, REWARD_MODEL, PEOPLE = "judge", "reward model", "people"
"""The kinds of who judges."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was said of one pair: 1 where answer a is better, 0 where b is, 0.5 for a tie, or None and the failure.

    ``orders`` are what a judge said with a shown first, and with b shown first, both for a.
    """

    value: float | None
    failure: str | None = None
    orders: tuple[float | None, ...] = ()

    @property
    def contradicted(self) -> bool:
        """Whether one order says a and the other b."""
        return set(self.orders) == {0.0, 1.0}


@dataclass(frozen=True, slots=True)
class Judged:
    """All that one judge said, by pair; a pair of which it said nothing is missing.

    ``about`` is what the results say of the judge.
    """

    kind: str
    name: str
    outcomes: Mapping[str, Outcome]
    date: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the results call the judge."""
        return f"{self.kind} {self.name}"


# A judge

_DECODING = Decoding(temperature=0.0, max_tokens=256)
_SYSTEM = (
    "You compare answers to instructions in {language}. You decide which of two answers would serve the person who "
    "gave the instruction better; where both are poor, that is the one with fewer faults."
)
_ASKED = """\
Which of these two answers to an instruction in {language} is better? Go by the following.

1. A good answer is in {language}, unless the instruction asks for another language.
2. It does what the instruction asks for.
3. What it says is correct and makes sense.
4. Its grammar is right and it reads fluently.

<instruction>
{instruction}
</instruction>

<answer1>
{output_1}
</answer1>

<answer2>
{output_2}
</answer2>

Write one sentence first that compares the two and says which one you prefer, and why. Then write your choice on a \
line of its own: answer1 or answer2, or tie if they are equally good or equally bad. Use this form:

Comparison: <one sentence>
Preferred: <answer1, answer2 or tie>"""

TEMPLATE = Template((("system", _SYSTEM), ("user", _ASKED)))
"""What a judge is asked (E.3): which of two answers is better, answer1, answer2, or a tie."""

_CHOICE = re.compile(r"(?:preferred *: *)?(answer ?[12]|tie)", re.IGNORECASE | re.ASCII)  # so that "t\u0131e" is no tie
_DECORATION = re.compile(r"""["'`*_<>()\[\].]""")
"""What may stand around a label."""


def ask_about(pair: Comparison, template: Template = TEMPLATE, *, turned: bool = False) -> Question:
    """Return the question which answer is better, a shown first unless ``turned``.

    Its verdict is 1 for the answer that is shown first, 0 for the other one, 0.5 for a tie.
    """
    first, second = (pair.answer_b, pair.answer_a) if turned else (pair.answer_a, pair.answer_b)
    messages = template.fill(
        language=language_name(pair.language), instruction=as_text(pair.instruction), output_1=first, output_2=second
    )
    return Question(messages, _DECODING, read_choice)


def read_choice(text: str) -> float:
    """Return 1.0 for answer1, 0.0 for answer2 and 0.5 for a tie, if the last line is one of these and nothing else.

    Raises:
        UnreadableError: it is something else.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UnreadableError("empty")
    choice = _CHOICE.fullmatch(_DECORATION.sub("", lines[-1]).strip())
    if choice is None:
        raise UnreadableError("no label")
    return {"answer1": 1.0, "answer2": 0.0, "tie": 0.5}[choice[1].lower().replace(" ", "")]


def ask_judge(judge: Judge, pairs: Sequence[Comparison], template: Template) -> Judged:
    """Ask about every pair in both orders; an answer is better where both orders say so, and else it is a tie.

    A pair has failed if one order has no readable verdict. Without any verdict it is left out.
    """
    questions = [ask_about(pair, template, turned=turned) for pair in pairs for turned in (False, True)]
    verdicts = judge.ask(questions, "reward_accuracy")
    outcomes = {}
    for number, pair in enumerate(pairs):
        both = verdicts[2 * number], verdicts[2 * number + 1]
        if both != (None, None):
            outcomes[pair.pair_id] = _combine(*both)
    date = max((verdict.date for verdict in verdicts if verdict is not None), default="")
    first, decided = _shown_first(outcomes.values())
    about = {**judge.describe(), "shown_first": first, "decided": decided}
    return Judged(JUDGE, judge.name, outcomes, date, about)


def _combine(straight: Verdict | None, turned: Verdict | None) -> Outcome:
    failure = next((verdict.failure for verdict in (straight, turned) if verdict and verdict.failure), None)
    first = None if straight is None else straight.verdict
    second = None if turned is None or turned.verdict is None else 1 - turned.verdict
    if first is None or second is None:
        return Outcome(None, failure or "one order is not in the replayed file", (first, second))
    return Outcome(first if first == second else 0.5, None, (first, second))


def _shown_first(outcomes: Iterable[Outcome]) -> tuple[int, int]:
    """Return how often the answer that was shown first was preferred, and how many verdicts were no ties."""
    first = [
        value if place == 0 else 1 - value
        for outcome in outcomes
        for place, value in enumerate(outcome.orders)
        if value not in (None, 0.5)
    ]
    return int(sum(first)), len(first)


# A reward model


def ask_reward_model(work: Evaluation, name: str, model: ModelFiles, pairs: Sequence[Comparison]) -> Judged:
    """Have a reward model rate both answers of every pair: the higher one is better, equal ones are a tie.

    Ratings are stored in shards by language, so that a kill loses at most one.
    """
    target = work.target
    workers = Workers(EngineFactory(target.answering), work.reporter)
    folder = target.folder / "reward_accuracy" / "ratings" / folder_name(name)
    size = target.answering.resources.shard_prompts
    fingerprint = Fingerprint(asking_of(target.answering.asking), {"reward_model": model.identity})
    shards = []
    for language in dict.fromkeys(pair.language for pair in pairs):
        of_language = sorted((pair for pair in pairs if pair.language == language), key=lambda pair: pair.pair_id)
        for start in range(0, len(of_language), size):
            # Named by its pairs, whose ids are hashes of their texts: other pairs are another shard.
            part = of_language[start : start + size]
            prompts = [Prompt(pair.pair_id, language, pair.instruction) for pair in part]
            unit = Unit(folder / language / f"{digest_rows(prompts)}.parquet")
            shards.append(Shard(unit, fingerprint, prompts))
    answers = {pair.pair_id: (pair.answer_a, pair.answer_b) for pair in pairs}

    def score(engine: RewardModel, shard: Shard, advance: Advance) -> list[Score]:
        rows = [
            Response(prompt.prompt_id, prompt.language, sample, text, None, "stop", None)
            for prompt in shard.prompts
            for sample, text in enumerate(answers[prompt.prompt_id])
        ]
        return rate(rows, shard.prompts, engine, advance=advance)

    build = partial(workers.engines.reward_model, model)
    with workers.engines.executor().cluster():
        try:
            fill(workers, shards, Filling(f"reward_accuracy by {name}", Score, build, score))
        except RunError as error:
            raise RunError(f"{error}\nTo have {name} rate anew: rm -r {folder}") from error
    ratings: dict[str, list[float | None]] = {}
    for row in [row for shard in shards for row in shard.unit.rows(Score)]:
        ratings.setdefault(row.prompt_id, [None, None])[row.sample] = row.implicit_reward
    outcomes = {pair_id: _higher(*both) for pair_id, both in ratings.items()}
    return Judged(REWARD_MODEL, name, outcomes, about={"judge": name, "identity": model.identity})


def _higher(first: float | None, second: float | None) -> Outcome:
    if first is None or second is None:
        return Outcome(None, "no reward: too long for the model, or not finite")
    return Outcome(0.5 if first == second else float(first > second))


# People

CHOICES = {"a": 1.0, "b": 0.0, "tie": 0.5}
_COLUMNS = ("id", "language", "prompt", "answer_a", "answer_b", "choice", "annotator")
_NAMELESS = "-"
"""The annotator of a vote without a name."""


def write_sheet(path: Path, pairs: Iterable[Comparison]) -> bool:
    """Write the sheet that people fill in, with an empty ``choice`` for every pair; tell whether that was done.

    A sheet in which somebody has already made a choice, or that cannot be read, stays as it is.
    """
    try:
        if path.exists() and any(row.values.get("choice") != "" for row in read_file(path, str(path))):
            return False
    except DataError:
        return False
    rows = [
        (pair.pair_id, pair.language, as_text(pair.instruction), pair.answer_a, pair.answer_b, "", "")
        for pair in sorted(pairs, key=lambda pair: (pair.language, pair.pair_id))
    ]
    # The byte order mark tells spreadsheets that it is UTF-8.
    write_text(path, "\ufeff" + csv_text(_COLUMNS, rows))
    return True


class Votes:
    """The votes of a file: who chose what of which pair, and what of the file could not be used.

    Raises:
        DataError: the file cannot be read as a whole, or has no columns id and choice.
    """

    def __init__(self, source: str) -> None:
        path = existing(source)
        self.source, self.problems = source, Counter[str]()
        self.by_pair: dict[str, dict[str, float]] = {}
        if path is None or split_name(path)[1] not in READERS:
            kinds = ", ".join(READERS)
            raise DataError(f"reward_accuracy.votes: {source} is no file, or of none of the kinds {kinds}.")
        rows = read_file(path, source)
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        there = column_names(rows)
        if rows and not {"id", "choice"} <= set(there):
            raise DataError(
                f"reward_accuracy.votes: {source} needs the columns id and choice; it has "
                f"{listed(map(repr, there))}. Save it with one header line, as UTF-8."
            )
        contradicting = set()
        for row in rows:
            choice = self._choice(row)
            pair_id, annotator = str(read_id(row.values.get("id"))).strip(), _text(row, "annotator") or _NAMELESS
            if choice is not None and self.by_pair.setdefault(pair_id, {}).setdefault(annotator, choice) != choice:
                contradicting.add((pair_id, annotator))
        for pair_id, annotator in contradicting:
            del self.by_pair[pair_id][annotator]
        self.problems["pairs of which one person said two things"] += len(contradicting)

    def _choice(self, row: Row) -> float | None:
        """Return what a row chooses; count why it cannot be used, unless nobody has come to it yet."""
        choice = _text(row, "choice").lower()
        if row.broken:
            self.problems["broken rows"] += 1
        elif choice and read_id(row.values.get("id")) is None:
            self.problems["rows without id"] += 1
        elif choice and choice not in CHOICES:
            self.problems["choices other than a, b and tie"] += 1
        else:
            return CHOICES.get(choice)
        return None

    def judged(self, pairs: Sequence[Comparison]) -> Judged:
        """Return what most annotators of each pair chose; where no choice has the most votes, it is a tie."""
        ids = {pair.pair_id for pair in pairs}
        votes = {pair_id: list(of.values()) for pair_id, of in self.by_pair.items() if of and pair_id in ids}
        problems = self.problems.copy()
        problems["pairs that are not in this sample"] = sum(bool(of) for of in self.by_pair.values()) - len(votes)
        count = len({name for pair_id in votes for name in self.by_pair[pair_id]})
        about = {
            "file": self.source,
            "sha256": self.digest,
            "annotators": count,
            "votes": sum(map(len, votes.values())),
            **agreement(votes.values()),
            "problems": {reason: number for reason, number in problems.items() if number},
        }
        outcomes = {pair_id: Outcome(_most(choices)) for pair_id, choices in votes.items()}
        return Judged(PEOPLE, f"{count} annotator{'' if count == 1 else 's'}", outcomes, about=about)


def _text(row: Row, column: str) -> str:
    return str(row.values.get(column) or "").strip()


def _most(votes: Sequence[float]) -> float:
    counts = Counter(votes).most_common(2)
    return 0.5 if len(counts) == 2 and counts[0][1] == counts[1][1] else counts[0][0]


def agreement(votes: Iterable[Sequence[float]]) -> dict[str, float | int | None]:
    """Return how far several who judged the same pairs agree: over how many pairs, in what share, and the alpha."""
    shared = [choices for choices in votes if len(choices) > 1]
    if not shared:
        return {"shared_pairs": 0, "agreement": None, "alpha": None}
    alike, alpha = nominal_alpha(shared)
    return {"shared_pairs": len(shared), "agreement": alike, "alpha": None if math.isnan(alpha) else alpha}
