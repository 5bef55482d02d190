"""What is measured: the models of a run, or any model by its name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crosspref.engines import EngineSettings
from crosspref.errors import ModelError, RecipeError, RunError
from crosspref.models.locate import ModelFiles, locate_model
from crosspref.recipe.files import load_recipe
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import SampleSettings
from crosspref.run.job import find_policy
from crosspref.run.layout import RunDirectory
from crosspref.run.progress import Reporter
from crosspref.run.store import Unit
from crosspref.suites.settings import EvaluationSettings


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model that is measured; ``files`` is None where it is not on this machine, and ``missing`` says why."""

    name: str
    files: ModelFiles | None
    missing: str = ""

    @property
    def slug(self) -> str:
        """Its name as that of a folder."""
        return re.sub(r"[^\w.-]+", "_", self.name).strip("_.") or "model"

    def identity(self, unit: Unit, part: str = "policy") -> str:
        """Return what identifies the model; if it is not here, what a unit's marker says of it under ``part``."""
        if self.files is not None:
            return self.files.identity
        return str(unit.read_marker()["parts"].get(part)) if unit.marker.exists() else "not here"


@dataclass(frozen=True, slots=True)
class Target:
    """What a person named: its models, and the folder of the results.

    ``answering`` is how they answer. ``run`` is the run whose models they are, and ``languages`` are its languages;
    both are None for a model alone.
    """

    folder: Path
    models: list[Candidate]
    answering: EngineSettings
    run: RunDirectory | None = None
    languages: Sequence[str] | None = None


def find_target(name: str, out: str | None, settings: EvaluationSettings, reporter: Reporter) -> Target:
    """Find a run or a model.

    Raises:
        RecipeError: a model needs ``out``, or a model of a run is named that it has not.
    """
    run = RunDirectory(name)
    if run.recipe.is_file():
        recipe = load_recipe(run.recipe)
        models = _of_run(run, recipe, settings.models, reporter)
        folder = Path(out) if out else run.suites
        answering = replace(_answering(settings), roles=EngineSettings.of(recipe).roles)
        return Target(folder, models, answering, run, recipe.languages)
    if Path(name).is_dir() and not (Path(name) / "config.json").exists() and any(Path(name).glob("iteration_*")):
        raise RunError(f"{name} looks like a run, but there is no recipe.yaml in it.")
    if out is None:
        raise RecipeError(f"{name} is no run, so the results of this model need a place: name one with --out DIR.")
    if settings.models is not None:
        raise RecipeError("models chooses among the models of a run, and one model was named.")
    try:
        models = [Candidate(name, locate_model(name))]
    except ModelError as error:  # its answers may be stored, or judged elsewhere
        models = [Candidate(name, None, str(error))]
    return Target(Path(out), models, _answering(settings))


def _of_run(run: RunDirectory, recipe: Recipe, chosen: Sequence[str] | None, reporter: Reporter) -> list[Candidate]:
    """Return pi_I where there is one, pi_0, and the policy of each iteration that is done."""
    known = [*(["pi_I"] if recipe.models.initial else []), *(f"pi_{t}" for t in range(recipe.iterations + 1))]
    unknown = [name for name in chosen or [] if name not in known]
    if unknown:
        raise RecipeError(f"models: {run.root} has no {', '.join(unknown)}. It has {', '.join(known)}.")
    candidates = []
    for name in [name for name in known if chosen is None or name in chosen]:
        number = None if name == "pi_I" else int(name.removeprefix("pi_"))
        trained = number is not None and (number > 0 or recipe.models.policy is None)
        if trained and number is not None and not run.iteration(number).policy.marker.exists():
            reporter.say(f"{name} is not measured: it has not been trained yet.")
            continue
        try:
            initial = recipe.models.initial or ""
            files = locate_model(initial) if number is None else find_policy(recipe, run, number)
            candidates.append(Candidate(name, files))
        except ModelError as error:
            candidates.append(Candidate(name, None, str(error)))
    if not candidates:
        raise RunError(f"No model of {run.root} is there to be measured yet.")
    return candidates


def _answering(settings: EvaluationSettings) -> EngineSettings:
    """Return how the measured models answer."""
    answers = settings.answers.model_dump(exclude={"trust_remote_code"})
    if settings.answers.temperature == 0:
        answers["temperature"] = 1.0  # a greedy sampler does not read it
    return EngineSettings(
        sample=SampleSettings(**answers),
        resources=settings.resources,
        vllm=settings.vllm,
        server=settings.server,
        ray=settings.ray,
        seed=settings.seed,
        trust_remote_code=settings.answers.trust_remote_code,
    )
