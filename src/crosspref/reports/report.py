"""``crosspref report``: what was measured of each policy per language, and how far rewards agree."""

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from crosspref.data.records import Agreement, Measure, Prompt, Response, as_messages
from crosspref.escape import one_line
from crosspref.languages import language_name
from crosspref.maths.estimate import Estimate
from crosspref.reports.table import Report, label, without_repeats
from crosspref.stages.evaluate import MEASURES, WIN_RATE

TITLE = "Held-out responses, per language and policy"
COLUMNS = {
    "right_language": "right\nlanguage",
    "repetition": "repeats",
    "truncated": "cut off",
    "characters": "length",
    WIN_RATE: "win rate\nover pi_0*",
}
SHOWN = 320
"""Characters of an answer that are shown."""
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


def estimate_of(measure: Measure) -> Estimate:
    """Return the measure's mean with its interval."""
    return Estimate(measure.mean, measure.low, measure.high, measure.n)


def measures_report(measures: Sequence[Measure]) -> Report:
    """Return the report of an evaluation of pi_0 and later policies; languages stand in the order they come in."""
    known = {(row.language, row.iteration, row.measure): row for row in measures}
    rows = [
        [label(language), f"pi_{iteration}", *(_cell(known.get((language, iteration, name))) for name in COLUMNS)]
        for language in dict.fromkeys(row.language for row in measures)
        for iteration in sorted({row.iteration for row in measures})
    ]
    prompts = sorted({row.prompts for row in measures})
    notes = [
        f"* {MEASURES[WIN_RATE]}. 50% is no difference.",
        f"right language: {MEASURES['right_language']}. repeats: mean {MEASURES['repetition']}. "
        f"cut off: {MEASURES['truncated']}. length: {MEASURES['characters']}.",
        f"{' to '.join(str(count) for count in dict.fromkeys([prompts[0], prompts[-1]]))} held-out prompts per "
        f"language. {INTERVALS} A share of 0% or 100% has Wilson's interval.",
    ]
    identified = {row.language for row in measures if row.measure == "right_language"}
    others = [language for language in dict.fromkeys(row.language for row in measures) if language not in identified]
    if others:
        notes.insert(2, f"The language of responses cannot be identified for: {', '.join(others)}.")
    return Report(TITLE, ["language", "policy", *COLUMNS.values()], without_repeats(rows), notes)


def answers_table(prompt: Prompt, answers: Mapping[str, Response]) -> Table:
    """Return a table for the screen of what several policies, by name, answered to one prompt, side by side."""
    asked = as_messages(prompt.instruction)[-1]["content"]
    title = f"One held-out prompt, answered in {language_name(prompt.language)}: {one_line(asked, SHOWN)}"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in answers:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text(one_line(answer.text, SHOWN)) for answer in answers.values()))  # as text, and not as markup
    return table


def _cell(row: Measure | None) -> str:
    if row is None:
        return ""
    if row.measure == "characters":
        return f"{row.mean:.0f}"
    return estimate_of(row).text(".0%") if row.measure == WIN_RATE else f"{row.mean:.0%}"


def agreement_report(agreements: Sequence[Agreement]) -> Report:
    """Return how far rewards agree; languages stand in the order they come in, within each the iterations."""
    languages = list(dict.fromkeys(row.language for row in agreements))
    rows = []
    for row in sorted(agreements, key=lambda row: (languages.index(row.language), row.iteration)):
        tau = Estimate(row.tau, row.low, row.high, row.prompts).text(".2f")
        shares = [
            "" if math.isnan(share) else f"{share:.0%}" for share in (row.same_pair, row.same_chosen, row.same_rejected)
        ]
        names = ", ".join(SYMBOLS.get(name, name) for name in (row.reward, row.other))
        rows.append([label(row.language), str(row.iteration), names, tau, *shares, f"{row.prompts}/{row.pairs}"])
    return Report(AGREEMENT_TITLE, AGREEMENT_HEADER, without_repeats(rows), [AGREEMENT_NOTE], left=3)
