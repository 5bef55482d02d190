"""What a suite works with: settings, the models that are measured and their answers, and the judge."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from crosspref.data.records import Prompt, Response
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.errors import ModelError, RecipeError, RunError
from crosspref.models.locate import ModelFiles, locate_model
from crosspref.paths import existing, require_named
from crosspref.protocols import Advance, Sampler
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import AskingSettings, SampleSettings
from crosspref.reports.table import Report
from crosspref.run.job import Filling, Shard, Workers, asking_of, digest_rows, fill, find_policy, settings_of
from crosspref.run.layout import RunDirectory, open_run
from crosspref.run.owned import owned
from crosspref.run.progress import Reporter
from crosspref.run.store import DONE, PART, Fingerprint, Unit, write_text
from crosspref.run.verdicts import VERDICTS, VerdictLog
from crosspref.stages.sample import Drawing, sample, thinking_cut
from crosspref.suites import find_suite
from crosspref.suites.given import Given, read_given
from crosspref.suites.judge.judge import Judge
from crosspref.suites.settings import EvaluationSettings

RESULTS, NO_RESULTS = (".parquet", ".csv", ".json"), ("sheet.csv", PART, DONE)
"""How the names of a suite's results end, and how those of other files do: in a sheet people make choices."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model that is measured; ``files`` is None where it is not on this machine, and ``missing`` says why."""

    name: str
    files: ModelFiles | None
    missing: str = ""

    def identity(self, unit: Unit, part: str = "policy") -> str:
        """Return what identifies the model; if it is not here, what a unit's marker says of it under ``part``."""
        if self.files is not None:
            return self.files.identity
        return str(unit.read_marker()["parts"].get(part)) if unit.marker.exists() else "not here"


@dataclass(frozen=True, slots=True)
class Target:
    """What a person named: its models, and the folder of the results.

    ``answering`` is how they answer. ``run`` is the run whose models they are, or None for a model alone.
    """

    folder: Path
    models: list[Candidate]
    answering: EngineSettings
    run: RunDirectory | None = None


