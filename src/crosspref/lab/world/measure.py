"""What gold says of one run: of its policies' held-out responses and of the pairs that they were trained on."""

from collections.abc import Mapping
from pathlib import Path

from crosspref import __version__
from crosspref.data.records import Pair, Prompt, Response, as_text
from crosspref.engines import find_engine
from crosspref.lab.world.world import LANGUAGES, Meaning, foreign_words, gold, meaning_of
from crosspref.languages import ENGLISH
from crosspref.maths.estimate import Estimate
from crosspref.maths.statistics import mean_interval, win_rate
from crosspref.reports.table import Report, csv_text, label
from crosspref.run.job import Job
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
MEASURES_NOTE = "; ".join(f"{name}: {meaning}" for name, meaning in MEASURES.items()) + "."
HEADINGS = {"gold": "gold", "win_rate": "win rate\nover pi_0", "accuracy": "pair\naccuracy", "tokens": "tokens"}
"""The measures that figures and studies show."""
FORMATS = {"gold": ".2f", "win_rate": ".0%", "accuracy": ".0%", "tokens": ".1f", "fidelity": ".0%"}
CSV_COLUMNS = ("iteration", "language", "measure", "mean", "low", "high", "n", "seed", "settings", "version")

Measured = Mapping[tuple[int, str, str], Estimate]
"""By iteration, language and measure: its mean and 95% bootstrap interval over prompts."""

Values = tuple[list[float], list[str]]
"""A measure's values, and the prompt_id of each."""


def measure_run(job: Job, resamples: int = 1000) -> Measured:
    """Return every measure of every policy that the run has."""
    return {
        (iteration, language, measure): mean_interval(values, prompts, resamples=resamples, seed=job.recipe.seed)
        for iteration in range(job.recipe.iterations + 1)
        for language in LANGUAGES
        for measure, (values, prompts) in _measures(job, iteration, language).items()
        if values
    }


def _measures(job: Job, iteration: int, language: str) -> dict[str, Values]:
    meanings = _meanings(job.run.heldout.unit(language))
    responses = _responses(job, iteration, language)
    golds, prompts = _golds(responses, meanings), [response.prompt_id for response in responses]
    measures = {
        "gold": (golds, prompts),
        "tokens": ([float(len(response.token_ids or [])) for response in responses], prompts),
        "fidelity": ([float(not foreign_words(response.text, language)) for response in responses], prompts),
    }
    if iteration:
        baseline: dict[str, list[float]] = {}
        answers_of_pi_0 = _responses(job, 0, language)
        for response, value in zip(answers_of_pi_0, _golds(answers_of_pi_0, meanings), strict=True):
            baseline.setdefault(response.prompt_id, []).append(value)
        matches = [
            (value, other, prompt) for value, prompt in zip(golds, prompts, strict=True) for other in baseline[prompt]
        ]
        policy_golds, baseline_golds, compared = (list(column) for column in zip(*matches, strict=True))
        measures["win_rate"] = win_rate(policy_golds, baseline_golds, TIE).tolist(), compared
        measures["accuracy"] = _accuracy(job, iteration, language)
    return measures


def _responses(job: Job, iteration: int, language: str) -> list[Response]:
    rows: list[Response] = job.run.iteration(iteration).evaluation.responses.rows(language)
    return rows


def _meanings(unit: Unit) -> dict[str, Meaning]:
    rows: list[Prompt] = unit.rows(Prompt)
    return {row.prompt_id: meaning_of(as_text(row.instruction), row.language) for row in rows}


def _golds(responses: list[Response], meanings: dict[str, Meaning]) -> list[float]:
    return [gold(row.text, meanings[row.prompt_id], row.language, row.finish_reason == "stop") for row in responses]


def _accuracy(job: Job, iteration: int, language: str) -> Values:
    meanings = _meanings(job.run.prompts.unit(language))
    pairs: list[Pair] = job.run.iteration(iteration).pairs.rows(language)
    chosen, rejected = (
        [gold(getattr(pair, side)[-1]["content"], meanings[pair.prompt_id], language) for pair in pairs]
        for side in ("chosen", "rejected")
    )
    return win_rate(chosen, rejected, TIE).tolist(), [pair.prompt_id for pair in pairs]


def means(measured: Measured, measure: str, iteration: int) -> dict[str, float]:
    """Return the mean of one measure in every language."""
    return {key[1]: estimate.value for key, estimate in measured.items() if (key[0], key[2]) == (iteration, measure)}


def without_english(values: Mapping[str, float]) -> float:
    """Return the mean over the languages that preferences were carried into; nan if there are none."""
    foreign = [value for language, value in values.items() if language != ENGLISH]
    return sum(foreign) / len(foreign) if foreign else float("nan")


def policy_to_keep(fidelity: Mapping[int, Mapping[str, float]]) -> tuple[int, str]:
    """Return the last policy before a language's fidelity falls more than `SLIP` below pi_0's, and why; else the last.

    This needs no gold: the language of any real model's answers can be identified. In this world later iterations
    collapse by mixing languages. It is a warning and not a rule: docs/development/lab_notes.md says what it was worth.

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


def report(measured: Measured) -> Report:
    """Return the table of one run."""
    iterations = sorted({iteration for iteration, *_ in measured})
    rows = []
    for language in LANGUAGES:
        for iteration in iterations:
            estimates = {name: measured.get((iteration, language, name)) for name in MEASURES}
            cells = [estimate.text(FORMATS[name]) if estimate else "" for name, estimate in estimates.items()]
            rows.append([label(language) if iteration == iterations[0] else "", f"pi_{iteration}", *cells])
    kept, why = policy_to_keep({iteration: means(measured, "fidelity", iteration) for iteration in iterations})
    warning = f"A warning that needs no gold: {why}. The last policy before is pi_{kept}."
    notes = [
        warning if why else "No policy mixes languages.",
        MEASURES_NOTE,
        "Ranges are 95% bootstrap intervals over prompts. They do not cover the seed: for that, run a study.",
        "Nothing but English preferences was given, and these carry their annotator's bias for length: the labels are "
        "not pure gold. Gold is never shown to the method.",
    ]
    header = ["language", "policy", *HEADINGS.values(), "own\nlanguage"]
    return Report("A world whose true reward is known: gold per language and policy", header, rows, notes)


def to_csv(measured: Measured, seed: int, settings: str) -> str:
    """Return all numbers of one run, unrounded."""
    rows = [
        (*key, estimate.value, estimate.low, estimate.high, estimate.n, seed, settings, __version__)
        for key, estimate in measured.items()
    ]
    return csv_text(CSV_COLUMNS, rows, quoted=False)


def draw(measured: Measured, path: Path, seed: int) -> None:
    """Draw the run's measures over its policies."""
    iterations = sorted({iteration for iteration, *_ in measured})
    panels = {
        heading.replace("\n", " "): {
            tag: [measured.get((iteration, tag, measure)) for iteration in iterations] for tag in LANGUAGES
        }
        for measure, heading in HEADINGS.items()
    }
    policies = [f"pi_{iteration}" for iteration in iterations]
    find_engine("figures", "curves")(path, f"crosspref lab, seed {seed}, 95% intervals over prompts", policies, panels)
