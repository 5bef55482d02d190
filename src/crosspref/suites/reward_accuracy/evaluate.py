"""Reward accuracy (section 4.2, Table 1): how often a judge prefers the answer that a reward has chosen."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from crosspref.errors import RecipeError
from crosspref.models.locate import locate_model, require_one_output
from crosspref.reports.report import SYMBOLS
from crosspref.reports.table import Report, label, without_repeats, write_table
from crosspref.suites import results
from crosspref.suites.judge.questions import Template
from crosspref.suites.reward_accuracy.judges import (
    JUDGE,
    PEOPLE,
    REWARD_MODEL,
    TEMPLATE,
    Judged,
    Votes,
    agreement,
    ask_judge,
    ask_reward_model,
    write_sheet,
)
from crosspref.suites.reward_accuracy.pairs import IMBALANCE, Sample, draw_samples, given_samples
from crosspref.suites.reward_accuracy.rates import (
    ALL,
    Accuracy,
    AccuracyChange,
    PairOutcome,
    accuracies_of,
    changes_of,
    outcomes_of,
)
from crosspref.suites.work import Evaluation

NAME = "reward_accuracy"

MEANING = (
    "accuracy: how often the answer that the reward chose is preferred, a tie counting one half; decided: without the "
    "ties. A judge is asked in both orders: what the two do not agree on is a tie. Of several annotators most decide. "
    "n: pairs with an outcome; out: pairs without a readable or without any verdict. all: the pairs of all languages."
)
INTERVALS = (
    "Ranges are 95% Wilson intervals over pairs (those of all languages with prompts as clusters). They do not cover "
    "the judge, which may be biased. Pairs are drawn by strata of the reward gap, and ties are half outcomes: both "
    "make the ranges a little too wide."
)
CHANGES = (
    "Differences of accuracies, ties as one half, with 95% intervals by Newcombe, as of independent pairs: two rewards "
    "have chosen among other answers. better and worse stand only where the interval says so; that there are several "
    "intervals is not allowed for. Those of each language are in changes.csv."
)


def evaluate(work: Evaluation) -> list[Report]:
    """Run the suite; see ``suites``. What is wrong with settings, prompt and votes shows before a judge is asked.

    Raises:
        RecipeError: what is measured is no run, or a setting is wrong.
        DataError: there are no pairs yet, or the votes cannot be read.
        ModelError: the reward model cannot be read.
    """
    if work.annotations is not None:
        raise RecipeError("--annotations is for xalpaca. Votes of people on pairs: set reward_accuracy.votes to them.")
    settings = work.settings.reward_accuracy
    template = Template.read(settings.prompt, "reward_accuracy.prompt", TEMPLATE)
    votes = None if settings.votes is None else Votes(settings.votes)
    model = None if settings.reward_model is None else locate_model(settings.reward_model)
    if model is not None:
        require_one_output(model)
    named = work.settings.judge.model is not None or work.replay is not None
    # A judge whose address alone is given is meant to be asked, and its missing name an error.
    judge = work.judge if named or "url" in work.settings.judge.model_fields_set else None
    samples = draw_samples(work) if work.given is None else given_samples(work)
    pairs = list({row.comparison.pair_id: row.comparison for sample in samples for row in sample.sampled}.values())
    sheet = work.target.folder / NAME / "sheet.csv"
    if not write_sheet(sheet, pairs):
        work.reporter.say(f"{sheet} has choices in it already and stays as it is. For a new one, move it elsewhere.")
    judged = []
    if votes is not None:
        judged.append(votes.judged(pairs))
    if model is not None and settings.reward_model is not None:
        judged.append(ask_reward_model(work, settings.reward_model, model, pairs))
    if judge is not None:
        judged.append(ask_judge(judge, pairs, template))
    if not judged:
        return [sheet_report(samples)]
    return _write_results(work, samples, judged[::-1], template)


def _write_results(
    work: Evaluation, samples: Sequence[Sample], judged: Sequence[Judged], template: Template
) -> list[Report]:
    folder = work.target.folder / NAME
    by_judge = [accuracies_of(one, samples) for one in judged]
    rows = [row for of_judge in by_judge for row in of_judge]
    changes = [change for of_judge in by_judge for change in changes_of(of_judge)]
    outcomes = [row for one in judged for row in outcomes_of(one, samples)]
    about = _about(work, samples, judged, outcomes, template)
    results.write_results(folder / "accuracy", Accuracy, rows, changes, about, change_kind=AccuracyChange)
    write_table(folder / "pairs", outcomes, PairOutcome)
    return [_accuracy_report(rows, about), *([_changes_report(changes)] if changes else [])]


def _about(
    work: Evaluation,
    samples: Sequence[Sample],
    judged: Sequence[Judged],
    outcomes: Sequence[PairOutcome],
    template: Template,
) -> dict[str, Any]:
    """Return who judged what and how, where judges disagree, and what has no outcome."""
    failures: dict[str, dict[str, Counter[str]]] = {}
    for row in outcomes:
        if row.failure:
            by_language = failures.setdefault(f"{row.kind} {row.judge}", {})
            by_language.setdefault(row.language, Counter())[row.failure] += 1
    agreements = []
    for two in combinations(judged, 2):
        common = two[0].outcomes.keys() & two[1].outcomes
        votes = ([one.outcomes[pair_id].value for one in two] for pair_id in common)
        known = [[vote for vote in pair if vote is not None] for pair in votes]
        agreements.append({"judges": [one.title for one in two], **agreement(known)})
    run = work.target.run
    return {
        "suite": NAME,
        "judges": {one.title: one.about for one in judged},
        "prompt": template.messages,
        "prompt_sha256": hashlib.sha256(json.dumps(template.messages).encode()).hexdigest(),
        "settings": work.settings.reward_accuracy.model_dump(mode="json"),
        "seed": work.settings.seed,
        "files": work.sources,
        "reward_model_of_the_run": None if run is None else run.read_recipe().reward.reward_model,
        "failures": failures,
        "alike": {
            f"{one.reward}, iteration {one.iteration}, {one.language}": one.alike for one in samples if one.alike
        },
        "agreements": agreements,
    }


def _symbol(reward: str, iteration: int) -> str:
    """Return what stands for a reward in a table: its symbol, and the policy that it comes from, if it is a run's."""
    if not iteration:
        return reward
    return f"{'LIDR' if reward == IMBALANCE else SYMBOLS.get(reward, reward)}, pi_{iteration - 1}"


