"""Reward accuracy (section 4.2, Table 1): how often a judge prefers the answer that a reward has chosen."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from crosspref.errors import RecipeError
from crosspref.models.locate import locate_model, require_one_output
from crosspref.recipe.files import load_recipe
from crosspref.reports.table import Report, as_json, write_table
from crosspref.run.store import write_text
from crosspref.suites.judge.questions import Template
from crosspref.suites.reward_accuracy.judges import JUDGE, Judged, ask_judge, ask_reward_model
from crosspref.suites.reward_accuracy.pairs import Comparison, Sample, draw_samples
from crosspref.suites.reward_accuracy.prompt import OWN
from crosspref.suites.reward_accuracy.rates import (
    ALL,
    Accuracy,
    AccuracyChange,
    Cell,
    PairOutcome,
    cells_of,
    changes_of,
)
from crosspref.suites.reward_accuracy.report import make_changes_report, make_report, make_sheet_report
from crosspref.suites.reward_accuracy.votes import Votes, agreement, write_sheet
from crosspref.suites.work import Evaluation
from crosspref.suites.xalpaca.prompt import read_template

NAME = "reward_accuracy"


def evaluate(work: Evaluation) -> list[Report]:
    """Run the suite; see ``suites``. What is wrong with settings, prompt and votes shows before a judge is asked.

    Raises:
        RecipeError: what is measured is no run, or a setting is wrong.
        DataError: there are no pairs yet, or the votes cannot be read.
        ModelError: the reward model cannot be read.
    """
    if work.annotations is not None:
        raise RecipeError("--annotations is for xalpaca. Votes of people on pairs: set reward_accuracy.votes to them.")
    asked = work.settings.reward_accuracy
    template = read_template(asked.prompt, "reward_accuracy.prompt", OWN)
    votes = None if asked.votes is None else Votes(asked.votes)
    model = None if asked.reward_model is None else locate_model(asked.reward_model)
    if model is not None:
        require_one_output(model)
    named = work.settings.judge.model is not None or work.replay is not None
    # A judge whose address alone is given is meant to be asked, and its missing name an error.
    judge = work.judge if named or "url" in work.settings.judge.model_fields_set else None
    samples = draw_samples(work)
    pairs = list({row.comparison.pair_id: row.comparison for sample in samples for row in sample.sampled}.values())
    _write_sheet(work, pairs)
    judged = []
    if votes is not None:
        judged.append(votes.judged(pairs))
    if model is not None and asked.reward_model is not None:
        judged.append(ask_reward_model(work, asked.reward_model, model, pairs))
    if judge is not None:
        judged.append(ask_judge(judge, pairs, template))
    if not judged:
        return [make_sheet_report(samples)]
    return _write_results(work, samples, judged[::-1], template)


def _write_sheet(work: Evaluation, pairs: Sequence[Comparison]) -> None:
    path = work.target.folder / NAME / "sheet.csv"
    if not write_sheet(path, pairs):
        work.reporter.say(f"{path} has choices in it already and stays as it is. For a new one, move it elsewhere.")


def _write_results(
    work: Evaluation, samples: Sequence[Sample], judged: Sequence[Judged], template: Template
) -> list[Report]:
    folder = work.target.folder / NAME
    by_judge = [cells_of(one, samples) for one in judged]
    cells = [cell for own in by_judge for cell in own]
    rows = [cell.row() for cell in cells]
    changes = [change for own in by_judge for change in changes_of(own)]
    outcomes = [row for cell in cells if cell.language != ALL for row in cell.pair_rows()]
    about = _about(work, samples, judged, cells, template)
    content = {**about, "rows": [as_json(row) for row in rows], "changes": [as_json(row) for row in changes]}
    write_table(folder / "accuracy", rows, Accuracy)
    write_table(folder / "changes", changes, AccuracyChange)
    write_table(folder / "pairs", outcomes, PairOutcome)
    write_text(folder / "accuracy.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return [make_report(rows, about), *([make_changes_report(changes)] if changes else [])]


def _about(
    work: Evaluation, samples: Sequence[Sample], judged: Sequence[Judged], cells: Sequence[Cell], template: Template
) -> dict[str, Any]:
    """Return who judged what and how, where judges disagree, and what has no outcome."""
    prompt = [list(message) for message in template.messages]
    own = {}
    for one in judged:
        about = dict(one.about)
        if one.kind == JUDGE:
            first, decided = one.shown_first()
            about |= {"shown_first": first, "decided": decided}
        own[f"{one.kind} {one.name}"] = about
    failures: dict[str, dict[str, Counter[str]]] = {}
    for cell in cells:
        if cell.language != ALL and cell.failures():
            by_language = failures.setdefault(f"{cell.judged.kind} {cell.judged.name}", {})
            by_language.setdefault(cell.language, Counter()).update(cell.failures())
    agreements = []
    for left, right in combinations(judged, 2):
        both = [(left.outcomes[pair_id], right.outcomes[pair_id]) for pair_id in left.outcomes.keys() & right.outcomes]
        known = [[outcome.value for outcome in pair if outcome.value is not None] for pair in both]
        names = [f"{one.kind} {one.name}" for one in (left, right)]
        agreements.append({"judges": names, **agreement(known)})
    alike = {f"{one.reward}, iteration {one.iteration}, {one.language}": one.alike for one in samples if one.alike}
    run = work.target.run
    rated_by = None if run is None else load_recipe(run.recipe).reward.reward_model
    return {
        "suite": NAME,
        "judges": own,
        "prompt": prompt,
        "prompt_sha256": hashlib.sha256(json.dumps(prompt).encode()).hexdigest(),
        "settings": work.settings.reward_accuracy.model_dump(mode="json"),
        "seed": work.settings.seed,
        "reward_model_of_the_run": rated_by,
        "failures": failures,
        "alike": alike,
        "agreements": agreements,
    }
