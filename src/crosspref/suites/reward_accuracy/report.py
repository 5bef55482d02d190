"""The tables of reward accuracy for the screen and as Markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crosspref.languages import LANGUAGES
from crosspref.reports.report import SYMBOLS
from crosspref.reports.table import Report
from crosspref.suites.reward_accuracy.judges import JUDGE, PEOPLE, REWARD_MODEL
from crosspref.suites.reward_accuracy.pairs import IMBALANCE, Sample
from crosspref.suites.reward_accuracy.rates import ALL, Accuracy, AccuracyChange

MEANING = (
    "accuracy: how often the answer that the reward chose is preferred, a tie counting one half; decided: without the "
    "ties. A judge is asked in both orders: what the two do not agree on is a tie. Of several annotators most decide. "
    "n: pairs with an outcome; out: pairs without a readable or without any verdict. all: the pairs of all languages."
)
INTERVALS = (
    "Ranges are 95% Wilson intervals over pairs (those of all languages with prompts as clusters). They do not cover "
    "the judge, which may be biased. Pairs are drawn by strata of the reward gap, and ties are half outcomes: both "
    "make the ranges a little too wide."
)
CHANGES = (
    "Differences of accuracies, ties as one half, with 95% intervals by Newcombe, as of independent pairs: two rewards "
    "have chosen among other answers. better and worse stand only where the interval says so; that there are several "
    "intervals is not allowed for. Those of each language are in changes.csv."
)


def named(reward: str, iteration: int) -> str:
    """Return what stands for a reward in a table: its symbol, and the policy that it comes from."""
    return f"{'LIDR' if reward == IMBALANCE else SYMBOLS.get(reward, reward)}, pi_{iteration - 1}"


def make_report(rows: Sequence[Accuracy], about: Mapping[str, Any]) -> Report:
    """Return the table: judge by judge, within each the rewards, within each the languages."""
    cells = []
    for number, row in enumerate(rows):
        above = rows[number - 1] if number else None
        same_judge = above is not None and (above.kind, above.judge) == (row.kind, row.judge)
        same = same_judge and above is not None and (above.reward, above.iteration) == (row.reward, row.iteration)
        who = "" if same_judge else f"{row.kind}\n{row.judge}"
        cells.append(
            [
                who,
                "" if same else named(row.reward, row.iteration),
                f"{row.language} {LANGUAGES.get(row.language, '')}".strip(),
                _share(row.accuracy, row.low, row.high),
                _share(row.decided, row.decided_low, row.decided_high),
                str(row.n),
                str(row.ties),
                str(row.failed + row.lacking),
            ]
        )
    header = ["judged by", "reward", "language", "accuracy", "decided", "n", "ties", "out"]
    return Report("Reward accuracy", header, cells, [f"{MEANING} {INTERVALS}", *_notes(rows, about)], left=3)


def _notes(rows: Sequence[Accuracy], about: Mapping[str, Any]) -> list[str]:
    notes = [_described(name, own) for name, own in about["judges"].items()]
    contradicted = sum(row.contradicted for row in rows if row.kind == JUDGE and row.language != ALL)
    ties = sum(row.ties for row in rows if row.kind == JUDGE and row.language != ALL)
    if ties:
        notes.append(f"Of the judge's {ties} ties, {contradicted} are pairs of which each order said something else.")
    notes += [
        f"{' and '.join(one['judges'])} agree on {one['agreement']:.0%} of {one['shared_pairs']} pairs{_alpha(one)}."
        for one in about["agreements"]
        if one["shared_pairs"]
    ]
    rated = about["settings"]["reward_model"]
    if rated is not None and rated == about["reward_model_of_the_run"]:
        notes.append(f"{rated} made the pairs of R_n itself: that it agrees with them says nothing.")
    for name, failures in about["failures"].items():
        said = [f"{tag} {', '.join(f'{n} {why}' for why, n in counts.items())}" for tag, counts in failures.items()]
        notes.append(f"Pairs without an outcome, {name}: {'; '.join(said)}.")
    for where, count in about["alike"].items():
        notes.append(f"{where}: {count} pairs have twice the same answer, and are not drawn.")
    return notes


def _described(name: str, own: Mapping[str, Any]) -> str:
    if name.startswith(PEOPLE):
        said = f"{name}: {own['votes']} votes"
        if own["shared_pairs"]:
            said += f"; on {own['shared_pairs']} pairs of several, {own['agreement']:.0%} of votes agree{_alpha(own)}"
        return said + "".join(f"; {count} {reason}" for reason, count in own["problems"].items()) + "."
    if name.startswith(REWARD_MODEL):
        return f"{name}: the answer that it rates higher is preferred."
    names = [one for one in own["answered_as"] if one != own["judge"]]
    answered = f" (which answered as {', '.join(names)})" if names else ""
    decodings = "; ".join(", ".join(f"{k} {v}" for k, v in one.items()) for one in own["decoding"])
    said = f"{name}{answered}: {decodings}, {' to '.join(dict.fromkeys(own['dates']))}; {own['failed']} verdicts failed"
    if own["decided"]:
        said += f"; it preferred what was shown first in {own['shown_first'] / own['decided']:.0%} of {own['decided']}"
    return said + "."


def _alpha(one: Mapping[str, Any]) -> str:
    return "" if one["alpha"] is None else f" (Krippendorff's alpha {one['alpha']:.2f})"


def make_changes_report(changes: Sequence[AccuracyChange]) -> Report:
    """Return what differs between rewards, over all languages together or in the only one."""
    several = any(row.language == ALL for row in changes)
    cells: list[list[str]] = []
    above = ""
    for row in [row for row in changes if not several or row.language == ALL]:
        who = f"{row.kind}\n{row.judge}"
        pair = f"{named(row.reward, row.iteration)} - {named(row.other_reward, row.other_iteration)}"
        gap = f"{row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
        cells.append(["" if who == above else who, pair, row.language, gap, str(row.n), row.verdict])
        above = who
    header = ["judged by", "rewards", "language", "difference", "n", "verdict"]
    return Report("Reward accuracy: what differs between rewards", header, cells, [CHANGES], left=3)


def make_sheet_report(samples: Sequence[Sample]) -> Report:
    """Return what was drawn, where nobody has judged yet."""
    names = [named(one.reward, one.iteration) for one in samples]
    cells = [
        ["" if name == above else name, one.language, str(one.pairs), str(len(one.sampled))]
        for above, name, one in zip(["", *names], names, samples, strict=False)
    ]
    note = (
        "Nobody has judged yet. Name a judge (judge.model), a reward model (reward_accuracy.reward_model), or votes "
        "(reward_accuracy.votes): people fill in the column choice of reward_accuracy/sheet.csv with a, b or tie."
    )
    return Report("Reward accuracy: pairs to be judged", ["reward", "language", "pairs", "drawn"], cells, [note])


def _share(value: float, low: float, high: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