@dataclass(frozen=True, slots=True)
class _Shard(Shard):
    """Prompts that are answered at one temperature; None is that of the settings."""

    temperature: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a suite gets: see ``suites``.

    ``languages`` are the only ones to measure, or None for all that the suite's files have. ``replay`` is a file of
    verdicts with which nobody is asked; ``annotations`` are verdicts made elsewhere, for the suites that read them.
    ``given`` is where answers are that exist already; then no model answers. ``sources`` are the files of each model
    whose answers were read from there.
    """

    settings: EvaluationSettings
    target: Target
    reporter: Reporter
    languages: Sequence[str] | None = None
    replay: Path | None = None
    annotations: Path | None = None
    given: Path | None = None
    sources: dict[str, list[str]] = field(default_factory=dict, init=False)

    def run(self, suite: str) -> list[Report]:
        """Measure by a suite, write its report as Markdown, and return it.

        Raises:
            CrossprefError: a setting is wrong, files or models cannot be used, another process works in the folder, the
                folder holds other files, stored answers were made otherwise, or the judge does not answer or would
                cost more than allowed.
        """
        evaluate = find_suite(suite)
        if self.replay is not None and self.annotations is not None:
            raise RecipeError("--judge replay and --annotations contradict each other: both give the verdicts.")
        if self.given is not None and self.annotations is not None:
            raise RecipeError("--answers and --annotations contradict each other: both give the answers.")
        with owned(self.target.folder, _places(suite)):
            unit = Unit(self.target.folder / f"{suite}.md")
            unit.marker.unlink(missing_ok=True)  # the files are about to change whose digests it holds
            reports = evaluate(self)
            write_text(unit.path, "\n".join(report.markdown() for report in reports))
            unit = replace(unit, beside=tuple(_result_files(self.target.folder / suite)))
            unit.finish(Fingerprint({"suite": suite}), len(reports))
        return reports

    @cached_property
    def judge(self) -> Judge:
        """The judge, on the verdicts of the target's folder or on those that are replayed."""
        replayed = self.replay is not None
        log = VerdictLog.open(self.replay or self.target.folder / VERDICTS, writable=not replayed)
        return Judge(self.settings.judge, log, self.reporter, replayed=replayed)

    def given_answers(self, languages: Sequence[str] | None) -> list[Given]:
        """Return the answers that exist already, by model; none if models are to answer."""
        if self.given is None:
            return []
        found = read_given(self.given, languages, next((model.name for model in self.target.models), None))
        self.sources.update({given.model: given.files for given in found})
        return found

    def answers(
        self,
        suite: str,
        candidate: Candidate,
        prompts: Sequence[Prompt],
        temperatures: Sequence[float] | None = None,
    ) -> list[Response]:
        """Return a candidate's answers, one to each prompt; those that are stored already are not made again.

        The seed of an answer derives from the prompt's id and language alone. A prompt that is too long for the model
        has no answer. Shards are named by their prompts, so that other items, or fewer, are other shards.
        ``temperatures``, one per prompt, replace that of the settings; 0 is greedy.

        Raises:
            ModelError: answers are missing, and the model is not on this machine.
            RunError: stored answers were made with other settings, or by another model.
        """
        folder = self.target.folder / "answers" / suite / folder_name(candidate.name)
        given: Sequence[float | None] = [None] * len(prompts) if temperatures is None else temperatures
        groups: dict[tuple[str, float | None], list[Prompt]] = {}
        for prompt, temperature in zip(prompts, given, strict=True):
            groups.setdefault((prompt.language, temperature), []).append(prompt)
        size = self.target.answering.resources.shard_prompts
        shards = [
            self._shard(folder / language, candidate, start, group[start : start + size], temperature)
            for (language, temperature), group in groups.items()
            for start in range(0, len(group), size)
        ]
        try:
            is_done = all(shard.unit.finished(shard.fingerprint) for shard in shards)
        except RunError as error:
            raise RunError(f"{error}\nTo have {candidate.name} answer anew: rm -r {folder}") from error
        if not is_done:
            self._answer(shards, candidate, f"{candidate.name} answers {suite}")
        rows = [row for shard in shards for row in shard.unit.rows(Response)]
        if self.target.answering.asking.thinking == "cut":
            self.reporter.say(f"{candidate.name}: {thinking_cut(rows)}")
        return rows

    def _shard(
        self, folder: Path, candidate: Candidate, start: int, prompts: list[Prompt], temperature: float | None
    ) -> _Shard:
        answering, seed, greedy = self.target.answering, self.settings.seed, self.settings.answers.temperature == 0
        settings = {**settings_of("sample", answering.sample, without=("n",)), "seed": seed, "greedy": greedy}
        settings |= asking_of(answering.asking)
        if temperature is not None:
            settings |= {"sample.temperature": temperature, "greedy": temperature == 0}
        if answering.sample.engine == "server":
            settings["server.protocol"] = answering.server.protocol
        digest = digest_rows(prompts)
        unit = Unit(folder / f"{start:08d}-{digest[:8]}.parquet")
        inputs = {"policy": candidate.identity(unit), "prompts": digest}
        return _Shard(unit, Fingerprint(settings, inputs), prompts, temperature=temperature)

    def _answer(self, shards: Sequence[_Shard], candidate: Candidate, label: str) -> None:
        if candidate.files is None:
            raise ModelError(f"{candidate.name} is to answer, but is not here. {candidate.missing}")
        workers, seed = Workers(EngineFactory(self.target.answering), self.reporter), self.settings.seed

        def work(sampler: Sampler, shard: _Shard, advance: Advance) -> list[Response]:
            return sample(shard.prompts, sampler, Drawing(1, seed, 0, shard.temperature), advance)

        build = partial(workers.engines.sampler, candidate.files, greedy=self.settings.answers.temperature == 0)
        with workers.engines.executor().cluster():
            fill(workers, shards, Filling(label, Response, build, work))


def folder_name(model: str) -> str:
    """Return the name of the folder with a model's files."""
    return re.sub(r"[^\w.-]+", "_", model).strip("_.") or "model"