def _accuracy_report(rows: Sequence[Accuracy], about: Mapping[str, Any]) -> Report:
    """Return the table: judge by judge, within each the rewards, within each the languages."""
    cells, above = [], ("", "")
    for row in rows:
        names = f"{row.kind}\n{row.judge}", _symbol(row.reward, row.iteration)
        shown = ["" if names[0] == above[0] else names[0], "" if names == above else names[1], label(row.language)]
        counts = row.n, row.ties, row.failed + row.lacking
        cells.append([*shown, row.accuracy.text(".2f"), row.decided.text(".2f"), *map(str, counts)])
        above = names
    header = ["judged by", "reward", "language", "accuracy", "decided", "n", "ties", "out"]
    return Report("Reward accuracy", header, cells, [f"{MEANING} {INTERVALS}", *_notes(rows, about)], left=3)


def _notes(rows: Sequence[Accuracy], about: Mapping[str, Any]) -> list[str]:
    notes = [_described(name, judge) for name, judge in about["judges"].items()]
    notes += results.answers_notes(about["files"])
    contradicted = sum(row.contradicted for row in rows if row.kind == JUDGE and row.language != ALL)
    ties = sum(row.ties for row in rows if row.kind == JUDGE and row.language != ALL)
    if ties:
        notes.append(f"Of the judge's {ties} ties, {contradicted} are pairs of which each order said something else.")
    notes += [
        f"{' and '.join(one['judges'])} agree on {one['agreement']:.0%} of {one['shared_pairs']} pairs{_alpha(one)}."
        for one in about["agreements"]
        if one["shared_pairs"]
    ]
    rated = about["settings"]["reward_model"]
    if rated is not None and rated == about["reward_model_of_the_run"]:
        notes.append(f"{rated} made the pairs of R_n itself: that it agrees with them says nothing.")
    for name, failures in about["failures"].items():
        said = [f"{tag} {', '.join(f'{n} {why}' for why, n in counts.items())}" for tag, counts in failures.items()]
        notes.append(f"Pairs without an outcome, {name}: {'; '.join(said)}.")
    for where, count in about["alike"].items():
        notes.append(f"{where}: {count} pairs have twice the same answer, and are not drawn.")
    return notes


def _described(name: str, judge: Mapping[str, Any]) -> str:
    if name.startswith(PEOPLE):
        shared = f"; on {judge['shared_pairs']} pairs of several, {judge['agreement'] or 0:.0%} of votes agree"
        problems = "".join(f"; {count} {reason}" for reason, count in judge["problems"].items())
        return f"{name}: {judge['votes']} votes{shared + _alpha(judge) if judge['shared_pairs'] else ''}{problems}."
    if name.startswith(REWARD_MODEL):
        return f"{name}: the answer that it rates higher is preferred."
    first, decided = judge["shown_first"], judge["decided"]
    more = f"; it preferred what was shown first in {first / decided:.0%} of {decided}" if decided else ""
    return f"{results.how_judged(name, ': ', judge)}{more}."


def _alpha(one: Mapping[str, Any]) -> str:
    return "" if one["alpha"] is None else f" (Krippendorff's alpha {one['alpha']:.2f})"


def _changes_report(changes: Sequence[AccuracyChange]) -> Report:
    """Return what differs between rewards, over all languages together or in the only one."""
    several = any(row.language == ALL for row in changes)
    cells = []
    for row in [row for row in changes if not several or row.language == ALL]:
        pair = f"{_symbol(row.reward, row.iteration)} - {_symbol(row.other_reward, row.other_iteration)}"
        change = row.change.text("+.2f"), str(row.change.n), row.change.verdict
        cells.append([f"{row.kind}\n{row.judge}", pair, row.language, *change])
    header = ["judged by", "rewards", "language", "difference", "n", "verdict"]
    title = "Reward accuracy: what differs between rewards"
    return Report(title, header, without_repeats(cells), [CHANGES], left=3)


def sheet_report(samples: Sequence[Sample]) -> Report:
    """Return what was drawn, where nobody has judged yet."""
    cells = [
        [_symbol(one.reward, one.iteration), one.language, str(one.pairs), str(len(one.sampled))] for one in samples
    ]
    note = (
        "Nobody has judged yet. Name a judge (judge.model), a reward model (reward_accuracy.reward_model), or votes "
        "(reward_accuracy.votes): people fill in the column choice of reward_accuracy/sheet.csv with a, b or tie."
    )
    header = ["reward", "language", "pairs", "drawn"]
    return Report("Reward accuracy: pairs to be judged", header, without_repeats(cells), [note])
