"""Reporting: what was measured per language, and how far rewards agree, for the screen and as Markdown."""

import math
from collections.abc import Sequence

from crosspref.data.records import Agreement, Measure
from crosspref.reports.table import Report, label
from crosspref.stages.evaluate import MEASURES, WIN_RATE

TITLE = "Held-out responses, per language and policy"
COLUMNS = {
    "right_language": "right\nlanguage",
    "repetition": "repeats",
    "truncated": "cut off",
    "characters": "length",
    WIN_RATE: "win rate\nover pi_0*",
}
INTERVALS = (
    "Ranges are 95% bootstrap intervals over the held-out prompts. They do not cover the choice of training prompts or "
    "of the seed."
)

SYMBOLS = {"crosslingual": "R_c", "multilingual": "R_m", "translated": "R_t", "reward_model": "R_n"}
"""The paper's symbol of every reward."""

AGREEMENT_TITLE = "Agreement of rewards, per language and iteration"
AGREEMENT_HEADER = ["language", "t", "rewards", "tau", "same\npair", "same\nchosen", "same\nrejected", "n"]
AGREEMENT_NOTE = (
    "tau: Kendall's tau-b between two rewards of the responses to one training prompt, before the length penalty; 1 is "
    "the same order, 0 no relation, -1 the opposite order. It is averaged over prompts, with its 95% bootstrap "
    "interval over them. same pair, chosen, rejected: the share of prompts for which both rewards, each under its own "
    "length penalty, select the same; of N responses, chance selects the same one in 1/N and the same pair in "
    "1/(N(N-1)). n: prompts behind tau, and behind the shares. t: the iteration, whose responses are those of "
    "pi_(t-1). Agreement says nothing about which reward is right."
)


def make_report(measures: Sequence[Measure]) -> Report:
    """Return the report of an evaluation of pi_0 and later policies; languages stand in the order they come in."""
    found = {(row.language, row.iteration, row.measure): row for row in measures}
    languages = list(dict.fromkeys(row.language for row in measures))
    iterations = sorted({row.iteration for row in measures})
    rows = []
    for language in languages:
        for iteration in iterations:
            name = label(language) if iteration == iterations[0] else ""
            cells = [_cell(found.get((language, iteration, measure)), measure) for measure in COLUMNS]
            rows.append([name, f"pi_{iteration}", *cells])
    prompts = sorted({row.prompts for row in measures})
    notes = [
        f"* {MEASURES[WIN_RATE]}. 50% is no difference.",
        f"right language: {MEASURES['right_language']}. repeats: mean {MEASURES['repetition']}. "
        f"cut off: {MEASURES['truncated']}. length: {MEASURES['characters']}.",
        f"{' to '.join(str(count) for count in dict.fromkeys([prompts[0], prompts[-1]]))} held-out prompts per "
        f"language. {INTERVALS}",
    ]
    return Report(TITLE, ["language", "policy", *COLUMNS.values()], rows, notes)


def make_agreement_report(agreements: Sequence[Agreement]) -> Report:
    """Return how far rewards agree; languages stand in the order they come in, within each the iterations."""
    languages = list(dict.fromkeys(row.language for row in agreements))
    ordered = sorted(agreements, key=lambda row: (languages.index(row.language), row.iteration))
    rows = []
    for number, row in enumerate(ordered):
        first = number == 0 or ordered[number - 1].language != row.language
        shares = [_share(share) for share in (row.same_pair, row.same_chosen, row.same_rejected)]
        tau = "" if math.isnan(row.tau) else f"{row.tau:.2f}"
        if tau and not math.isnan(row.low):
            tau += f" [{row.low:.2f}, {row.high:.2f}]"
        names = ", ".join(SYMBOLS.get(name, name) for name in (row.reward, row.other))
        counts = f"{row.prompts}/{row.pairs}"
        rows.append([label(row.language) if first else "", str(row.iteration), names, tau, *shares, counts])
    return Report(AGREEMENT_TITLE, AGREEMENT_HEADER, rows, [AGREEMENT_NOTE], left=3)


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0%}"


def _cell(row: Measure | None, measure: str) -> str:
    if row is None:
        return ""
    if measure == "characters":
        return f"{row.mean:.0f}"
    value = f"{row.mean:.0%}"
    if measure == WIN_RATE and not math.isnan(row.low):
        return f"{value} [{row.low:.0%}, {row.high:.0%}]"
    return value
