"""How the tables of an iteration are filled: responses, translations and scores, shard by shard."""

import functools
import os
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path

from crosspref.data.records import Response, Score, Translation
from crosspref.errors import ModelError
from crosspref.languages import ENGLISH
from crosspref.models.locate import ModelFiles, locate_model
from crosspref.protocols import Advance, Known, RewardModel, Sampler, Scorer, Translator
from crosspref.recipe.sections import REFERENCE_FREE, RewardName, RewardSettings
from crosspref.run.job import Job, Shard, cut, digest_rows, fill, policy, rows_of, settings_of, stored_prompts, units_of
from crosspref.run.store import Fingerprint, Unit, digest_of
from crosspref.stages import sample as sampling
from crosspref.stages import score as scoring
from crosspref.stages import translate as translating

Models = tuple[ModelFiles, ModelFiles | None]
"""A policy and its reference, if the reward has one."""

MODELS = ("policy", "reference", "responses")
"""Inputs of a shard of scores that may differ where values of one model are the same."""

SPEED = ("batch_size", "batch_tokens", "logits_megabytes")
"""Settings that say how a thing is computed, and not what."""


def reward_reference(job: Job, iteration: int) -> ModelFiles | None:
    """Return the reference of the reward that pi_{t-1} holds: pi_I, or pi_{t-2} where the recipe lets it move along."""
    reward = job.recipe.reward
    if reward.algorithm in REFERENCE_FREE:
        return None
    if reward.reference == "previous" and iteration > 1:
        return policy(job, iteration - 2)
    return locate_model(job.recipe.models.initial or "")


def fill_responses(
    job: Job, iteration: int, folder: Path, source: str, of: int, n: int, seeded_by: int, *, greedy: bool = False
) -> None:
    """Fill ``folder / responses`` with n responses of pi_{of} to each prompt."""
    model = policy(job, of)
    shards = response_shards(job, folder, source, model, n, seeded_by, greedy=greedy)

    seed = job.recipe.seed

    def work(sampler: Sampler, shard: Shard, advance: Advance) -> list[Response]:
        return sampling.sample(shard.prompts, sampler, n=n, seed=seed, iteration=seeded_by, advance=advance)

    label = f"iteration {iteration} {'evaluate: ' if source == 'heldout' else ''}sample"
    fill(job, label, shards, Response, n, partial(job.engines.sampler, model, greedy=greedy), work)


def response_shards(
    job: Job, folder: Path, source: str, model: ModelFiles, n: int, seeded_by: int, *, greedy: bool
) -> list[Shard]:
    """Return the shards of ``folder / responses``, done or not."""
    counted = settings_of("sample", job.recipe.sample, without=("n", *SPEED))
    settings = {**counted, "n": n, "seed": job.recipe.seed, "iteration": seeded_by, "greedy": greedy}
    if job.recipe.sample.engine == "server":
        settings["server.protocol"] = job.recipe.server.protocol  # chat brings no token ids
    return [
        Shard(unit, Fingerprint(settings, {"policy": model.identity, "prompts": digest_rows(part)}), part)
        for unit, part in cut(job, folder / "responses", source)
    ]


