"""Algorithm 1 of "Implicit Cross-Lingual Rewarding", and how its steps lie in a run directory. Read this file first.

    for t = 1..T:
        sample    N responses y ~ pi_{t-1}(x) per prompt and language                                       (Eq. 7)
        score     R = beta log pi_{t-1}(y | G(x)) / pi_I(y | G(x)), G(x) the parallel English instruction   (Eq. 8, 9)
        select    best and worst under R - alpha |y|, alpha solved per language                             (Eq. 10, 15)
        train     pi_t from pi_{t-1} by DPO+NLL, with pi_{t-1} as training reference                        (Eq. 11)

What the paper compares this with is chosen in the recipe: the rewards R_m, R_t (for which responses are translated)
and R_n; the rewards of models that were aligned otherwise than by DPO; KTO and other losses; and pairs by language
imbalance (A.5), where a greedy answer and a translation make a pair without a score. Here beyond the paper: stage 0
makes pi_0 from pi_I where no English-aligned model is at hand, several rewards of the same responses are compared, and
every policy is measured on held-out prompts. Not here: judged evaluation.

Each step is a phase: a function of a job and an iteration, whose input and output lie in the run directory. It does
only the units that are not done yet, so running it again is resuming it.
"""

from collections.abc import Callable
from pathlib import Path

from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import load_prompts
from crosspref.data.records import Dropped, Measure, Pair, Prompt, Response, Score
from crosspref.languages import ENGLISH
from crosspref.maths.reward import PER_TOKEN
from crosspref.models.locate import ModelFiles, locate_model
from crosspref.run.job import Job, Phase, policy, rows_of, store_rows, train_policy, units_of
from crosspref.run.store import Fingerprint, Unit, digest_of
from crosspref.stages import evaluate as evaluating
from crosspref.stages.pairing import make_imbalance_pairs, make_reward_pairs
from crosspref.stages.references import fill_references, referenced
from crosspref.stages.tables import fill_responses, fill_scores, fill_translations, reward_reference

HELD_OUT = -1
"""The iteration that seeds held-out responses: the same for every policy, so that they differ by the policy alone."""


def align(job: Job, execute: Callable[[Phase, int], None]) -> Path:
    """Run Algorithm 1 and return the directory of pi_T; ``execute`` runs one phase, here or in another process."""
    execute(prompts, 0)
    if job.recipe.align_english:
        if job.recipe.align_english.precompute_reference:
            execute(reference, 0)
        execute(align_english, 0)
    execute(evaluate, 0)
    for iteration in range(1, job.recipe.iterations + 1):
        execute(sample, iteration)
        if job.recipe.needs_translations:
            execute(translate, iteration)
        if not job.recipe.language_imbalance:
            execute(score, iteration)
        execute(select, iteration)
        if job.recipe.train.precompute_reference:
            execute(reference, iteration)
        execute(train, iteration)
        execute(evaluate, iteration)
    return policy(job, job.recipe.iterations).own


def prompts(job: Job, _: int) -> None:
    """Read, check and store the parallel prompts, for training and held out."""
    for name, settings in (("prompts", job.recipe.prompts), ("heldout", job.recipe.held_out)):
        if settings is None:
            continue
        source, loaded = settings.source, load_prompts(settings, job.recipe.languages)
        for language in dict.fromkeys([ENGLISH, *job.recipe.languages]):
            rows = [prompt for prompt in loaded.prompts if prompt.language == language]
            store_rows(job.run.prompts(name, language), rows, Prompt, {"source": source})
            job.reporter.say(f"{name} {language}: {len(rows)}")
        store_rows(job.run.prompts(name, "dropped"), loaded.dropped, Dropped, {"source": source})
        if loaded.dropped:
            job.reporter.say(f"{name}: {len(loaded.dropped)} dropped, see {job.run.prompts(name, 'dropped').path}")


def align_english(job: Job, _: int) -> None:
    """Stage 0: make pi_0 from pi_I on English preferences."""
    settings = job.recipe.align_english
    if settings is not None:
        initial = locate_model(job.recipe.models.initial or "")
        pairs = load_preferences(settings.preferences)
        if settings.precompute_reference:
            pairs = referenced(job, 0, ENGLISH).rows(Pair)
        train_policy(job, 0, pairs, "align_english", settings, initial)


