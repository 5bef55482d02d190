"""What gold says of a run: of its policies' held-out responses, and of the pairs that they were trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from crosspref.data.records import Pair, Prompt, Response
from crosspref.lab.world.world import LANGUAGES, Meaning, foreign_words, gold, meaning_of
from crosspref.languages import ENGLISH
from crosspref.maths.estimate import Estimate
from crosspref.maths.statistics import mean_interval, win_rate
from crosspref.run.job import Job, rows_of
from crosspref.run.store import Unit

TIE = 1e-9
"""Golds that differ by no more are equal; they are sums of hundredths."""

SLIP = 0.05
"""By how much the share of answers without a foreign word may fall below pi_0's."""

MEASURES = {
    "gold": "true reward of held-out responses, at most 1.25",
    "win_rate": "share of held-out responses with more gold than pi_0's to the same prompt, ties as one half",
    "accuracy": "share of training pairs whose chosen response has more gold than the rejected one, ties as one half",
    "tokens": "mean length of held-out responses in tokens",
    "fidelity": "share of held-out responses without a word of another language",
}
"""The measures and what each is."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One measure of one policy in one language, with its 95% bootstrap interval over prompts."""

    iteration: int
    language: str
    measure: str
    interval: Estimate


def measure_run(job: Job, resamples: int = 1000) -> list[Measured]:
    """Return every measure of every policy that the run has."""
    found = []
    for iteration in range(job.recipe.iterations + 1):
        for language in LANGUAGES:
            for name, (values, prompts) in _measures(job, iteration, language).items():
                if values:
                    interval = mean_interval(values, prompts, resamples=resamples, seed=job.recipe.seed)
                    found.append(Measured(iteration, language, name, interval))
    return found


def policy_to_keep(fidelity: Mapping[int, Mapping[str, float]]) -> tuple[int, str]:
    """Return the last policy before any language's fidelity falls more than `SLIP` below pi_0's, and why, if it does.

    It needs no gold: what language an answer is in can be told of any real model's answers. In this world later
    iterations collapse by mixing languages. It is a warning only: see docs/development/lab_notes.md.

    Args:
        fidelity: the share of answers without a foreign word, by iteration (0 is pi_0) and language.
    """
    for iteration in sorted(fidelity):
        slipped = {
            language: share for language, share in fidelity[iteration].items() if share < fidelity[0][language] - SLIP
        }
        if slipped:
            where = ", ".join(f"{name} {fidelity[0][name]:.0%} to {share:.0%}" for name, share in slipped.items())
            return iteration - 1, f"pi_{iteration} mixes languages (answers without a foreign word: {where})"
    return max(fidelity), ""


def means(measured: Sequence[Measured], measure: str, iteration: int) -> dict[str, float]:
    """Return the mean of one measure in every language."""
    rows = [row for row in measured if row.measure == measure and row.iteration == iteration]
    return {row.language: row.interval.value for row in rows}


def without_english(values: dict[str, float]) -> float:
    """Return the mean over the languages that preferences were carried into; nan if there is none."""
    others = [value for language, value in values.items() if language != ENGLISH]
    return sum(others) / len(others) if others else float("nan")


Values = tuple[list[float], list[str]]
"""A measure's values, and the prompt of each."""


def _measures(job: Job, iteration: int, language: str) -> dict[str, Values]:
    folder = job.run.iteration(iteration)
    asked = _meanings(job.run.prompts("heldout", language))
    responses = _responses(folder, language)
    prompts = [row.prompt_id for row in responses]
    found = {
        "gold": ([_gold(row, asked, language) for row in responses], prompts),
        "tokens": ([float(len(row.token_ids or [])) for row in responses], prompts),
        "fidelity": ([float(not foreign_words(row.text, language)) for row in responses], prompts),
    }
    if iteration:
        found["win_rate"] = _won(responses, _responses(job.run.iteration(0), language), asked, language)
        found["accuracy"] = _accuracy(folder, _meanings(job.run.prompts("prompts", language)), language)
    return found


def _responses(folder: Path, language: str) -> list[Response]:
    return rows_of(folder / "evaluation" / "responses" / language, Response)


def _meanings(unit: Unit) -> dict[str, Meaning]:
    rows: list[Prompt] = unit.rows(Prompt)
    return {row.prompt_id: meaning_of(row.instruction, row.language) for row in rows}


def _gold(response: Response, asked: dict[str, Meaning], language: str) -> float:
    return gold(response.text, asked[response.prompt_id], language, response.finish_reason == "stop")


def _won(
    responses: Sequence[Response], baseline: Sequence[Response], asked: dict[str, Meaning], language: str
) -> Values:
    own: dict[str, list[float]] = {}
    other: dict[str, list[float]] = {}
    for rows, known in ((responses, own), (baseline, other)):
        for row in rows:
            known.setdefault(row.prompt_id, []).append(_gold(row, asked, language))
    outcomes: list[float] = []
    prompts: list[str] = []
    for prompt_id, golds in own.items():
        left, right = zip(*product(golds, other[prompt_id]), strict=True)
        outcomes += win_rate(left, right, TIE).tolist()
        prompts += [prompt_id] * len(left)
    return outcomes, prompts


def _accuracy(folder: Path, asked: dict[str, Meaning], language: str) -> Values:
    pairs: list[Pair] = Unit(folder / "pairs" / f"{language}.parquet").rows(Pair)
    chosen, rejected = (
        [gold(getattr(pair, side)[-1]["content"], asked[pair.prompt_id], language) for pair in pairs]
        for side in ("chosen", "rejected")
    )
    return win_rate(chosen, rejected, TIE).tolist(), [pair.prompt_id for pair in pairs]