def fill_translations(job: Job, iteration: int) -> None:
    """Fill ``translations`` with the English of every response in another language.

    For language imbalance each language's shards also hold the English answers in that language.
    """
    folder, both_ways = job.run.iteration(iteration), job.recipe.language_imbalance is not None
    model, asked = policy(job, iteration - 1), job.recipe.translate
    translator = model if asked.model is None else locate_model(asked.model)
    settings = {
        **settings_of("translate", asked, without=("model",)),
        "sample.max_prompt_tokens": job.recipe.sample.max_prompt_tokens,
        "both_ways": both_ways,
    }
    english: dict[str, list[Response]] = {}
    for row in rows_of(folder / "responses" / ENGLISH, Response) if both_ways else ():
        english.setdefault(row.prompt_id, []).append(row)
    shards = []
    for unit, part in cut(job, folder / "translations", "prompts"):
        if unit.path.parent.name != ENGLISH:
            inputs = {"translator": translator.identity, "responses": beside(unit, "responses").digest}
            if both_ways:
                inputs["english"] = digest_of([shard.digest for shard in units_of(folder / "responses" / ENGLISH)])
            answers = [row for prompt in part for row in english.get(prompt.prompt_id, ())]
            shards.append(Shard(unit, Fingerprint(settings, inputs), part, english=answers))
    identifier = job.engines.identifier

    def work(engine: Translator, shard: Shard, advance: Advance) -> list[Translation]:
        language = shard.unit.path.parent.name
        requests = [(row, ENGLISH) for row in beside(shard.unit, "responses").rows(Response)]
        requests += [(row, language) for row in shard.english]
        rows: list[Translation] = translating.translate(
            requests, engine, settings=asked, identify=identifier(language), advance=advance
        )
        return rows

    per_prompt = 2 if both_ways else job.recipe.sample.n
    label = f"iteration {iteration} translate"
    fill(job, label, shards, Translation, per_prompt, partial(job.engines.translator, model), work)
    _report_failures(job, label, [shard.unit for shard in shards])


def _report_failures(job: Job, label: str, units: Sequence[Unit]) -> None:
    """Say how many translations failed, by language and reason."""
    for language in dict.fromkeys(unit.path.parent.name for unit in units):
        rows = [row for unit in units if unit.path.parent.name == language for row in unit.rows(Translation)]
        failures = [row.failure for row in rows if row.failure is not None]
        reasons = ", ".join(f"{failures.count(reason)} {reason}" for reason in dict.fromkeys(failures))
        job.reporter.say(f"{label} {language}: {len(rows) - len(failures)} translations, {reasons or 'none'} failed")


def fill_scores(
    job: Job,
    label: str,
    folder: Path,
    source: str,
    models: Models,
    rewards: Sequence[RewardName],
    settings: RewardSettings,
) -> None:
    """Fill ``folder / scores`` with the rewards of ``folder / responses``; the implicit ones share their two models."""
    implicit = [reward for reward in rewards if reward != "reward_model"]
    if implicit:
        _fill_implicit(job, label, folder, source, models, implicit, settings)
    if "reward_model" in rewards:
        _fill_rated(job, label, folder, source, locate_model(settings.reward_model or ""))


def _fill_implicit(
    job: Job,
    label: str,
    folder: Path,
    source: str,
    models: Models,
    rewards: Sequence[RewardName],
    settings: RewardSettings,
) -> None:
    model, reference = models
    if reference is not None and reference.identity == model.identity:
        raise ModelError(
            f"The policy {model.name} and the reward's reference {reference.name} are the same model, so that every "
            "reward would be 0. models.policy must be the aligned model and models.initial the one it was aligned from."
        )
    shards = score_shards(job, folder, source, models, rewards, settings)

    def work(scorer: Scorer, shard: Shard, advance: Advance) -> list[Score]:
        assert shard.reward is not None  # noqa: S101 - all of these shards have one
        translated = _is_translated(shard.unit, shard.reward)
        again = {} if translated or settings.counting == "znlp" else scored_before(shard)
        return scoring.score(
            beside(shard.unit, "responses").rows(Response),
            [*shard.prompts, *shard.english],
            scorer,
            settings=settings,
            reward=shard.reward,
            advance=advance,
            translations=beside(shard.unit, "translations").rows(Translation) if translated else (),
            before=again,
        )

    build = job.engines.released_scorer if settings.counting == "znlp" else job.engines.scorer
    fill(job, label, shards, Score, 1, partial(build, model, reference), work)


