"""What a suite works with, and how one is run: on the command line, and from Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from crosspref.data.records import Prompt, Response
from crosspref.errors import RecipeError
from crosspref.reports.table import Report
from crosspref.run.layout import RunDirectory
from crosspref.run.progress import Reporter
from crosspref.run.store import write_text
from crosspref.suites import find_suite
from crosspref.suites.answers import answer_prompts
from crosspref.suites.judge.judge import Judge
from crosspref.suites.judge.verdicts import VerdictLog
from crosspref.suites.settings import EvaluationSettings
from crosspref.suites.targets import Candidate, Target, find_target

VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What a suite gets: see ``suites``. ``replay`` is a file of verdicts, with which nobody is asked."""

    settings: EvaluationSettings
    target: Target
    reporter: Reporter
    languages: Sequence[str] | None = None
    replay: Path | None = None
    annotations: Path | None = None

    @cached_property
    def judge(self) -> Judge:
        """The judge, on the verdicts of the target's folder or on those that are replayed."""
        replayed = self.replay is not None
        log = VerdictLog.open(self.replay or self.target.folder / VERDICTS, writable=not replayed)
        return Judge(self.settings.judge, log, self.reporter, replayed=replayed)

    def answers(
        self, suite: str, candidate: Candidate, prompts: Sequence[Prompt],
        *, greedy: bool = False, temperatures: Sequence[float] | None = None,
    ) -> list[Response]:  # fmt: skip
        """Return a candidate's answers to prompts, made now or before; see ``answers.answer_prompts``."""
        given = self.target, candidate, suite, prompts, self.settings.seed, self.reporter
        return answer_prompts(*given, greedy=greedy, temperatures=temperatures)


def run_suite(
    name: str,
    settings: EvaluationSettings,
    suite: str,
    *,
    out: str | None = None,
    languages: Sequence[str] | None = None,
    replay: str | None = None,
    annotations: str | None = None,
    reporter: Reporter | None = None,
) -> tuple[list[Report], Path]:
    """Measure a run or a model by a suite, and return the reports and the folder of the results.

    Args:
        name: the run directory, or a model.
        settings: all settings.
        suite: the suite's name.
        out: where results go; a run's own folder ``evaluation`` if left out.
        languages: which languages; all that the suite's files have if left out.
        replay: a file of verdicts to read, and then nobody is asked.
        annotations: verdicts made elsewhere, in alpaca_eval's format, for the suites that read them.
        reporter: shows progress.

    Raises:
        RecipeError: a setting is wrong.
        DataError: the suite's files cannot be used.
        ModelError: a model cannot be read.
        RunError: another process works in the run, or stored answers were made otherwise.
        ServerError: the judge does not answer.
        BudgetError: the judge would cost more than was allowed.
    """
    evaluate = find_suite(suite)
    reporter = reporter or Reporter()
    if replay is not None and annotations is not None:
        raise RecipeError("--judge replay and --annotations contradict each other: both say where verdicts come from.")
    target = find_target(name, out, settings, reporter)
    with RunDirectory(target.folder).locked():
        work = Evaluation(
            settings,
            target,
            reporter,
            languages,
            None if replay is None else Path(replay),
            None if annotations is None else Path(annotations),
        )
        reports = evaluate(work)
        text = "\n".join(report.markdown() for report in reports)
        write_text(target.folder / f"{suite}.md", text)
    return reports, target.folder
