"""What crosspref offers to Python: ``align`` and ``ImplicitReward``."""

import json
import operator
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crosspref import algorithm, errors
from crosspref.data.messages import read_instruction
from crosspref.data.records import Instruction, Response
from crosspref.engines import EngineFactory, EngineSettings, find_engine
from crosspref.errors import CrossprefError, DataError, ModelError, RecipeError, RunError, raise_all
from crosspref.languages import Prefix, crosslingual_instruction
from crosspref.maths.reward import finite, implicit_reward
from crosspref.models.locate import (
    ModelFiles,
    locate_model,
    require_different,
    require_fitting_lora,
    require_one_output,
)
from crosspref.models.tokenizers import require_same_tokenizer
from crosspref.protocols import Engines
from crosspref.recipe.files import check_settings, dump_recipe, make_recipe
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import REFERENCE_FREE, AskingSettings, ResourceSettings, RewardSettings
from crosspref.run.job import Job
from crosspref.run.layout import RunDirectory, given_recipe, open_run
from crosspref.run.log import kept_in
from crosspref.run.moved import find_base_again
from crosspref.run.phases import Phase, PhaseStatus, phase_status, settle_recipe
from crosspref.run.processes import ask_child, ending, launch_command, run_in_child
from crosspref.run.progress import Reporter, Schedule
from crosspref.run.ranks import alone, is_launched
from crosspref.run.verify import Findings, verify_run


@alone()
def align(
    recipe: Recipe | str | Path | dict[str, Any],
    run_dir: str | Path,
    *,
    reporter: Reporter | None = None,
    engines: Engines | None = None,
    expected: Mapping[tuple[str, int], float] | None = None,
) -> Path:
    """Run Algorithm 1 and return the directory of the aligned policy, pi_T.

    Call it again with the same arguments to resume a run that was stopped.

    Args:
        recipe: a recipe, its file, or its content as a dictionary.
        run_dir: where everything is stored; made if it does not exist.
        reporter: shows progress; on the standard error output if left out.
        engines: builds the engines, instead of those that the recipe names. All phases then run in this process.
        expected: about how long each phase takes, by (name, iteration), in any unit: what the first phases really took
            then tells how long the rest of the run will take.

    Raises:
        RecipeError: a setting is wrong.
        DataError: prompts or preferences cannot be used.
        ModelError: a model cannot be read, or policy and reference do not belong together.
        RunError: the run was begun with another recipe, another process works in it, a link leads out of it, or the
            directory is not empty and holds no run.
    """
    if not isinstance(recipe, Recipe):
        recipe = make_recipe(recipe) if isinstance(recipe, dict) else given_recipe(recipe)
    run = RunDirectory(run_dir)
    job = Job(recipe, run, engines or EngineFactory(EngineSettings.of(recipe)), reporter or Reporter())
    models = check_models(recipe)
    launch_command(recipe.resources)
    with run.locked():
        settle_recipe(run, recipe, algorithm.phases, job.reporter.say)
        find_base_again(run, recipe)
        apart = engines is None and recipe.resources.process_per_phase
        if engines is None and not _is_done(job):
            lines, faults = examine(recipe, apart=apart, convert=True)
            raise_all(faults)
            for line in lines:
                if line.startswith("note"):
                    job.reporter.say(line)
        with job.engines.executor().cluster():
            return algorithm.align(job, _executor(job, expected or {}, models, apart=apart))


def _is_done(job: Job) -> bool:
    phases = algorithm.phases(job.recipe)
    return all(status.is_done for status in phase_status(job.run, phases, job.recipe.resources.shard_prompts))


def examine(recipe: Recipe, *, apart: bool, convert: bool = False) -> tuple[list[str], list[CrossprefError]]:
    """Look for what would stop a run later, with the libraries that it will use.

    Args:
        recipe: the recipe.
        apart: whether to do it in a child process, so that this one imports no heavy library.
        convert: whether GGUF files are converted into the cache, as a run begins; else they are not examined.

    Returns:
        Lines of what was found, and the errors.
    """
    if not apart:
        files: dict[str, ModelFiles] = {}
        faults: list[CrossprefError] = []
        try:
            files = check_models(recipe)
        except CrossprefError as fault:
            faults.append(fault)
        examination = find_engine("examination", "transformers")(recipe, files, convert=convert)
        return examination.lines, faults + examination.faults
    options = ["--convert"] if convert else []
    found, told = json.loads(ask_child(["examine", *options], dump_recipe(recipe)))
    return found, [getattr(errors, kind)(*arguments) for kind, arguments in told]


