"""One run in a world: crosspref's recipe and phases, gold where a comparison needs it, and held-out answers."""

import hashlib
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from crosspref import algorithm
from crosspref.data.prompts import load_prompts
from crosspref.data.records import Instruction, Prompt, as_text
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.lab.world.files import WorldFiles
from crosspref.lab.world.world import LANGUAGE_OF, LANGUAGES, MAX_TOKENS, gold, meaning_of
from crosspref.models.locate import ModelFiles
from crosspref.protocols import RewardModel, Scorer
from crosspref.recipe.files import flatten, load_recipe, make_recipe
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import PromptSettings
from crosspref.run.job import Job, store_rows
from crosspref.run.layout import RunDirectory
from crosspref.run.phases import Phase, affected_by, changed_settings, settle_recipe
from crosspref.run.progress import Reporter
from crosspref.stages.evaluate import HELD_OUT
from crosspref.stages.sample import Drawing, fill_responses

Content = dict[str, Any]
"""A recipe's content, section by section."""

ANSWERS = 4
"""Held-out responses per prompt and language."""


def lab_recipe(files: WorldFiles, seed: int, threads: int) -> Content:
    """Return the laboratory's recipe: pi_0 from pi_I on English preferences, then two iterations with R_c."""
    return {
        "models": {"initial": str(files.initial)},
        "languages": list(LANGUAGES),
        "prompts": {"source": str(files.prompts), "limit": 160},
        "iterations": 2,
        "seed": seed,
        "align_english": {
            "preferences": str(files.preferences),
            "learning_rate": 3e-4,
            "batch_size": 32,
            "micro_batch_size": 32,
        },
        "sample": {"n": 8, "max_new_tokens": MAX_TOKENS, "batch_size": 1024, "batch_tokens": 1 << 17},
        "translate": {"max_new_tokens": MAX_TOKENS},
        # The annotator's bias is per token, and so is gold's dislike of many words.
        "length_penalty": {"unit": "tokens"},
        "train": {"learning_rate": 7e-5, "batch_size": 32, "micro_batch_size": 32},
        "resources": {
            "device": "cpu",
            "dtype": "float32",
            "threads": threads,
            "shard_prompts": 1024,
            "process_per_phase": False,
        },
    }


Rating = Callable[[str, str], float]
"""A reward of an instruction and a response."""


def gold_rating(instruction: str, response: str) -> float:
    """Return the true reward: the ceiling of what a reward can be."""
    language = LANGUAGE_OF[instruction.split()[0]]
    return gold(response, meaning_of(instruction, language), language)


def random_rating(instruction: str, response: str) -> float:
    """Return a number that knows nothing: the floor, which the NLL term alone gives on random pairs."""
    return random.Random(f"{instruction} {response}").random()  # noqa: S311


@dataclass(frozen=True, slots=True)
class RatingModel:
    """A rating in the place of a reward model (R_n)."""

    rating: Rating

    def rate(self, instruction: Instruction, responses: Sequence[str]) -> list[float]:
        """Return the rating of each response."""
        return [self.rating(as_text(instruction), response) for response in responses]

    def close(self) -> None:
        """Hold nothing."""


@dataclass(frozen=True, slots=True)
class Given:
    """What no recipe says: a reward that no model holds, and another number format for scoring alone."""

    rating: Rating | None = None
    scoring_dtype: Literal["float32", "bfloat16"] | None = None


class LabEngines(EngineFactory):
    """The recipe's engines, with what only a laboratory gives."""

    def __init__(self, settings: EngineSettings, given: Given) -> None:
        super().__init__(settings)
        self.given = given

    def reward_model(self, model: ModelFiles) -> RewardModel:
        """Return the given reward; which files stand for it does not matter."""
        return RatingModel(self.given.rating) if self.given.rating else super().reward_model(model)

    def scorer(self, policy: ModelFiles, reference: ModelFiles | None) -> Scorer:
        """Return the recipe's scorer, in the given number format."""
        if self.given.scoring_dtype is None:
            return super().scorer(policy, reference)
        resources = self.settings.resources.model_copy(update={"dtype": self.given.scoring_dtype})
        return EngineFactory(replace(self.settings, resources=resources)).scorer(policy, reference)


def run(
    content: Content,
    heldout: Path,
    out: Path,
    reporter: Reporter,
    given: Given = Given(),
    base: Path | None = None,
) -> Job:
    """Run a recipe in a world, or resume it, and let every policy answer the held-out prompts.

    Args:
        content: the recipe.
        heldout: the held-out prompts.
        out: the run directory.
        reporter: shows progress.
        given: what no recipe says.
        base: another run of the same world, whose results are copied where no setting that differs affects them.
    """
    recipe, directory = make_recipe(content), RunDirectory(out)
    job = Job(recipe, directory, LabEngines(EngineSettings.of(recipe), given), reporter)

    def execute(phase: Phase) -> None:
        phase.perform(job, phase.iteration)
        if phase.trains:
            table = directory.iteration(phase.iteration).evaluation.responses
            label = f"iteration {phase.iteration} evaluate: sample"
            fill_responses(job, label, table, job.policy(phase.iteration), Drawing(ANSWERS, recipe.seed, HELD_OUT))

    with directory.locked():
        if base is not None and not directory.recipe.exists():
            _copy_results(RunDirectory(base), directory, recipe, scores=given.scoring_dtype is None)
        settle_recipe(directory, recipe, algorithm.phases, reporter.say)
        held_out = load_prompts(PromptSettings(source=str(heldout)), LANGUAGES).prompts
        for language in LANGUAGES:
            prompts = [row for row in held_out if row.language == language]
            store_rows(directory.heldout.unit(language), prompts, Prompt, {"source": str(heldout)})
        algorithm.align(job, execute)
    return job


def _copy_results(base: RunDirectory, run: RunDirectory, recipe: Recipe, *, scores: bool) -> None:
    """Copy what both runs have in common: pi_0, and the first iteration's responses and scores.

    If something is copied that differs after all, its fingerprint stops the run.
    """
    changed, phases = changed_settings(load_recipe(base.recipe), recipe), algorithm.phases(recipe)
    changed_phases = {(phase.name, phase.iteration) for key in changed for phase, _ in affected_by(phases, key)}
    first = base.iteration(1)
    folders = {
        ("prompts", 0): [base.prompts.folder, base.heldout.folder],
        ("align_english", 0): [base.iteration(0).folder],
        ("sample", 1): [first.responses.folder],
        ("score", 1): [first.rewards] if scores else [],
    }
    for phase, copied in folders.items():
        for folder in copied:
            if phase not in changed_phases and folder.exists():
                shutil.copytree(folder, run.root / folder.relative_to(base.root), dirs_exist_ok=True)


def settings_digest(content: Content) -> str:
    """Return a short hash of a recipe's settings, whatever the machine's paths are."""
    kept = {key: value for key, value in flatten(make_recipe(content)).items() if "/" not in str(value)}
    return hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()[:10]
