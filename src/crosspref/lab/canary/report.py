"""What a canary found, as tables, as lines of a CSV file, and in words that say no more than the intervals allow."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from crosspref import __version__
from crosspref.data.records import Response
from crosspref.lab.canary.figures import AUC, BY_RC, BY_RM, CHANGES, INITIAL, KEPT, OTHERS, POLICIES, TAUGHT, Figure
from crosspref.lab.canary.traits import TRAITS
from crosspref.languages import ENGLISH
from crosspref.reports.report import INTERVALS, SYMBOLS
from crosspref.reports.table import Report
from crosspref.stages.evaluate import MEASURES

R_C, R_M = SYMBOLS["crosslingual"], SYMBOLS["multilingual"]
BETTER = f"{R_C} - {R_M}"
FEWEST_PROMPTS = 6
"""Over fewer prompts nothing is concluded: that all of five agree happens by chance in 6% of cases."""
COLUMNS = ["trait", "model", "seed", "version", "of", "language", "measure", "mean", "low", "high", "n", "prompts"]
NOTES = [
    f"{INTERVALS} Over a dozen prompts such a range is rather too narrow than too wide, and of many ranges some miss.",
    "A change compares answers to the same prompt that were drawn with the same random numbers, in percentage points.",
    "AUC: the probability that of two responses to one training prompt, of which one has the trait, that one has the "
    "higher reward; 0.50 is no preference. raw: the reward as it is (Eq. 9, 12 without penalty). per token: divided by "
    "the response's tokens. less penalty: with the length penalty of its language, as pairs are selected. comparisons: "
    "how many such pairs of responses, over how many prompts. R_c - R_m: the difference, over the same ones. "
    "chosen - rejected: how much more often the chosen "
    "responses of the reward's pairs have the trait than the rejected ones.",
    f"right language: {MEASURES['right_language']}. cut off: {MEASURES['truncated']}. repeats: mean "
    f"{MEASURES['repetition']}. length: {MEASURES['characters']}.",
]


@dataclass(frozen=True, slots=True)
class Found:
    """What a canary is about and all that it measured; ``pairs`` counts the English ones, over ``pair_prompts``."""

    trait: str
    model: str
    seed: int
    pairs: int
    pair_prompts: int
    figures: Sequence[Figure]

    def figure(self, of: str, language: str, measure: str) -> Figure | None:
        """Return one figure, or None where there was nothing to count."""
        keys = (of, language, measure)
        return next((row for row in self.figures if (row.of, row.language, row.measure) == keys), None)

    @property
    def languages(self) -> list[str]:
        """The languages in order, and `OTHERS` behind them if that was counted."""
        found = dict.fromkeys(row.language for row in self.figures)
        return [*(language for language in found if language != OTHERS), *([OTHERS] if OTHERS in found else [])]

    @property
    def foreign(self) -> str | None:
        """What stands for all languages but English: `OTHERS`, or the only one that there is."""
        return next((language for language in reversed(self.languages) if language != ENGLISH), None)


def make_reports(found: Found) -> list[Report]:
    """Return the tables; the verdict stands below the first one."""
    languages = found.languages
    trait = [
        [language, *(_share(found.figure(policy, language, "trait")) for policy in POLICIES)] for language in languages
    ]
    names = [f"{after}\n- {before}" for after, before in CHANGES]
    change = [
        [language, *(_points(found.figure(f"{after} - {before}", language, "change")) for after, before in CHANGES)]
        for language in languages
    ]
    head = f"The canary {found.trait}: {TRAITS[found.trait].description}"
    asked = (
        f"{found.model}, seed {found.seed}; taught with {found.pairs} English pairs of {found.pair_prompts} prompts."
    )
    return [
        Report(f"{head}. Held-out answers that have it", ["language", *POLICIES], trait, [asked, *verdict(found)], 1),
        Report("How that changes, in percentage points", ["language", *names], change, NOTES[:2], 1),
        _auc_report(found),
        _other_report(found),
    ]


def _auc_report(found: Found) -> Report:
    rows: list[list[str]] = []
    for language in found.languages:
        for of in (R_C, R_M, BETTER):
            raw = found.figure(of, language, "auc")
            counts = f"{raw.n}/{raw.prompts}" if raw else ""
            forms = [_auc(found.figure(of, language, measure), of == BETTER) for measure in AUC]
            gap = _points(found.figure(of, language, "chosen_minus_rejected"))
            cells = (cell.replace(" [", "\n[") for cell in (*forms, counts, gap))  # else it is too wide for a screen
            rows.append([language if of == R_C else "", of, *cells])
    header = ["language", "reward", *(f"AUC\n{form}" for form in AUC.values()), "compar-\nisons", "chosen -\nrejected"]
    return Report("How well each reward prefers the trait", header, rows, NOTES[2:3])


def _other_report(found: Found) -> Report:
    rows: list[list[str]] = []
    for language in found.languages:
        name = language
        for policy in POLICIES:
            cells = [found.figure(policy, language, measure) for measure in KEPT]
            if any(cells):
                *shares, length = cells
                texts = [f"{cell.mean:.0%}" if cell else "" for cell in shares]
                rows.append([name, policy, *texts, f"{length.mean:.0f}" if length else ""])
                name = ""
    header = ["language", "policy", "right\nlanguage", "cut off", "repeats", "length"]
    return Report("What else became of the held-out answers", header, rows, NOTES[3:])


def verdict(found: Found) -> list[str]:
    """Return in plain words what was taught, what carried over and which reward prefers the trait."""
    taught = found.figure(f"{TAUGHT} - {INITIAL}", ENGLISH, "change")
    lines = [f"Taught in English? {_answer(taught, _in_points)}"]
    if not _told(taught) or taught.low <= 0:
        lines.append("So nothing here tells whether this trait carries over.")
    where = found.foreign
    if where is None:
        return lines
    others = "the other languages together" if where == OTHERS else where
    for question, (after, before) in (
        ("Carried over by pi_0 alone", (TAUGHT, INITIAL)),
        ("By R_c, beyond pi_0", (BY_RC, TAUGHT)),
        ("By R_m, beyond pi_0", (BY_RM, TAUGHT)),
        ("More by R_c than by R_m", (BY_RC, BY_RM)),
    ):
        change = found.figure(f"{after} - {before}", where, "change")
        lines.append(f"{question}, in {others}? {_answer(change, _in_points)}")
    preferred = [(of, _answer(found.figure(of, where, "auc"), _raw_auc, 0.5)) for of in (R_C, R_M)]
    lines += [f"Does {of} prefer it, in {others}? {answer}" for of, answer in preferred]
    better = _answer(found.figure(BETTER, where, "auc"), lambda figure: f"raw AUC {_auc(figure, signed=True)}")
    return [*lines, f"Does {R_C} prefer it more than {R_M}, in {others}? {better}"]


def _in_points(figure: Figure) -> str:
    return f"{_points(figure)} points"


def _raw_auc(figure: Figure) -> str:
    return f"raw AUC {_auc(figure)}"


def _answer(figure: Figure | None, show: Callable[[Figure], str], neutral: float = 0.0) -> str:
    """Say what an interval allows to say: yes, the opposite, or that it was not seen."""
    if not _told(figure):
        return "This cannot be told: too few prompts."
    shown = show(figure)
    if figure.low > neutral:
        return f"Yes: {shown}."
    if figure.high < neutral:
        return f"No, the opposite: {shown}."
    return f"Not seen: {shown}, which holds {neutral:g}."


def _told(figure: Figure | None) -> TypeGuard[Figure]:
    """Tell whether there are enough prompts to conclude anything."""
    return figure is not None and figure.prompts >= FEWEST_PROMPTS


def _share(figure: Figure | None) -> str:
    return _ranged(figure, lambda value: f"{value:.0%}")


def _points(figure: Figure | None) -> str:
    return _ranged(figure, lambda value: f"{100 * value:+.0f}")


def _auc(figure: Figure | None, signed: bool = False) -> str:
    return _ranged(figure, lambda value: f"{value:+.2f}" if signed else f"{value:.2f}")


def _ranged(figure: Figure | None, show: Callable[[float], str]) -> str:
    if figure is None:
        return ""
    if math.isnan(figure.low):
        return show(figure.mean)
    return f"{show(figure.mean)} [{show(figure.low)}, {show(figure.high)}]"


def csv_of(found: Found) -> str:
    """Return every figure as a line of CSV, in long format."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in found.figures:
        numbers = [f"{value:.6g}" for value in (row.mean, row.low, row.high)]
        about = [found.trait, found.model, found.seed, __version__, row.of, row.language, row.measure]
        writer.writerow([*about, *numbers, row.n, row.prompts])
    return text.getvalue()