def _places(suite: str) -> list[str]:
    """Return where a suite's files lie that are written as a whole; * stands for any name."""
    tables = [f"{suite}/*.{ending}" for ending in ("parquet", "csv", "json")]
    by_model = [f"{suite}/*/*/*.json", f"{suite}/*/*/*/*.parquet", f"answers/{suite}/*/*/*.parquet"]
    return [f"{suite}.md", *tables, *by_model]


def _result_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name.endswith(RESULTS) and not path.name.endswith(NO_RESULTS))


def find_target(name: str, out: str | None, settings: EvaluationSettings, reporter: Reporter) -> Target:
    """Find a run or a model.

    Raises:
        RecipeError: a model needs ``out``, or a model of a run is named that it has not.
    """
    run, place = RunDirectory(name), existing(name)
    if existing(run.recipe) is not None:
        run, recipe = open_run(name)
        models = _of_run(run, recipe, settings.models, reporter)
        folder = run.suites if out is None else require_named(out)
        answering = replace(_answering(settings, recipe.models), roles=EngineSettings.of(recipe).roles)
        return Target(folder, models, answering, run)
    if place is not None and place.is_dir() and not (place / "config.json").exists() and run.iterations():
        raise RunError(f"{name} looks like a run, but there is no {run.recipe.name} in it.")
    if out is None:
        raise RecipeError(f"{name} is no run, so the results of this model need a place: name one with --out DIR.")
    if settings.models is not None:
        raise RecipeError("models chooses among the models of a run, and one model was named.")
    try:
        models = [Candidate(name, locate_model(name))]
    except ModelError as error:  # its answers may be stored, or judged elsewhere
        models = [Candidate(name, None, str(error))]
    return Target(require_named(out), models, _answering(settings))


def without_models(name: str | None, out: str | None, settings: EvaluationSettings) -> Target:
    """Return the target of answers that exist already; ``name`` is their model's, where they name none.

    Raises:
        RecipeError: there is no ``out``.
    """
    if out is None:
        raise RecipeError("--answers: the results need a place. Name one with --out DIR.")
    return Target(require_named(out), [Candidate(name, None)] if name else [], _answering(settings))


def _of_run(run: RunDirectory, recipe: Recipe, chosen: Sequence[str] | None, reporter: Reporter) -> list[Candidate]:
    """Return pi_I where there is one, pi_0, and the policy of each iteration that is done."""
    policies = {f"pi_{t}": t for t in range(recipe.iterations + 1)}
    known = [*(["pi_I"] if recipe.models.initial else []), *policies]
    unknown = [name for name in chosen or [] if name not in known]
    if unknown:
        raise RecipeError(f"models: {run.root} has no {', '.join(unknown)}. It has {', '.join(known)}.")
    trained = {name: t for name, t in policies.items() if t > 0 or recipe.models.policy is None}
    candidates = []
    for name in [name for name in known if chosen is None or name in chosen]:
        if name in trained and not run.iteration(trained[name]).policy.marker.exists():
            reporter.say(f"{name} is not measured: it has not been trained yet.")
            continue
        try:
            if name in policies:
                files = find_policy(recipe, run, policies[name])
            else:
                files = locate_model(recipe.models.initial or "")
            candidates.append(Candidate(name, files))
        except ModelError as error:
            candidates.append(Candidate(name, None, str(error)))
    if not candidates:
        raise RunError(f"No model of {run.root} is there to be measured yet.")
    return candidates


def _answering(settings: EvaluationSettings, models: AskingSettings | None = None) -> EngineSettings:
    """Return how the measured models answer; those of a run are asked as in the run, unless the settings say it."""
    asking, names = settings.answers, set(AskingSettings.model_fields)
    answers = asking.model_dump(exclude=names)
    if models is not None:
        unsaid = names - asking.model_fields_set - {"trust_remote_code"}
        asking = asking.model_copy(update={name: getattr(models, name) for name in unsaid})
    if settings.answers.temperature == 0:
        answers["temperature"] = 1.0  # a greedy sampler does not read it
    return EngineSettings(
        sample=SampleSettings(**answers),
        resources=settings.resources,
        vllm=settings.vllm,
        server=settings.server,
        ray=settings.ray,
        seed=settings.seed,
        asking=asking,
    )
