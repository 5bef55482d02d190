"""Who says which answer of a pair is better: a judge who is asked in both orders, a reward model, or people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from crosspref.data.records import Prompt, Response, Score
from crosspref.engines import EngineFactory
from crosspref.errors import RunError
from crosspref.models.locate import ModelFiles
from crosspref.protocols import Advance, RewardModel
from crosspref.run.job import Shard, Workers, digest_rows, fill
from crosspref.run.store import Fingerprint, Unit
from crosspref.stages.score import rate
from crosspref.suites.judge.judge import Judge
from crosspref.suites.judge.questions import Template
from crosspref.suites.judge.verdicts import Verdict
from crosspref.suites.reward_accuracy.pairs import Comparison
from crosspref.suites.reward_accuracy.prompt import ask_about
from crosspref.suites.targets import Candidate
from crosspref.suites.work import Evaluation

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
    """All that one judge said, by pair; a pair of which it said nothing is not there."""

    kind: str
    name: str
    outcomes: Mapping[str, Outcome]
    date: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    def shown_first(self) -> tuple[int, int]:
        """Return how often the answer that was shown first was preferred, and how many verdicts were no ties."""
        first = [
            value if place == 0 else 1 - value
            for outcome in self.outcomes.values()
            for place, value in enumerate(outcome.orders)
            if value not in (None, 0.5)
        ]
        return int(sum(first)), len(first)


def ask_judge(judge: Judge, pairs: Sequence[Comparison], template: Template) -> Judged:
    """Ask about every pair in both orders; an answer is better where both orders say so, and else it is a tie.

    A pair of which one order has no verdict that can be read has failed. Without any verdict it is left out.
    """
    questions = [ask_about(pair, template, turned=turned) for pair in pairs for turned in (False, True)]
    verdicts = judge.ask(questions, "reward_accuracy")
    outcomes = {}
    for number, pair in enumerate(pairs):
        both = verdicts[2 * number], verdicts[2 * number + 1]
        if both != (None, None):
            outcomes[pair.pair_id] = _combine(*both)
    date = max((verdict.date for verdict in verdicts if verdict is not None), default="")
    return Judged(JUDGE, judge.name, outcomes, date, judge.describe())


def _combine(straight: Verdict | None, turned: Verdict | None) -> Outcome:
    failure = next((verdict.failure for verdict in (straight, turned) if verdict and verdict.failure), None)
    first = None if straight is None else straight.verdict
    second = None if turned is None or turned.verdict is None else 1 - turned.verdict
    if first is None or second is None:
        return Outcome(None, failure or "one order is not in the replayed file", (first, second))
    return Outcome(first if first == second else 0.5, None, (first, second))


def ask_reward_model(work: Evaluation, name: str, model: ModelFiles, pairs: Sequence[Comparison]) -> Judged:
    """Have a reward model rate both answers of every pair: the higher one is better, equal ones are a tie.

    Ratings are stored in shards by language, so that a kill loses at most one.
    """
    target = work.target
    workers = Workers(EngineFactory(target.answering), work.reporter)
    folder = target.folder / "reward_accuracy" / "ratings" / Candidate(name, None).slug
    size = target.answering.resources.shard_prompts
    shards = []
    for language in dict.fromkeys(pair.language for pair in pairs):
        own = sorted((pair for pair in pairs if pair.language == language), key=lambda pair: pair.pair_id)
        for start in range(0, len(own), size):
            part = own[start : start + size]
            # Named by its pairs, whose ids are hashes of their texts: other pairs are another shard.
            prompts = [Prompt(pair.pair_id, language, pair.instruction) for pair in part]
            unit = Unit(folder / language / f"{digest_rows(prompts)}.parquet")
            shards.append(Shard(unit, Fingerprint({}, {"reward_model": model.identity}), prompts))
    answers = {pair.pair_id: (pair.answer_a, pair.answer_b) for pair in pairs}

    def score(engine: RewardModel, shard: Shard, advance: Advance) -> list[Score]:
        rows = [
            Response(prompt.prompt_id, prompt.language, sample, text, None, "stop", None)
            for prompt in shard.prompts
            for sample, text in enumerate(answers[prompt.prompt_id])
        ]
        return rate(rows, shard.prompts, engine, advance=advance)

    build = partial(workers.engines.reward_model, model)
    with workers.engines.cluster():
        try:
            fill(workers, f"reward_accuracy by {name}", shards, Score, 1, build, score)
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
