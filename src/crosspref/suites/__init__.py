"""Suites of evaluations: ``crosspref evaluate RUN_OR_MODEL --suite NAME``.

A suite is one function ``evaluate(work: Evaluation) -> list[Report]``, named in ``SUITES``, and a section of settings,
a field of ``settings.EvaluationSettings``. It finds in ``work`` (``suites.work.Evaluation``):

- ``work.settings``: all settings, its own section among them;
- ``work.target``: what is measured. ``target.models`` are the candidates (pi_I, pi_0, pi_1 ..., or one model), and
  results go to ``target.folder / "NAME"``;
- ``work.languages``: the languages that were asked for on the command line, or None for all that there are;
- ``work.answers``: has a candidate answer prompts, in shards that are resumed. Where ``work.given`` is set, no model
  answers: ``work.given_answers`` returns answers that exist already, by model;
- ``work.judge``: asks a judge. Touch it before models answer, so that a judge without a name shows early. Gather the
  questions of all models and languages and call ``judge.ask`` once, so that the price estimate covers everything. Each
  ``questions.Question`` gets a ``verdicts.Verdict``, or None where a replayed file has none. Nothing that was judged
  before is asked again; an answer that cannot be read is a verdict with a ``failure``;
- ``work.reporter``: says lines and shows progress.

``results`` has what suites share: ``write_results`` writes their tables, ``changes_of`` and ``changes_reports`` say
what differs between models. A suite returns reports: they are printed, and written to ``target.folder / "NAME.md"``.
Names of judges, prompts and dates belong into the rows; ``judge.describe()`` has them.
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
