"""Algorithm 1 of "Implicit Cross-Lingual Rewarding", and how its steps lie in a run directory. Read this file first.

    for t = 1..T:
        sample    N responses y ~ pi_{t-1}(x) per prompt and language                                       (Eq. 7)
        score     R = beta log pi_{t-1}(y | G(x)) / pi_I(y | G(x)), G(x) the parallel English instruction   (Eq. 8, 9)
        select    best and worst under R - alpha |y|, alpha solved per language                             (Eq. 10, 15)
        train     pi_t from pi_{t-1} by DPO+NLL, with pi_{t-1} as training reference                        (Eq. 11)

Here beyond the paper: stage 0 makes pi_0 from pi_I where no English-aligned model is at hand, and every policy is
measured on held-out prompts. Not here: the rewards R_m and R_t as rewards to train on, KTO, and judged evaluation.

Each step is a phase: a function of a job and an iteration, whose input and output lie in the run directory. It does
only the units that are not done yet, so running it again is resuming it.
"""

from collections.abc import Callable
from pathlib import Path

from crosspref.engines.protocols import Sampler, Scorer
from crosspref.job import (
    Job,
    Phase,
    Shard,
    cut,
    digest_rows,
    fill,
    policy,
    rows_of,
    settings_of,
    store_rows,
    stored_prompts,
    train_policy,
    units_of,
)
from crosspref.languages import ENGLISH
from crosspref.models import locate_model
from crosspref.progress import Meter
from crosspref.records import Dropped, Measure, Pair, Prompt, Response, Score
from crosspref.stages import evaluate as evaluating
from crosspref.stages import sample as sampling
from crosspref.stages import score as scoring
from crosspref.stages import select as selecting
from crosspref.stages.preferences import load_preferences
from crosspref.stages.prompts import PromptColumns, load_prompts
from crosspref.store import Fingerprint, Unit, digest_of

HELD_OUT = -1
"""The iteration that seeds held-out responses: the same for every policy, so that they differ by the policy alone."""


def align(job: Job, execute: Callable[[Phase, int], None]) -> Path:
    """Run Algorithm 1 and return the directory of pi_T; ``execute`` runs one phase, here or in another process."""
    execute(prompts, 0)
    if job.recipe.align_english:
        execute(align_english, 0)
    execute(evaluate, 0)
    for iteration in range(1, job.recipe.iterations + 1):
        execute(sample, iteration)
        execute(score, iteration)
        execute(select, iteration)
        execute(train, iteration)
        execute(evaluate, iteration)
    return job.run.policy(job.recipe.iterations).path


def prompts(job: Job, _: int) -> None:
    """Read, check and store the parallel prompts, for training and held out."""
    asked = job.recipe.prompts
    columns = PromptColumns(asked.id_column, asked.text_column, asked.language_column)
    for name, source in (("prompts", asked.source), ("heldout", job.recipe.evaluate.prompts)):
        if source is None:
            continue
        limit = asked.limit if name == "prompts" else None
        loaded = load_prompts(source, job.recipe.languages, on_problem=asked.on_problem, limit=limit, columns=columns)
        for language in dict.fromkeys([ENGLISH, *job.recipe.languages]):
            rows = [prompt for prompt in loaded.prompts if prompt.language == language]
            store_rows(job.run.prompts(name, language), rows, Prompt, {"source": source})
            job.reporter.say(f"{name} {language}: {len(rows)}")
        store_rows(job.run.prompts(name, "dropped"), loaded.dropped, Dropped, {"source": source})
        if loaded.dropped:
            job.reporter.say(f"{name}: {len(loaded.dropped)} dropped, see {job.run.prompts(name, 'dropped').path}")


def align_english(job: Job, _: int) -> None:
    """Stage 0: make pi_0 from pi_I by DPO on English preferences."""
    settings = job.recipe.align_english
    if settings is not None:
        initial = locate_model(job.recipe.models.initial)
        train_policy(job, 0, load_preferences(settings.preferences), "align_english", settings, initial)


def sample(job: Job, iteration: int) -> None:
    """Eq. 7: draw N responses to every training prompt from pi_{t-1}."""
    _sample(job, iteration, job.run.iteration(iteration), "prompts", iteration - 1, job.recipe.sample.n, iteration)


def score(job: Job, iteration: int) -> None:
    """Eq. 8, 9: score every response by pi_{t-1} against pi_I, given the parallel English instruction."""
    _score(job, iteration, job.run.iteration(iteration), "prompts", iteration - 1, "crosslingual")


def select(job: Job, iteration: int) -> None:
    """Eq. 10, 15: solve the length penalty per language and take the best and the worst response to each prompt."""
    recipe, folder = job.recipe, job.run.iteration(iteration)
    settings = {**settings_of("length_penalty", recipe.length_penalty), **settings_of("select", recipe.select)}
    for language in recipe.languages:
        scores = digest_of([unit.digest for unit in units_of(folder / "scores" / language)])
        fingerprint = Fingerprint(settings, {"scores": scores})
        unit = Unit(folder / "pairs" / f"{language}.parquet")
        if unit.finished(fingerprint):
            continue
        selection = selecting.select(
            rows_of(folder / "responses" / language, Response),
            rows_of(folder / "scores" / language, Score),
            {prompt.prompt_id: prompt.instruction for prompt in stored_prompts(job, "prompts", language)},
            language,
            penalty=recipe.length_penalty,
            settings=recipe.select,
            identify=job.engines.identifier(language),
        )
        unit.write_rows(selection.pairs, Pair)
        Unit(folder / "dropped" / f"{language}.parquet").write_rows(selection.dropped, Dropped)
        Unit(folder / "length_penalty" / f"{language}.parquet").write_table(selection.curve())
        unit.finish(fingerprint, len(selection.pairs), **selection.figures())
        job.reporter.say(f"iteration {iteration} select {language}: {selection.summary()}")


