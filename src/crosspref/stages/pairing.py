"""How an iteration's pairs are made: by a reward (Eq. 10, 15), or by language imbalance (section A.5)."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset

from crosspref.data.records import Agreement, Dropped, Pair, Response, Score, Translation, from_table
from crosspref.languages import ENGLISH
from crosspref.maths.reward import noise_gap
from crosspref.recipe.sections import RewardName
from crosspref.run.job import Job, digest_rows, rows_of, settings_of, stored_prompts, units_of
from crosspref.run.store import Fingerprint, Unit, digest_of
from crosspref.stages.select import select as selecting
from crosspref.stages.select.agree import agree
from crosspref.stages.select.language_imbalance import language_imbalance_pairs

PART_BYTES = 16 << 20
"""Shards are read together until their responses have this size: opening a small file costs more than reading it."""


def make_reward_pairs(job: Job, iteration: int) -> None:
    """Make the pairs of every language by ``reward.name``, and compare all rewards of the recipe with one another."""
    recipe, folder = job.recipe, job.run.iteration(iteration)
    for language in recipe.languages:
        fingerprint = _pairs_fingerprint(job, folder, language, recipe.reward.name)
        unit = Unit(folder / "pairs" / f"{language}.parquet")
        if unit.finished(fingerprint):
            continue
        with unit.writer(Pair) as write:
            selection = _select(job, folder, language, recipe.reward.name, write)
        Unit(folder / "dropped" / f"{language}.parquet").write_rows(selection.dropped, Dropped)
        Unit(folder / "length_penalty" / f"{language}.parquet").write_table(selection.curve())
        unit.finish(fingerprint, len(selection.length_differences), **selection.figures())
        job.reporter.say(f"iteration {iteration} select {language}: {selection.summary()}")
    for both in combinations(recipe.reward.names, 2):
        _compare(job, iteration, folder, *both)


def make_imbalance_pairs(job: Job, iteration: int) -> None:
    """Make the pairs of every language by language imbalance (A.5); the English ones come from all the others."""
    recipe, folder = job.recipe, job.run.iteration(iteration)
    asked = recipe.language_imbalance
    fingerprint = Fingerprint(
        {**(settings_of("language_imbalance", asked) if asked else {}), "select.truncated": recipe.select.truncated},
        {
            "answers": _digest(folder / "responses", recipe.languages),
            "translations": _digest(folder / "translations", recipe.languages),
            "prompts": digest_rows([row for name in recipe.languages for row in stored_prompts(job, "prompts", name)]),
        },
    )
    units = {language: Unit(folder / "pairs" / f"{language}.parquet") for language in recipe.languages}
    done = [unit.finished(fingerprint) for unit in units.values()]  # all of them: each stale one must be noticed
    if all(done):
        return
    pairs: list[Pair] = []
    dropped: list[Dropped] = []
    english, english_answers = _instructions(job, ENGLISH), rows_of(folder / "responses" / ENGLISH, Response)
    for language in recipe.languages:
        if language != ENGLISH:
            made, left_out = language_imbalance_pairs(
                language,
                _instructions(job, language),
                english,
                rows_of(folder / "responses" / language, Response),
                english_answers,
                rows_of(folder / "translations" / language, Translation),
                asked.translation_prompts if asked else [],
                truncated=recipe.select.truncated,
            )
            pairs += made
            dropped += left_out
    for language, unit in units.items():
        own = [pair for pair in pairs if pair.language == language]
        lost = [row for row in dropped if row.language == language]
        unit.write_rows(own, Pair)
        Unit(folder / "dropped" / f"{language}.parquet").write_rows(lost, Dropped)
        lengths = [len(pair.chosen[-1]["content"]) - len(pair.rejected[-1]["content"]) for pair in own]
        reasons = Counter(row.reason for row in lost)
        mean = sum(lengths) / len(lengths) if lengths else None
        unit.finish(fingerprint, len(own), mean_length_difference=mean, dropped=dict(reasons))
        said = "".join(f", {count} dropped: {reason}" for reason, count in reasons.items())
        job.reporter.say(f"iteration {iteration} select {language}: {len(own)} pairs{said}")


def _select(
    job: Job, folder: Path, language: str, reward: RewardName, write: Callable[[pa.Table], None]
) -> selecting.Selection:
    settings = job.recipe.reward
    return selecting.select_parts(
        _parts(folder / "responses" / language, folder / "scores" / reward / language),
        _instructions(job, language),
        language,
        write=write,
        penalty=job.recipe.length_penalty,
        settings=job.recipe.select,
        identify=job.engines.identifier(language),
        noise=0.0 if reward == "reward_model" else noise_gap(settings.algorithm, settings.beta),
    )


def _parts(responses: Path, scores: Path) -> list[selecting.Part]:
    """Return the shards of one language, as many in a part as have PART_BYTES together."""
    parts: list[list[Unit]] = []
    size = PART_BYTES
    for unit in units_of(responses):
        if size >= PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(unit)
        size += unit.path.stat().st_size
    return [
        selecting.Part(partial(_columns, part), partial(_columns, [Unit(scores / u.path.name) for u in part]))
        for part in parts
    ]


def _columns(units: Sequence[Unit], names: list[str]) -> pa.Table:
    """Read some columns of several shards, one below the other."""
    try:
        paths = [str(unit.path) for unit in units]
        return pa.dataset.dataset(paths, format="parquet", partitioning=None).to_table(columns=names)
    except (OSError, pa.ArrowException):
        # One by one, to say which.
        return pa.concat_tables([unit.table().select(names) for unit in units])


def pairs_by(job: Job, folder: Path, language: str, reward: RewardName) -> list[Pair]:
    """Return the pairs that one of the recipe's rewards makes of an iteration's responses, as selecting makes them."""
    pairs: list[Pair] = []
    _select(job, folder, language, reward, lambda table: pairs.extend(from_table(table, Pair)))
    return pairs


def _compare(job: Job, iteration: int, folder: Path, reward: RewardName, other: RewardName) -> None:
    """Store how far two rewards agree, in every language."""
    recipe = job.recipe
    options = {"resamples": recipe.evaluate.resamples, "seed": recipe.seed}
    inputs = {
        f"{name} {language}": _pairs_fingerprint(job, folder, language, name).digest
        for name in (reward, other)
        for language in recipe.languages
    }
    fingerprint = Fingerprint(options, inputs)
    unit = Unit(folder / "agreement" / f"{reward}-{other}.parquet")
    if unit.finished(fingerprint):
        return
    rows = [
        agree(
            iteration,
            language,
            reward,
            other,
            rows_of(folder / "scores" / reward / language, Score),
            rows_of(folder / "scores" / other / language, Score),
            pairs_by(job, folder, language, reward),
            pairs_by(job, folder, language, other),
            **options,
        )
        for language in recipe.languages
    ]
    unit.write_rows(rows, Agreement)
    unit.finish(fingerprint, len(rows))


def _pairs_fingerprint(job: Job, folder: Path, language: str, reward: RewardName) -> Fingerprint:
    recipe = job.recipe
    settings = {**settings_of("length_penalty", recipe.length_penalty), **settings_of("select", recipe.select)}
    return Fingerprint(settings, {"scores": _digest(folder / "scores" / reward, [language])})


def _instructions(job: Job, language: str) -> dict[str, str]:
    table = job.run.prompts("prompts", language).table()
    return dict(zip(*(table.column(name).to_pylist() for name in ("prompt_id", "instruction")), strict=True))


def _digest(folder: Path, languages: list[str]) -> str:
    return digest_of([unit.digest for language in languages for unit in units_of(folder / language)])
