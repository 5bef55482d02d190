"""The command ``crosspref evaluate``: a run or a model by a suite, or, without a target, responses from a file."""

import argparse

from crosspref.commands import TABLE, add_set, languages_of, output_table
from crosspref.data.records import Measure, Response, Score
from crosspref.data.tables import read_rows, write_rows
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.languages import as_tag, language_name
from crosspref.maths.reward import PER_TOKEN
from crosspref.paths import expanded
from crosspref.recipe.files import load_settings, stage_settings
from crosspref.recipe.stages import EvaluateStage
from crosspref.reports.report import measures_report
from crosspref.reports.table import print_reports
from crosspref.run.progress import Reporter
from crosspref.run.terminal import say
from crosspref.stages.evaluate import Bootstrap, compare, measure
from crosspref.suites import SUITES, find_suite
from crosspref.suites.settings import EvaluationSettings
from crosspref.suites.work import Evaluation, find_target, without_models

FILES = ("responses", "scores", "baseline_scores")
"""Options of the stage alone, which takes files and no target."""
OF_SUITES = ("suite", "file", "judge", "annotations", "languages")
"""Options of suites, which need a target, or answers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure a run or a model by a suite. Without RUN_OR_MODEL: count what can be counted in responses of a file, "
        "and compare them with others by reward."
    )
    parser.set_defaults(refuse=parser.error)
    parser.add_argument("target", nargs="?", metavar="RUN_OR_MODEL", help="what to measure by a suite")
    parser.add_argument("--out", help=f"where results go: a directory for a suite, else a table {TABLE}")
    add_set(parser)
    files = parser.add_argument_group("files, without RUN_OR_MODEL")
    files.add_argument("--responses", help=f"table of responses {TABLE}")
    files.add_argument("--scores", help=f"their scores {TABLE}")
    files.add_argument("--baseline-scores", help=f"scores of another model's responses to the same prompts {TABLE}")
    suites = parser.add_argument_group("suites, for RUN_OR_MODEL")
    suites.add_argument("--suite", metavar="NAME", help=f"by which suite: {', '.join(SUITES)}")
    suites.add_argument("--with", dest="file", metavar="FILE", help="the settings of judge, answers and suite (YAML)")
    suites.add_argument(
        "--judge",
        nargs="+",
        metavar="URL",
        help="the judge's server; or: replay FILE, recorded verdicts, asking nobody",
    )
    suites.add_argument("--languages", help="only these languages, for example en,es,fr; all if left out")
    suites.add_argument("--annotations", metavar="FILE", help="verdicts made elsewhere, in alpaca_eval's format")
    suites.add_argument(
        "--answers",
        metavar="PATH",
        help="a file or directory of answers that exist already, in the place of RUN_OR_MODEL; with --out",
    )


def execute(options: argparse.Namespace) -> None:
    if options.target is None and options.answers is None:
        _check_alone(options)
        _evaluate_files(options)
    else:
        _check_suite(options)
        _evaluate_suite(options)


def _check_alone(options: argparse.Namespace) -> None:
    if any(getattr(options, name) is not None for name in OF_SUITES):
        options.refuse("a suite needs a run or a model: crosspref evaluate RUN_OR_MODEL --suite NAME")
    missing = [f"--{name}" for name in ("responses", "out") if getattr(options, name) is None]
    if missing:
        options.refuse(f"the following arguments are required without RUN_OR_MODEL: {', '.join(missing)}")
    try:
        output_table(options.out)
    except argparse.ArgumentTypeError as error:
        options.refuse(f"argument --out: {error}")


def _check_suite(options: argparse.Namespace) -> None:
    if options.suite is None:
        options.refuse("name a suite: crosspref evaluate RUN_OR_MODEL --suite NAME")
    given = [f"--{name.replace('_', '-')}" for name in FILES if getattr(options, name) is not None]
    if given:
        options.refuse(f"{', '.join(given)}: files are evaluated without RUN_OR_MODEL and --suite")
    judge = options.judge or ["none"]
    if len(judge) != (2 if judge[0] == "replay" else 1):
        options.refuse("--judge takes the address of a server, or: replay FILE")


def _evaluate_suite(options: argparse.Namespace) -> None:
    find_suite(options.suite)
    judge, overrides = options.judge or [], list(options.overrides)
    if len(judge) == 1:
        overrides.append(f"judge.url={judge[0]}")
    settings = load_settings(EvaluationSettings, options.file, overrides)
    languages = None if options.languages is None else [as_tag(name) for name in options.languages.split(",")]
    for language in languages or ():
        language_name(language)
    reporter = Reporter()
    replay = judge[1] if len(judge) == 2 else None
    if options.answers is not None:
        target = without_models(options.target, options.out, settings)
    else:
        target = find_target(options.target, options.out, settings, reporter)
    files = {"replay": replay, "annotations": options.annotations, "given": options.answers}
    places = {name: expanded(file) for name, file in files.items() if file is not None}
    evaluation = Evaluation(settings, target, reporter, languages, **places)
    print_reports(evaluation.run(options.suite))
    say(f"Written: {target.folder}")


def _evaluate_files(options: argparse.Namespace) -> None:
    responses = read_rows(options.responses, Response)
    given = {"languages": languages_of(responses, options.responses)}
    settings = stage_settings(EvaluateStage, given, options.overrides)
    engines, per_token = EngineFactory(EngineSettings.of(settings)), settings.reward.algorithm in PER_TOKEN
    scores, baseline_scores = (
        read_rows(path, Score) if path else [] for path in (options.scores, options.baseline_scores)
    )
    bootstrap = Bootstrap(settings.evaluate.resamples, settings.seed)
    measures: list[Measure] = []
    for language in settings.languages:
        answers = [row for row in responses if row.language == language]
        identify = engines.identifier(language)
        if identify is None:
            Reporter().say(f"evaluate {language}: the language of responses cannot be identified")
        measures += measure(answers, language, 1, identify, bootstrap)
        policy, baseline = ([row for row in rows if row.language == language] for rows in (scores, baseline_scores))
        win_rate = compare(policy, baseline, language, 1, bootstrap, per_token=per_token)
        measures += [win_rate] if win_rate else []
    write_rows(options.out, measures, Measure)
    print_reports([measures_report(measures)])
