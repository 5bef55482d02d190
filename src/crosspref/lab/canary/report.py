"""What a canary found: as tables, as CSV, and in words that say no more than the intervals allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from crosspref import __version__
from crosspref.data.records import Response
from crosspref.lab.canary.figures import (
    AUC,
    BY_RC,
    BY_RM,
    CHANGES,
    INITIAL,
    KEPT,
    OTHERS,
    POLICIES,
    TAUGHT,
    Figure,
    Figures,
)
from crosspref.lab.canary.traits import TRAITS
from crosspref.languages import ENGLISH
from crosspref.reports.report import INTERVALS, SYMBOLS
from crosspref.reports.table import Report, csv_text
from crosspref.stages.evaluate import MEASURES

R_C, R_M = SYMBOLS["crosslingual"], SYMBOLS["multilingual"]
BETTER = f"{R_C} - {R_M}"
FEWEST_PROMPTS = 6
"""Over fewer prompts nothing is concluded: that all of five agree happens by chance in 6% of cases."""
COLUMNS = ["trait", "model", "seed", "version", "of", "language", "measure", "mean", "low", "high", "n", "prompts"]
SHARE, POINTS, AREA, AREA_CHANGE = ".0%", "+.0%", ".2f", "+.2f"
"""How figures are written; percentage points without their sign."""
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
class Findings:
    """What a canary is about and all that it measured; ``pairs`` counts the English ones, over ``pair_prompts``."""

    trait: str
    model: str
    seed: int
    pairs: int
    pair_prompts: int
    figures: Figures

    def text(self, of: str, language: str, measure: str, form: str) -> str:
        """Return one figure with its interval, or nothing where there was nothing to count."""
        figure = self.figures.get((of, language, measure))
        text = figure.text(form) if figure else ""
        return text.replace("%", "") if form == POINTS else text

    @property
    def languages(self) -> list[str]:
        """The languages in order, with `OTHERS` last if that was counted."""
        languages = dict.fromkeys(language for _, language, _ in self.figures)
        return sorted(languages, key=lambda language: language == OTHERS)

    @property
    def foreign(self) -> str | None:
        """What stands for all languages but English: `OTHERS`, or the only one that there is."""
        return next((language for language in reversed(self.languages) if language != ENGLISH), None)


def make_reports(findings: Findings) -> list[Report]:
    """Return the tables; the verdict stands below the first one."""
    name, languages = findings.trait, findings.languages
    shares = [[tag, *(findings.text(policy, tag, "trait", SHARE) for policy in POLICIES)] for tag in languages]
    changes = [
        [tag, *(findings.text(f"{after} - {before}", tag, "change", POINTS) for after, before in CHANGES)]
        for tag in languages
    ]
    about = (
        f"{findings.model}, seed {findings.seed}; taught with {findings.pairs} English pairs of "
        f"{findings.pair_prompts} prompts."
    )
    title = f"The canary {name}: {TRAITS[name].description}. Held-out answers that have it"
    header = ["language", *(f"{after}\n- {before}" for after, before in CHANGES)]
    return [
        Report(title, ["language", *POLICIES], shares, [about, *verdict(findings)], 1),
        Report("How that changes, in percentage points", header, changes, NOTES[:2], 1),
        _auc_report(findings),
        _other_report(findings),
    ]


def _auc_report(findings: Findings) -> Report:
    rows: list[list[str]] = []
    for language in findings.languages:
        for of in (R_C, R_M, BETTER):
            raw = findings.figures.get((of, language, "auc"))
            form = AREA_CHANGE if of == BETTER else AREA
            areas = [findings.text(of, language, measure, form) for measure in AUC]
            gap = findings.text(of, language, "chosen_minus_rejected", POINTS)
            cells = [*areas, f"{raw.n}/{raw.prompts}" if raw else "", gap]
            narrow = (cell.replace(" [", "\n[") for cell in cells)  # else it is too wide for a screen
            rows.append([language if of == R_C else "", of, *narrow])
    header = ["language", "reward", *(f"AUC\n{form}" for form in AUC.values()), "compar-\nisons", "chosen -\nrejected"]
    return Report("How well each reward prefers the trait", header, rows, NOTES[2:3])


def _other_report(findings: Findings) -> Report:
    rows: list[list[str]] = []
    for language in findings.languages:
        name = language
        for policy in POLICIES:
            figures = [findings.figures.get((policy, language, measure)) for measure in KEPT]
            if any(figures):
                *shares, length = figures
                texts = [f"{share.value:.0%}" if share else "" for share in shares]
                rows.append([name, policy, *texts, f"{length.value:.0f}" if length else ""])
                name = ""
    header = ["language", "policy", "right\nlanguage", "cut off", "repeats", "length"]
    return Report("What else became of the held-out answers", header, rows, NOTES[3:])


def verdict(findings: Findings) -> list[str]:
    """Return in plain words what was taught, what carried over and which reward prefers the trait."""

    def change(after: str, before: str, language: str) -> str:
        return _answer(findings, (f"{after} - {before}", language, "change"), "{} points", POINTS)

    lines = [f"Taught in English? {change(TAUGHT, INITIAL, ENGLISH)}"]
    taught = findings.figures.get((f"{TAUGHT} - {INITIAL}", ENGLISH, "change"))
    if not _is_enough(taught) or taught.low <= 0:
        lines.append("So nothing here tells whether this trait carries over.")
    where = findings.foreign
    if where is None:
        return lines
    others = "the other languages together" if where == OTHERS else where
    for question, (after, before) in (
        ("Carried over by pi_0 alone", (TAUGHT, INITIAL)),
        ("By R_c, beyond pi_0", (BY_RC, TAUGHT)),
        ("By R_m, beyond pi_0", (BY_RM, TAUGHT)),
        ("More by R_c than by R_m", (BY_RC, BY_RM)),
    ):
        lines.append(f"{question}, in {others}? {change(after, before, where)}")
    for question, of, form, neutral in (
        (f"Does {R_C} prefer it", R_C, AREA, 0.5),
        (f"Does {R_M} prefer it", R_M, AREA, 0.5),
        (f"Does {R_C} prefer it more than {R_M}", BETTER, AREA_CHANGE, 0.0),
    ):
        lines.append(f"{question}, in {others}? {_answer(findings, (of, where, 'auc'), 'raw AUC {}', form, neutral)}")
    return lines


def _answer(findings: Findings, key: tuple[str, str, str], sentence: str, form: str, neutral: float = 0.0) -> str:
    """Say what an interval allows to say: yes, the opposite, or that it was not seen."""
    figure = findings.figures.get(key)
    if not _is_enough(figure):
        return "This cannot be told: too few prompts."
    shown = sentence.format(findings.text(*key, form))
    if figure.low > neutral:
        return f"Yes: {shown}."
    if figure.high < neutral:
        return f"No, the opposite: {shown}."
    return f"Not seen: {shown}, which holds {neutral:g}."


def _is_enough(figure: Figure | None) -> TypeGuard[Figure]:
    """Tell whether there are enough prompts to conclude anything."""
    return figure is not None and figure.prompts >= FEWEST_PROMPTS


def csv_of(findings: Findings) -> str:
    """Return every figure as a line of CSV, in long format."""
    about = [findings.trait, findings.model, findings.seed, __version__]
    rows = [
        [*about, *key, *(f"{value:.6g}" for value in (figure.value, figure.low, figure.high)), figure.n, figure.prompts]
        for key, figure in findings.figures.items()
    ]
    return csv_text(COLUMNS, rows, quoted=False)


def frequency_report(english: Sequence[Response], held_out: Mapping[str, Sequence[Response]], model: str) -> Report:
    """Return how frequent every known trait is in pi_I's answers: how traits are chosen.

    Args:
        english: the answers of which English pairs are made.
        held_out: the answers to the held-out prompts, by language.
        model: the name of pi_I.
    """

    def share(values: Sequence[bool]) -> str:
        return f"{sum(values) / len(values):.0%}" if values else ""

    rows = []
    for name, trait in TRAITS.items():
        by_prompt: dict[str, list[bool]] = {}
        for row in english:
            by_prompt.setdefault(row.prompt_id, []).append(trait.test(row.text))
        divided = sum(len(set(shown)) == 2 for shown in by_prompt.values())
        in_english = share([shown for answers in by_prompt.values() for shown in answers])
        elsewhere = [share([trait.test(row.text) for row in answers]) for answers in held_out.values()]
        rows.append([f"{name}: {trait.description}", in_english, f"{divided}/{len(by_prompt)}", *elsewhere])
    counts = ", ".join(f"{len(answers)} {language}" for language, answers in held_out.items())
    note = (
        f"{model}. English: share of {len(english)} answers to the prompts that pairs are made of, and how many of "
        f"these prompts have answers with and without the trait. Then shares of the held-out answers ({counts}). A "
        "trait can be taught and counted well if a third to two thirds of the answers have it."
    )
    header = ["trait", "English\nanswers", "prompts\nfor pairs", *held_out]
    return Report("How frequent each trait is in pi_I's answers", header, rows, [note], 1)