def frequency_report(english: Sequence[Response], held_out: Mapping[str, Sequence[Response]], model: str) -> Report:
    """Return how frequent every known trait is in pi_I's answers: how traits are chosen.

    Args:
        english: the answers of which English pairs are made.
        held_out: the answers to the held-out prompts, by language.
        model: the name of pi_I.
    """
    rows = []
    for name, trait in TRAITS.items():
        by_prompt: dict[str, set[bool]] = {}
        for row in english:
            by_prompt.setdefault(row.prompt_id, set()).add(trait.test(row.text))
        both = sum(len(seen) == 2 for seen in by_prompt.values())
        shares = [_frequency([trait.test(row.text) for row in own]) for own in held_out.values()]
        own = _frequency([trait.test(row.text) for row in english])
        rows.append([f"{name}: {trait.description}", own, f"{both}/{len(by_prompt)}", *shares])
    counts = ", ".join(f"{len(own)} {language}" for language, own in held_out.items())
    note = (
        f"{model}. English: share of {len(english)} answers to the prompts that pairs are made of, and how many of "
        f"these prompts have answers with and without the trait. Then shares of the held-out answers ({counts}). A "
        "trait can be taught and counted well if a third to two thirds of the answers have it."
    )
    header = ["trait", "English\nanswers", "prompts\nfor pairs", *held_out]
    return Report("How frequent each trait is in pi_I's answers", header, rows, [note], 1)


def _frequency(values: Sequence[bool]) -> str:
    return f"{sum(values) / len(values):.0%}" if values else ""