def check_models(recipe: Recipe) -> dict[str, ModelFiles]:
    """Find the recipe's models and compare what must fit, without reading any weights.

    Raises:
        ModelError: one is not there, or they do not belong together.
    """
    models = {role: locate_model(name, weights=False) for role, name in recipe.model_names.items()}
    if "policy" in models and "initial" in models:
        policy, initial = models["policy"], models["initial"]
        require_different(policy, initial)
        if not (policy.gguf_file or initial.gguf_file):
            require_same_tokenizer(policy.directory, initial.directory, (policy.name, initial.name))
    for role, training in (("initial", recipe.align_english), ("policy", recipe.train)):
        if role in models and training is not None and training.lora is not None:
            require_fitting_lora(models[role], training.lora)
    if "reward model" in models:
        require_one_output(models["reward model"])
    return models


def status(run_dir: str | Path) -> list[PhaseStatus]:
    """Return how far each phase of a run is.

    Raises:
        RunError: there is no run in the directory.
    """
    run, recipe = open_run(run_dir)
    return list(phase_status(run, algorithm.phases(recipe), recipe.resources.shard_prompts))


def verify(run_dir: str | Path) -> Findings:
    """Read everything of a run and return what is damaged, which phase makes it again, and what was read.

    Markers are compared with their seals, files with their digests, and rows with those that they were made from. Pairs
    are selected again. Nothing is written, no link is followed out of the run, and no model is loaded.

    Raises:
        RunError: there is no run in the directory.
    """
    return verify_run(run_dir, algorithm.phases, lambda recipe: EngineFactory(EngineSettings.of(recipe)))


def run_phase(run_dir: str | Path, name: str, iteration: int, reporter: Reporter | None = None) -> None:
    """Run one phase of a run that another process holds; that process's end ends this one.

    Raises:
        RecipeError: the run has no such phase.
    """
    run, recipe = open_run(run_dir)
    phases = {(phase.name, phase.iteration): phase for phase in algorithm.phases(recipe)}
    if (name, iteration) not in phases:
        known = ", ".join(dict.fromkeys(phase.name for phase in phases.values()))
        raise RecipeError(f"There is no phase {name!r} in iteration {iteration}. Known: {known}")
    job = Job(recipe, run, EngineFactory(EngineSettings.of(recipe)), reporter or Reporter())
    with kept_in(run.log):
        _perform(job, phases[name, iteration])


def _perform(job: Job, phase: Phase) -> None:
    """Run a phase, with those that train on Ray's workers if the recipe says so; each of them comes here again."""
    together = job.recipe.resources.executor == "ray" and phase.trains and not is_launched()
    if together and not job.run.iteration(phase.iteration).policy.marker.exists():
        workers = job.recipe.ray.workers
        job.reporter.say(f"iteration {phase.iteration} {phase.name}: on {workers} workers of Ray")
        same_phase = partial(run_phase, job.run.root, phase.name, phase.iteration)
        job.engines.executor().train_together(same_phase, job.run.root)
    else:
        phase.perform(job, phase.iteration)


def _require_unchanged(models: Mapping[str, ModelFiles]) -> None:
    """Raise ModelError if models are no longer what they were when the command began."""
    for role, files in models.items():
        if locate_model(files.name, weights=False).identity != files.identity:
            raise ModelError(
                f"The files of the {role} model {files.name!r} have changed since this command began, so what comes "
                "now would not belong to what is there. Put them back and run the command again, or begin a new run."
            )


def _executor(
    job: Job, expected: Mapping[tuple[str, int], float], models: Mapping[str, ModelFiles], *, apart: bool
) -> Callable[[Phase], None]:
    """Return what runs a phase: here, or in a process of its own where memory must be given back."""
    schedule = Schedule(job.reporter, len(algorithm.phases(job.recipe)), expected)

    def execute(phase: Phase) -> None:
        started = time.monotonic()
        [before] = phase_status(job.run, [phase], job.recipe.resources.shard_prompts)
        if not before.is_done:
            _require_unchanged(models)
        with schedule.phase(phase.name, phase.iteration, done=before.done, is_done=before.is_done):
            if apart:
                peak = _perform_in_child(job, phase)
            else:
                _perform(job, phase)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        job.run.log_phase(
            {
                "phase": phase.name,
                "iteration": phase.iteration,
                "seconds": round(time.monotonic() - started, 2),
                "peak_memory_mb": round(peak / 1024),
            }
        )

    return execute


def _perform_in_child(job: Job, phase: Phase) -> int:
    """Run a phase in a child process and return its peak memory in KiB."""
    python = launch_command(job.recipe.resources) if phase.trains else [sys.executable]
    arguments = ["-m", "crosspref", "phase", str(job.run.root), phase.name, str(phase.iteration)]
    code, peak = run_in_child([*python, *arguments])
    if code:
        raise RunError(f"The phase {phase.name} of iteration {phase.iteration} {ending(code)}")
    return peak


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """The implicit reward of one response, with nats, token and character counts.

    ``reference_logprob`` is None for a reward without a reference; ``reward`` is in the unit of its formula in
    ``crosspref.maths.reward``, and None for a reward per token of a response without tokens, and for one that is
    infinite.
    """

    policy_logprob: float
    reference_logprob: float | None
    tokens: int
    characters: int
    reward: float | None


