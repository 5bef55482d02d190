"""The canary as a command: one trait from pi_I to pi_1, or how frequent every trait is."""

import argparse
from pathlib import Path

from crosspref.commands import add_set
from crosspref.errors import RecipeError
from crosspref.lab.canary.report import csv_of, make_reports
from crosspref.lab.canary.run import ANSWERS, MODEL, make_canary, measure_traits, run_canary
from crosspref.lab.canary.traits import TRAITS, find_trait
from crosspref.paths import require_named, require_writable
from crosspref.reports.table import print_reports
from crosspref.run.progress import Reporter
from crosspref.run.store import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Teach a model in English a trait that a program can verify, and measure whether it carries over into other "
        "languages: by the English-aligned model alone, by one iteration with R_c, and by one with R_m. First see with "
        "--measure which traits are frequent enough. To resume what was stopped, give the same command again."
    )
    parser.add_argument("trait", nargs="?", metavar="TRAIT", help="the trait to teach; an unknown one lists all")
    parser.add_argument("--measure", action="store_true", help="show how frequent each trait is in pi_I's answers")
    parser.add_argument(
        "--out", required=True, type=require_named, metavar="DIR", help="the directory for all traits of one model"
    )
    parser.add_argument("--model", default=MODEL, help="pi_I; SmolLM2-135M-Instruct if left out")
    parser.add_argument("--seed", type=int, metavar="N", help="all random numbers derive from it")
    parser.add_argument(
        "--answers", type=int, default=ANSWERS, metavar="N", help="pi_I's answers per English prompt, for pairs"
    )
    add_set(parser)


def execute(options: argparse.Namespace) -> None:
    if (options.trait is None) != options.measure:
        raise RecipeError(
            "crosspref canary takes either a trait, or --measure, which shows how frequent each known trait is."
        )
    reporter = Reporter()
    canary = make_canary(
        options.out,
        options.overrides,
        model=options.model,
        seed=options.seed,
        answers=options.answers,
        reporter=reporter,
    )
    if options.measure:
        require_writable(canary.out / "traits.md")
        report = measure_traits(canary)
        write_text(canary.out / "traits.md", report.markdown())
        print_reports([report])
        return
    find_trait(options.trait)  # now, and not after the first minutes of sampling
    for folder in (canary.out / options.trait, canary.out):
        for name in ("canary.md", "canary.csv"):
            require_writable(folder / name)
    findings = run_canary(canary, options.trait)
    reports = make_reports(findings)
    write_text(canary.out / options.trait / "canary.md", "\n".join(report.markdown() for report in reports))
    write_text(canary.out / options.trait / "canary.csv", csv_of(findings))
    _gather(canary.out)
    print_reports(reports)
    reporter.say(f"Written: {canary.out / 'canary.md'} and {canary.out / 'canary.csv'}, with every trait done so far")


def _gather(out: Path) -> None:
    """Put the results of all traits of a directory into one report and one table."""
    done = [out / name for name in TRAITS if (out / name / "canary.csv").exists()]
    write_text(out / "canary.md", "\n".join((folder / "canary.md").read_text(encoding="utf-8") for folder in done))
    tables = [(folder / "canary.csv").read_text(encoding="utf-8").partition("\n") for folder in done]
    write_text(out / "canary.csv", tables[0][0] + "\n" + "".join(lines for _, _, lines in tables))
