"""Algorithm 1 of "Implicit Cross-Lingual Rewarding", as the one list of phases of a run. Read this file first.

    for t = 1..T:
        sample    N responses y ~ pi_{t-1}(x) per prompt and language                                       (Eq. 7)
        score     R = beta log pi_{t-1}(y | G(x)) / pi_I(y | G(x)), G(x) the parallel English instruction   (Eq. 8, 9)
        select    best and worst under R - alpha |y|, alpha solved per language                             (Eq. 10, 15)
        train     pi_t from pi_{t-1} by DPO+NLL, with pi_{t-1} as training reference                        (Eq. 11)

The recipe chooses what the paper compares this with: the rewards R_m, R_t (for which responses are translated) and R_n;
the rewards of models that were aligned otherwise than by DPO; KTO and other losses; and pairs by language imbalance
(A.5), where a greedy answer and a translation make a pair without a score. Beyond the paper, stage 0 makes pi_0 from
pi_I where there is no English-aligned model, several rewards of the same responses are compared, and every policy is
measured on held-out prompts. Judged evaluation is not here, but in ``suites``.

Each phase reads and writes the run directory. It does only the units that are not done yet, so running it again resumes
it. Running, status, plan, and what a changed recipe invalidates all follow from this list: a new phase is one entry.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from crosspref.recipe.schema import Recipe
from crosspref.run.job import Job
from crosspref.run.phases import Phase
from crosspref.stages import evaluate, prompts, sample, score, train, translate
from crosspref.stages.select import phase as select


def phases(recipe: Recipe) -> list[Phase]:
    """Return the phases of a run in order. The module of each, in ``stages``, says what it does and depends on."""
    return list(_phases(recipe))


def _phases(recipe: Recipe) -> Iterator[Phase]:
    yield prompts.phase(recipe)
    if recipe.align_english is not None:
        if recipe.align_english.precompute_reference:
            yield train.reference_phase(recipe, 0)
        yield train.phase(0)
    if recipe.evaluate.prompts is not None:
        yield evaluate.phase(recipe, 0)
    for iteration in range(1, recipe.iterations + 1):
        yield sample.phase(recipe, iteration)
        if recipe.needs_translations:
            yield translate.phase(recipe, iteration)
        if recipe.language_imbalance is None:
            yield score.phase(recipe, iteration)
        yield select.phase(recipe, iteration)
        if recipe.train.precompute_reference:
            yield train.reference_phase(recipe, iteration)
        yield train.phase(iteration)
        if recipe.evaluate.prompts is not None:
            yield evaluate.phase(recipe, iteration)


def align(job: Job, execute: Callable[[Phase], None]) -> Path:
    """Run Algorithm 1 and return the directory of pi_T; ``execute`` runs one phase, here or in another process."""
    for phase in phases(job.recipe):
        execute(phase)
    return job.policy(job.recipe.iterations).own
