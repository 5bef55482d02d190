"""Suites of evaluations: ``crosspref evaluate RUN_OR_MODEL --suite NAME``.

A suite is one function ``evaluate(work: Evaluation) -> list[Report]``, named in ``SUITES``, and a section of settings,
a field of ``settings.EvaluationSettings``. It finds in ``work`` (``suites.work.Evaluation``):

- ``work.settings``: all settings, its own section among them;
- ``work.target``: what is measured. ``target.models`` are the candidates (pi_I, pi_0, pi_1 ..., or one model),
  ``target.folder`` is where results go: write them to ``target.folder / "NAME"``. ``target.run`` is the
  run and ``target.languages`` are its languages, if it is one;
- ``work.languages``: the languages that were asked for on the command line, or None for all that there are;
- ``work.judge``: asks a judge. Gather the questions of all models and languages first and call ``judge.ask`` once, so
  that the price estimate covers everything. A ``questions.Question`` is messages, decoding, and what reads the answer;
  what comes back for each is a ``verdicts.Verdict``, or None where a replayed file has none. Nothing that was judged
  before, for whichever model or suite, is asked again; an answer that cannot be read is a verdict with a ``failure``;
- ``work.reporter``: says lines and shows progress.

``work.answers`` answers prompts with a candidate, in shards that are resumed; a prompt may be a conversation. Where
``work.given`` is set, no model answers: ``work.given_answers`` returns answers that exist already, by model. Touch
``work.judge`` before models answer, so that a judge without a name shows early. ``results`` has what suites share:
``write_results`` writes their tables, ``changes_of`` and ``changes_reports`` say what differs between models. A suite
returns reports: they are printed, and their Markdown is written to ``target.folder / "NAME.md"``. Names of judges,
prompts and dates belong into the rows; ``judge.describe()`` has them.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from crosspref.errors import RecipeError

if TYPE_CHECKING:
    from crosspref.reports.table import Report
    from crosspref.suites.work import Evaluation

SUITES = ("xalpaca", "mtbench", "reward_accuracy", "nlp")
"""Every suite; its function is in ``evaluate`` in the folder of its name."""


def find_suite(name: str) -> "Callable[[Evaluation], list[Report]]":
    """Import and return a suite.

    Raises:
        RecipeError: there is none of that name.
    """
    if name not in SUITES:
        raise RecipeError(f"There is no suite {name!r}. Known: {', '.join(SUITES)}")
    evaluate: Callable[[Evaluation], list[Report]] = importlib.import_module(f"{__name__}.{name}.evaluate").evaluate
    return evaluate
