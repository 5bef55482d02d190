"""What a suite works with: settings, models and their answers, and the judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from crosspref.data.records import Prompt, Response
from crosspref.engines import EngineFactory
from crosspref.errors import ModelError, RecipeError, RunError
from crosspref.protocols import Advance, Sampler
from crosspref.reports.table import Report
from crosspref.run.job import Filling, Shard, Workers, digest_rows, fill, settings_of
from crosspref.run.layout import RunDirectory
from crosspref.run.progress import Reporter
from crosspref.run.store import Fingerprint, Unit, write_text
from crosspref.stages.sample import Drawing, sample
from crosspref.suites import find_suite
from crosspref.suites.judge.judge import Judge
from crosspref.suites.judge.verdicts import VerdictLog
from crosspref.suites.settings import EvaluationSettings
from crosspref.suites.targets import Candidate, Target

VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True, slots=True)
class _Shard(Shard):
    """Prompts that are answered at one temperature; None is that of the settings."""

    temperature: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a suite gets: see ``suites``.

    ``languages`` are the only ones to measure, or None for all that the suite's files have. ``replay`` is a file of
    verdicts with which nobody is asked; ``annotations`` are verdicts made elsewhere, for the suites that read them.
    """

    settings: EvaluationSettings
    target: Target
    reporter: Reporter
    languages: Sequence[str] | None = None
    replay: Path | None = None
    annotations: Path | None = None

    def run(self, suite: str) -> list[Report]:
        """Measure by a suite, write its report as Markdown, and return it.

        Raises:
            CrossprefError: a setting is wrong, files or models cannot be used, another process works in the run, stored
                answers were made otherwise, or the judge does not answer or would cost more than allowed.
        """
        evaluate = find_suite(suite)
        if self.replay is not None and self.annotations is not None:
            raise RecipeError("--judge replay and --annotations contradict each other: both give the verdicts.")
        with RunDirectory(self.target.folder).locked():
            reports = evaluate(self)
            write_text(self.target.folder / f"{suite}.md", "\n".join(report.markdown() for report in reports))
        return reports

    @cached_property
    def judge(self) -> Judge:
        """The judge, on the verdicts of the target's folder or on those that are replayed."""
        replayed = self.replay is not None
        log = VerdictLog.open(self.replay or self.target.folder / VERDICTS, writable=not replayed)
        return Judge(self.settings.judge, log, self.reporter, replayed=replayed)

    def answers(
        self,
        suite: str,
        candidate: Candidate,
        prompts: Sequence[Prompt],
        temperatures: Sequence[float] | None = None,
    ) -> list[Response]:
        """Return a candidate's answers, one to each prompt; those that are stored already are not made again.

        The seed of an answer derives from the prompt's id and language alone, so it is the same for every model. A
        prompt that is too long for the model has no answer. Shards are named by their prompts, so that other items, or
        fewer, are other shards. ``temperatures``, one per prompt, replace that of the settings; 0 is greedy.

        Raises:
            ModelError: answers are missing, and the model is not on this machine.
            RunError: stored answers were made with other settings, or by another model.
        """
        folder = self.target.folder / "answers" / suite / candidate.slug
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
        return [row for shard in shards for row in shard.unit.rows(Response)]

    def _shard(
        self, folder: Path, candidate: Candidate, start: int, prompts: list[Prompt], temperature: float | None
    ) -> _Shard:
        answering, seed, greedy = self.target.answering, self.settings.seed, self.settings.answers.temperature == 0
        settings = {**settings_of("sample", answering.sample, without=("n",)), "seed": seed, "greedy": greedy}
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
        with workers.engines.cluster():
            fill(workers, shards, Filling(label, Response, build, work))