def scored_before(shard: Shard) -> dict[Hashable, Known]:
    """Return what earlier iterations computed under this shard's models, by what the responses to its prompts said.

    A model is known by its identity: pi_I stays the reference, and a policy may become one.
    """
    wanted = shard.fingerprint.parts
    models = [wanted["policy"], wanted["reference"]]  # of a reward without one it is "none", whose values are none
    found: dict[Hashable, Known] = {}
    for unit in _earlier(shard.unit):
        if not (unit.marker.exists() and beside(unit, "responses").marker.exists()):
            continue
        parts = unit.read_marker()["parts"]
        held = [parts.get("policy"), parts.get("reference")]
        if not set(models) & set(held) or any(parts.get(k) != v for k, v in wanted.items() if k not in MODELS):
            continue
        scores = {(row.prompt_id, row.language, row.sample): row for row in unit.rows(Score)}
        for response in beside(unit, "responses").rows(Response):
            row = scores[response.prompt_id, response.language, response.sample]
            by_model = dict(zip(held, (row.policy_logprob, row.reference_logprob), strict=True))
            content = scoring.content_of(response)
            policy, reference = (by_model.get(model) for model in models)
            other = found.get(content, (None, None))
            found[content] = (other[0] if policy is None else policy, other[1] if reference is None else reference)
    return found


def _earlier(unit: Unit) -> list[Unit]:
    """Return the shards of earlier iterations that are about the same prompts."""
    own = next((part for part in unit.path.parents if part.name.startswith("iteration_")), None)
    if own is None:
        return []
    within, number = unit.path.relative_to(own), int(own.name.rpartition("_")[2])
    return [Unit(own.with_name(f"iteration_{before}") / within) for before in range(number)]


def score_shards(
    job: Job, folder: Path, source: str, models: Models, rewards: Sequence[RewardName], settings: RewardSettings
) -> list[Shard]:
    """Return the shards of ``folder / scores`` by the implicit rewards, done or not."""
    model, reference = models
    counted = settings_of("reward", settings, without=("name", "also", "reference", "reward_model", *SPEED))
    english = {prompt.prompt_id: prompt for prompt in stored_prompts(job, source, ENGLISH)}
    shards = []
    for reward in rewards:
        for unit, part in cut(job, folder / "scores" / reward, source):
            asked = [english[prompt.prompt_id] for prompt in part]
            inputs = {
                "policy": model.identity,
                "reference": reference.identity if reference else "none",
                "responses": beside(unit, "responses").digest,
                "prompts": digest_rows([*part, *asked]),
            }
            if _is_translated(unit, reward):
                inputs["translations"] = beside(unit, "translations").digest
            shards.append(Shard(unit, Fingerprint({**counted, "reward": reward}, inputs), part, reward, asked))
    return shards


def _fill_rated(job: Job, label: str, folder: Path, source: str, model: ModelFiles) -> None:
    shards = []
    for unit, part in cut(job, folder / "scores" / "reward_model", source):
        inputs = {
            "reward_model": model.identity,
            "responses": beside(unit, "responses").digest,
            "prompts": digest_rows(part),
        }
        shards.append(Shard(unit, Fingerprint({"reward": "reward_model"}, inputs), part))

    def work(judge: RewardModel, shard: Shard, advance: Advance) -> list[Score]:
        rows = beside(shard.unit, "responses").rows(Response)
        return scoring.rate(rows, shard.prompts, judge, advance=advance)

    fill(job, f"{label} by reward model", shards, Score, 1, partial(job.engines.reward_model, model), work)


def _is_translated(unit: Unit, reward: RewardName) -> bool:
    return reward == "translated" and unit.path.parent.name != ENGLISH


def beside(unit: Unit, table: str) -> Unit:
    """Return the shard of another table that is about the same prompts in the same language."""
    return Unit(_folder_beside(os.path.dirname(unit.path), table) / unit.path.name)  # noqa: PTH120 - quicker


@functools.cache
def _folder_beside(folder: str, table: str) -> Path:
    language = Path(folder)
    above = language.parent if language.parent.name in {"responses", "translations"} else language.parent.parent
    return above.parent / table / language.name