def sample(job: Job, iteration: int) -> None:
    """Eq. 7: draw N responses to every training prompt from pi_{t-1}; for language imbalance, its greedy answer."""
    greedy = job.recipe.language_imbalance is not None
    n = 1 if greedy else job.recipe.sample.n
    fill_responses(job, iteration, job.run.iteration(iteration), "prompts", iteration - 1, n, iteration, greedy=greedy)


def translate(job: Job, iteration: int) -> None:
    """Eq. 14: translate the responses into English; for language imbalance also the English answers into l (A.5)."""
    fill_translations(job, iteration)


def score(job: Job, iteration: int) -> None:
    """Eq. 8, 9, 12, 13: score every response by pi_{t-1} against the reward's reference, by every reward asked for."""
    reward, folder = job.recipe.reward, job.run.iteration(iteration)
    models = policy(job, iteration - 1), reward_reference(job, iteration)
    fill_scores(job, f"iteration {iteration} score", folder, "prompts", models, reward.names, reward)


def select(job: Job, iteration: int) -> None:
    """Eq. 10, 15: solve the length penalty per language and take the best and the worst response to each prompt."""
    if job.recipe.language_imbalance:
        make_imbalance_pairs(job, iteration)
    else:
        make_reward_pairs(job, iteration)


def reference(job: Job, iteration: int) -> None:
    """Compute what the training reference says of the pairs, so that training need not hold it beside the policy."""
    stage_0, settings = job.recipe.align_english, job.recipe.train
    if iteration == 0 and stage_0 is not None:
        pairs = {ENGLISH: load_preferences(stage_0.preferences)}
        fill_references(job, 0, pairs, stage_0, locate_model(job.recipe.models.initial or ""))
    else:
        folder = job.run.iteration(iteration) / "pairs"
        pairs = {language: Unit(folder / f"{language}.parquet").rows(Pair) for language in job.recipe.languages}
        fill_references(job, iteration, pairs, settings, policy(job, iteration - 1), _training_reference(job))


def train(job: Job, iteration: int) -> None:
    """Eq. 11 or 16: train pi_t from pi_{t-1} on the pairs of all languages."""
    settings = job.recipe.train
    folder = job.run.iteration(iteration) / ("referenced_pairs" if settings.precompute_reference else "pairs")
    pairs = [pair for language in job.recipe.languages for pair in Unit(folder / f"{language}.parquet").rows(Pair)]
    train_policy(job, iteration, pairs, "train", settings, policy(job, iteration - 1), _training_reference(job))


def _training_reference(job: Job) -> ModelFiles | None:
    """Return pi_I if the recipe names it; else None: pi_{t-1} is its own training reference."""
    return locate_model(job.recipe.models.initial or "") if job.recipe.train.reference == "initial" else None


def evaluate(job: Job, iteration: int) -> None:
    """Measure pi_t on the held-out prompts, against pi_0."""
    recipe, folder = job.recipe, job.run.iteration(iteration) / "evaluation"
    if recipe.evaluate.prompts is None:
        return
    fill_responses(job, iteration, folder, "heldout", iteration, recipe.evaluate.n, HELD_OUT)
    scored = folder / "scores" / "multilingual"
    if recipe.has_implicit_reward:
        # Every policy is scored by the same two models, pi_0 and pi_I, on the prompt in its own language.
        models = policy(job, 0), reward_reference(job, 1)
        exact = recipe.reward.model_copy(update={"counting": "exact"})
        fill_scores(job, f"iteration {iteration} evaluate: score", folder, "heldout", models, ["multilingual"], exact)
    options = {"resamples": recipe.evaluate.resamples, "seed": recipe.seed}
    units = [
        unit for name in (folder / "responses", scored) for tag in recipe.languages for unit in units_of(name / tag)
    ]
    fingerprint = Fingerprint(options, {"responses and scores": digest_of([unit.digest for unit in units])})
    unit = Unit(folder / "measures.parquet")
    if unit.finished(fingerprint):
        return
    rows: list[Measure] = []
    for language in recipe.languages:
        responses = rows_of(folder / "responses" / language, Response)
        identify = job.engines.identifier(language)
        rows += evaluating.measure(responses, language, iteration, identify=identify, **options)
        if iteration:
            own = rows_of(scored / language, Score)
            pi_0 = rows_of(job.run.iteration(0) / scored.relative_to(folder.parent) / language, Score)
            per_token = recipe.reward.algorithm in PER_TOKEN
            won = evaluating.compare(own, pi_0, language, iteration, per_token=per_token, **options)
            rows += [won] if won else []
    unit.write_rows(rows, Measure)
    unit.finish(fingerprint, len(rows))