def train(job: Job, iteration: int) -> None:
    """Eq. 11: train pi_t from pi_{t-1} on the pairs of all languages."""
    folder = job.run.iteration(iteration) / "pairs"
    pairs = [pair for language in job.recipe.languages for pair in Unit(folder / f"{language}.parquet").rows(Pair)]
    train_policy(job, iteration, pairs, "train", job.recipe.train, policy(job, iteration - 1))


def evaluate(job: Job, iteration: int) -> None:
    """Measure pi_t on the held-out prompts, against pi_0."""
    recipe, folder = job.recipe, job.run.iteration(iteration) / "evaluation"
    if recipe.evaluate.prompts is None:
        return
    _sample(job, iteration, folder, "heldout", iteration, recipe.evaluate.n, HELD_OUT)
    # Every policy is scored by the same two models, pi_0 and pi_I, on the prompt in its own language.
    _score(job, iteration, folder, "heldout", 0, "multilingual")
    options = {"resamples": recipe.evaluate.resamples, "seed": recipe.seed}
    scores = [unit.digest for language in recipe.languages for unit in units_of(folder / "scores" / language)]
    fingerprint = Fingerprint(options, {"scores": digest_of(scores)})
    unit = Unit(folder / "measures.parquet")
    if unit.finished(fingerprint):
        return
    rows: list[Measure] = []
    for language in recipe.languages:
        responses = rows_of(folder / "responses" / language, Response)
        identify = job.engines.identifier(language)
        rows += evaluating.measure(responses, language, iteration, identify=identify, **options)
        if iteration:
            own = rows_of(folder / "scores" / language, Score)
            pi_0 = rows_of(job.run.iteration(0) / "evaluation" / "scores" / language, Score)
            won = evaluating.compare(own, pi_0, language, iteration, **options)
            rows += [won] if won else []
    unit.write_rows(rows, Measure)
    unit.finish(fingerprint, len(rows))


def _sample(job: Job, iteration: int, folder: Path, source: str, of: int, n: int, seeded_by: int) -> None:
    """Fill ``folder / responses`` with n responses of pi_{of} to each prompt."""
    model = policy(job, of)
    counted = settings_of("sample", job.recipe.sample, without=("n", "batch_size", "batch_tokens"))
    settings = {**counted, "n": n, "seed": job.recipe.seed, "iteration": seeded_by}
    shards = [
        Shard(unit, Fingerprint(settings, {"policy": model.identity, "prompts": digest_rows(part)}), part)
        for unit, part in cut(job, folder / "responses", source)
    ]

    def work(sampler: Sampler, shard: Shard, meter: Meter) -> list[Response]:
        return sampling.sample(
            shard.prompts, sampler, n=n, seed=job.recipe.seed, iteration=seeded_by, advance=meter.advance
        )

    label = f"iteration {iteration} {'evaluate: ' if source == 'heldout' else ''}sample"
    fill(job, label, shards, Response, n, lambda: job.engines.sampler(model), work)


def _score(job: Job, iteration: int, folder: Path, source: str, of: int, reward: scoring.RewardName) -> None:
    """Fill ``folder / scores`` with the rewards of ``folder / responses`` by pi_{of} against pi_I."""
    model, reference = policy(job, of), locate_model(job.recipe.models.initial)
    settings = settings_of("reward", job.recipe.reward, without=("batch_tokens", "logits_megabytes"))
    english = {prompt.prompt_id: prompt for prompt in stored_prompts(job, source, ENGLISH)}
    shards = []
    for unit, part in cut(job, folder / "scores", source):
        inputs = {
            "policy": model.identity,
            "reference": reference.identity,
            "responses": _responses_of(unit).digest,
            "prompts": digest_rows([*part, *(english[prompt.prompt_id] for prompt in part)]),
        }
        shards.append(Shard(unit, Fingerprint({**settings, "reward": reward}, inputs), part))

    def work(scorer: Scorer, shard: Shard, meter: Meter) -> list[Score]:
        texts = [*shard.prompts, *english.values()]
        rows = _responses_of(shard.unit).rows(Response)
        return scoring.score(rows, texts, scorer, beta=job.recipe.reward.beta, reward=reward, advance=meter.advance)

    label = f"iteration {iteration} {'evaluate: ' if source == 'heldout' else ''}score"
    fill(job, label, shards, Score, 1, lambda: job.engines.scorer(model, reference), work)


def _responses_of(scores: Unit) -> Unit:
    """Return the shard of responses that a shard of scores is about."""
    language = scores.path.parent
    return Unit(language.parent.parent / "responses" / language.name / scores.path.name)
