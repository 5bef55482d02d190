"""What a run, finished or not, says about speeds and lengths: the figures in its done-markers and its log."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from crosspref import algorithm
from crosspref.data.records import Prompt, Response
from crosspref.errors import RunError
from crosspref.models.locate import locate_model
from crosspref.plan.costs import Speeds, flops
from crosspref.plan.shapes import ModelShape, read_shape
from crosspref.plan.work import Lengths, PhaseWork, Texts, Work, decoding_steps, plan_work
from crosspref.recipe.schema import Recipe
from crosspref.run.layout import RunDirectory, ShardedTable, TableFolder, open_run
from crosspref.run.store import Unit, is_amount

MOST_SHARDS = 64
"""Of each language, whose responses are looked at one by one."""


def observe_run(root: str, bytes_per_value: int) -> tuple[Speeds, Lengths]:
    """Return what a run measured on the machine that it ran on.

    Raises:
        RunError: there is no run, or nothing in it has been sampled, scored and trained yet.
        ModelError: the run's model is not there any more.
    """
    run, recipe = open_run(root)
    shape = read_shape(locate_model(recipe.models.initial or recipe.models.policy or "", weights=False))
    lengths = _lengths(run, recipe)
    phases = plan_work(recipe, _stored_texts(run, recipe), lengths)
    sampled, scored, trained = _sampled(run, phases, lengths), _scored(run, recipe, phases), _trained(run, phases)
    if not (sampled and (scored or trained)):
        raise RunError(
            f"{root} has not got far enough to plan from: that takes a finished shard of responses, and one of scores "
            "or a trained policy. `crosspref status` says where it is."
        )
    speeds = {
        kind: sum(seconds for seconds, _ in measured) / sum(flops(work, shape, recipe) for _, work in measured)
        for kind, measured in (("score", scored), ("train", trained))
        if measured
    }
    score, train = speeds.get("score", speeds.get("train", 0.0)), speeds.get("train", speeds.get("score", 0.0))
    read, decode = fit_decoding(sampled, shape, bytes_per_value, score)
    return Speeds(read, decode, score, train, _starts(run, recipe)), lengths


def fit_decoding(
    batches: Sequence[tuple[float, Work]], shape: ModelShape, bytes_per_value: int, score: float
) -> tuple[float, float]:
    """Return seconds per byte of weights read and per FLOP of rows, the best of those that are not negative.

    The prompts are taken off first, at ``score`` seconds per FLOP.

    With batches of one size only, one of the two is 0, and the other holds for such batches.
    """
    weights, per_token = shape.parameters * bytes_per_value, shape.flops_per_token
    table = np.array([[work.steps * weights, work.row_steps * per_token] for _, work in batches], dtype=float)
    scale = table.max(axis=0)
    scale[scale == 0] = 1.0
    decoding = np.array([max(0.0, seconds - score * work.read * per_token) for seconds, work in batches])
    (read, decode), _ = nnls(table / scale, decoding)
    return float(read / scale[0]), float(decode / scale[1])


def _figures(units: Sequence[Unit]) -> Iterator[tuple[Unit, dict[str, Any], int]]:
    for unit in units:
        if unit.marker.exists():
            content = unit.read_marker()
            figures = {name: content["figures"].get(name, 0) for name in ("seconds", "tokens")}
            if figures["seconds"] and all(map(is_amount, figures.values())):
                yield unit, figures, content["rows"]


def _by_language(tables: Iterable[ShardedTable]) -> dict[str, list[Unit]]:
    """Return the shards of some tables by language, spread evenly where there are many."""
    shards: dict[str, list[Unit]] = {}
    for table in tables:
        for unit in table.stored():
            shards.setdefault(unit.path.parent.name, []).append(unit)
    return {language: units[:: math.ceil(len(units) / MOST_SHARDS) or 1] for language, units in shards.items()}


def _lengths(run: RunDirectory, recipe: Recipe) -> Lengths:
    response, longest = {}, {}
    for language, units in _by_language(iteration.responses for iteration in run.iterations()).items():
        sums = [(figures["tokens"], rows) for _, figures, rows in _figures(units)]
        if sum(rows for _, rows in sums):
            response[language] = sum(tokens for tokens, _ in sums) / sum(rows for _, rows in sums)
            maxima = [_longest(unit) for unit, _, _ in _figures(units)]
            longest[language] = sum(maxima) / len(maxima)
    pairs, prompts = 0, 0
    for iteration in range(1, recipe.iterations + 1):
        unit = run.iteration(iteration).policy
        if unit.marker.exists():
            pairs += int(unit.read_marker()["rows"])
            prompts += sum(len(_stored(run.prompts, language)) for language in recipe.languages)
    # For language imbalance a prompt makes several pairs, which the plan counts by itself.
    share = pairs / prompts if prompts and recipe.language_imbalance is None else 1.0
    return Lengths(response=response, longest=longest, pairs=share)


def _longest(unit: Unit) -> float:
    return float(max((len(row.token_ids or ()) for row in unit.rows(Response)), default=0))


def _stored(table: TableFolder, language: str) -> list[Prompt]:
    unit = table.unit(language)
    return list(unit.rows(Prompt)) if unit.marker.exists() else []


def _stored_texts(run: RunDirectory, recipe: Recipe) -> Texts:
    """Return the prompts as the run stored them; its preferences are taken to be as long as its pairs."""
    texts = Texts.__new__(Texts)
    languages = dict.fromkeys(["en", *recipe.languages])
    texts.training = [row for language in languages for row in _stored(run.prompts, language)]
    texts.held_out = [row for language in languages for row in _stored(run.heldout, language)]
    texts.preferences = []
    return texts


def _part(phases: Sequence[PhaseWork], phase: str, kind: str) -> Work | None:
    return next((part for row in phases if row.phase == phase for part in row.parts if part.kind == kind), None)


def _sampled(run: RunDirectory, phases: Sequence[PhaseWork], lengths: Lengths) -> list[tuple[float, Work]]:
    batches = []
    iterations = run.iterations()
    for phase, tables in (
        ("sample", [iteration.responses for iteration in iterations]),
        ("evaluate", [iteration.evaluation.responses for iteration in iterations]),
    ):
        # Held-out answers may lie in a run whose recipe does not evaluate, as the laboratory's do.
        whole = _part(phases, phase, "sample") or _part(phases, "sample", "sample")
        if whole is None:
            continue
        for language, units in _by_language(tables).items():
            for _, figures, rows in _figures(units):
                tokens, read = figures["tokens"], whole.read / whole.units * rows
                mean = tokens / max(1, rows)
                steps = decoding_steps(rows, whole.rows, mean, lengths.longest.get(language, mean))
                batches.append((figures["seconds"], Work("sample", read, steps=steps, row_steps=tokens)))
    return batches


def _scored(run: RunDirectory, recipe: Recipe, phases: Sequence[PhaseWork]) -> list[tuple[float, Work]]:
    """Return seconds and work of the scored shards; what they read goes by what they wrote, as in the plan."""
    shards = []
    implicit = [reward for reward in recipe.reward.names if reward != "reward_model"]
    for phase, tables in (
        ("score", [iteration.scores(reward) for iteration in run.iterations() for reward in implicit]),
        ("evaluate", [iteration.evaluation.scores for iteration in run.iterations()]),
    ):
        whole = _part(phases, phase, "score")
        if whole is None or not whole.written:
            continue
        for units in _by_language(tables).values():
            for _, figures, _ in _figures(units):
                shards.append((figures["seconds"], _scaled(whole, figures["tokens"] / whole.written)))
    return shards


def _trained(run: RunDirectory, phases: Sequence[PhaseWork]) -> list[tuple[float, Work]]:
    whole = _part(phases, "train", "train")
    if whole is None or not whole.tokens:
        return []
    units = [iteration.policy for iteration in run.iterations()]
    return [(figures["seconds"], _scaled(whole, figures["tokens"] / whole.tokens)) for _, figures, _ in _figures(units)]


def _scaled(work: Work, by: float) -> Work:
    return replace(work, read=work.read * by, written=work.written * by, squares=work.squares * by)


def _starts(run: RunDirectory, recipe: Recipe) -> dict[str, float]:
    """Return what a phase took beside its shards: the least of its iterations, as the first may convert a model."""
    phases = {(phase.name, phase.iteration): phase for phase in algorithm.phases(recipe)}
    starts: dict[str, float] = {}
    for row in run.logged_phases():
        name, phase = row["phase"], phases.get((row["phase"], row["iteration"]))
        if phase is None:
            continue
        units = [unit for output in phase.outputs for unit in output.units(run)]
        beside = row["seconds"] - sum(figures["seconds"] for _, figures, _ in _figures(units))
        if beside >= 0:  # less, where the phase was stopped and resumed: its log tells of the last part only
            starts[name] = min(beside, starts.get(name, beside))
    return starts