class ImplicitReward:
    """The reward that an English-aligned model holds (Eq. 6), for responses in any language (Eq. 8, 9 with alpha = 0).

    Args:
        policy: the English-aligned model pi_0: a directory, a hub id, or ``package:NAME/path``.
        reference: the model that it was aligned from, pi_I; None for simpo and orpo, which have none.
        beta: the beta with which it was aligned.
        algorithm: by which algorithm it was aligned: dpo, kto, ipo, simpo or orpo.
        device: ``auto``, ``cpu``, ``cuda`` ...
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        asking: how the models are asked, as in the section ``models`` of a recipe: chat_template_kwargs, date,
            thinking, trust_remote_code.

    Raises:
        ModelError: a model cannot be read, or they differ in tokenizer or chat template, or are one model.
        RecipeError: a setting or the algorithm is unknown, or the algorithm needs a reference where there is none, or
            the other way round.
    """

    def __init__(
        self,
        policy: str,
        reference: str | None = None,
        beta: float = 0.1,
        *,
        algorithm: str = "dpo",
        device: str = "auto",
        dtype: str = "auto",
        **asking: Any,
    ) -> None:
        where = "ImplicitReward"
        reward = check_settings(RewardSettings, {"beta": beta, "algorithm": algorithm}, where)
        resources = check_settings(ResourceSettings, {"device": device, "dtype": dtype}, where)
        how_asked = check_settings(AskingSettings, asking, where)
        if (reference is None) != (reward.algorithm in REFERENCE_FREE):
            advice = "give the model it was aligned from" if reference is None else "leave it out"
            has = "has no" if reward.algorithm in REFERENCE_FREE else "needs a"
            raise RecipeError(f"The reward that {algorithm} leaves {has} reference: {advice}.")
        self.beta, self.algorithm = beta, algorithm
        engines = EngineFactory(EngineSettings(reward=reward, resources=resources, asking=how_asked))
        models = locate_model(policy), None if reference is None else locate_model(reference)
        require_different(*models)
        self._scorer: Any = engines.scorer(*models)

    def score(
        self,
        instruction: Instruction,
        responses: Sequence[str | Sequence[int]],
        *,
        language: str,
        ended: bool = True,
        prefix: Prefix = None,
    ) -> list[ScoredResponse]:
        """Score responses to one English instruction.

        Args:
            instruction: the instruction in English, whatever the responses' language: a text, or chat messages of which
                the last is the user's.
            responses: texts, or token ids as sampled (with the end-of-turn token if they ended).
            language: tag of the responses' language; unless it is ``en`` they are conditioned on
                "answer ... using only {language}" and the instruction (Eq. 8).
            ended: whether texts are whole answers, whose end-of-turn token then counts.
            prefix: another text in the place of "answer ... using only {language}", as ``reward.prefix`` of a recipe.

        Returns:
            One result per response, in order.

        Raises:
            DataError: the language is unknown, the messages are no conversation that a user may begin or continue, or
                a response is neither a text nor token ids.
        """
        english = instruction if isinstance(instruction, str) else read_instruction(instruction)
        rows = _given_responses(responses, language, ended)
        scored = self._scorer.score(crosslingual_instruction(english, language, prefix), rows)
        rewards = [
            implicit_reward(self.algorithm, logprobs.policy, logprobs.reference, logprobs.tokens, self.beta)
            for logprobs in scored
        ]
        return [
            ScoredResponse(
                logprobs.policy,
                logprobs.reference,
                logprobs.tokens,
                len(self._text(row)),
                finite(value),
            )
            for row, logprobs, value in zip(rows, scored, rewards, strict=True)
        ]

    def _text(self, response: Response) -> str:
        """Return the text of a response, without what ended it."""
        ids = response.token_ids
        if ids is None:
            return response.text
        return str(self._scorer.tokenizer.text(ids[:-1] if ids[-1:] and ids[-1] in self._scorer.stops else ids))


def _given_responses(responses: Sequence[str | Sequence[int]], language: str, ended: bool) -> list[Response]:
    """Return what Python code gave to be scored as responses to one prompt."""
    if isinstance(responses, str | bytes):
        raise DataError("The responses must be a list of texts or of token ids, not one text: put it into a list.")
    rows = []
    for index, response in enumerate(responses):
        text, ids = (response, None) if isinstance(response, str) else ("", _token_ids(response, index))
        rows.append(Response("", language, index, text, ids, "stop" if ended else "length", None))
    return rows


def _token_ids(response: Any, index: int) -> list[int]:
    try:
        if isinstance(response, bytes):
            raise TypeError
        return [operator.index(token) for token in response]
    except TypeError as error:
        raise DataError(
            f"Response {index} is neither a text nor a list of token ids (whole numbers): {response!r:.80}"
        ) from error
