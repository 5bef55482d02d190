"""The canary's figures, tables and verdict, against what was worked out by hand."""

import csv
import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from crosspref.data.records import Pair, Response, Score
from crosspref.errors import RecipeError
from crosspref.lab.canary.figures import (
    AUC,
    BY_RC,
    BY_RM,
    INITIAL,
    OTHERS,
    TAUGHT,
    Figure,
    FigureBootstrap,
    Figures,
    Judged,
    other_figures,
    reward_figures,
    reward_values,
    trait_figures,
)
from crosspref.lab.canary.report import COLUMNS, Findings, csv_of, frequency_report, make_reports, verdict
from crosspref.lab.canary.run import MODEL, SETTINGS, Canary, make_canary
from crosspref.lab.canary.traits import TRAITS
from crosspref.run.progress import Reporter

DIGIT = TRAITS["digit"].test
BOOTSTRAP = FigureBootstrap(200, 0)


def answers(language: str, **texts: str) -> list[Response]:
    """One response per letter of each prompt's text: a digit has the trait `digit`, a letter has not."""
    return [
        Response(prompt_id, language, sample, text, [7] * 4, "length", sample)
        for prompt_id, letters in texts.items()
        for sample, text in enumerate(letters)
    ]


def scores(responses: list[Response], values: list[float | None], tokens: int | None = 4) -> list[Score]:
    return [
        Score(row.prompt_id, row.language, row.sample, "crosslingual", None, None, tokens, 10 * (row.sample + 1), value)
        for row, value in zip(responses, values, strict=True)
    ]


def judged(
    responses: list[Response],
    marks: list[Score],
    unit: str = "characters",
    pairs: list[Pair] | None = None,
    **alphas: float,
) -> Judged:
    penalties = dict.fromkeys([row.language for row in responses], 0.0) | alphas
    return Judged(responses, reward_values(marks, penalties, unit), pairs or [])


def numbers(figure: Figure) -> tuple[float, int, int]:
    return figure.value, figure.n, figure.prompts


def test_how_often_the_trait_appears_and_what_stands_for_the_other_languages() -> None:
    rows = [*answers("en", q="11aa", p="1aaa"), *answers("es", q="aaaa", p="1111"), *answers("fr", q="1aaa")]
    figures = trait_figures({INITIAL: rows}, DIGIT, BOOTSTRAP)
    assert list(figures) == [(INITIAL, language, "trait") for language in ("en", "es", "fr", OTHERS)]
    _, spanish, french, _ = figures.values()
    assert [*map(numbers, figures.values())] == [(3 / 8, 8, 2), (4 / 8, 8, 2), (1 / 4, 4, 1), (5 / 12, 12, 2)]
    assert (spanish.low, spanish.high) == (0, 1)
    assert math.isnan(french.low)


def test_one_other_language_is_not_taken_together_with_itself() -> None:
    figures = trait_figures({INITIAL: [*answers("en", q="1"), *answers("es", q="1")]}, DIGIT, BOOTSTRAP)
    assert [language for _, language, _ in figures] == ["en", "es"]


def test_a_change_is_of_the_same_prompt_and_sample() -> None:
    # The order is another one, and the last prompt has an answer of one policy alone.
    before = [*answers("en", q="1a"), *answers("en", p="aa")]
    after = [*answers("en", p="1a", more="1"), *answers("en", q="aa")]
    change = trait_figures({INITIAL: before, TAUGHT: after}, DIGIT, BOOTSTRAP)["pi_0 - pi_I", "en", "change"]
    assert numbers(change) == (0.0, 4, 2)
    assert (change.low, change.high) == (-0.5, 0.5)


def test_auc_by_hand() -> None:
    rows = [*answers("en", q="1a2", p="1aa", same="11"), *answers("es", q="1a")]
    # q: 3 > 1 and 0 < 1; p: 2 > 1 and 2 = 2; of `same` nothing can be compared; es: 0 < 5.
    values = [3.0, 1.0, 0.0, 2.0, 1.0, 2.0, 9.0, 9.0, 0.0, 5.0]
    figures = reward_figures({"R_c": judged(rows, scores(rows, list(values))[::-1])}, DIGIT, BOOTSTRAP)
    english = figures["R_c", "en", "auc"]
    assert numbers(english) == ((1 + 0 + 1 + 0.5) / 4, 4, 2)
    assert numbers(figures["R_c", "es", "auc"]) == (0.0, 1, 1)
    assert (english.low, english.high) == (0.5, 0.75)


def test_how_much_better_one_reward_is_than_another() -> None:
    rows = answers("en", q="1a2", p="1a")
    first = judged(rows, scores(rows, [2.0, 1.0, 3.0, 1.0, 0.0]))  # prefers it in all cases
    # The second one prefers it in none of q, and has no reward of an answer to p, where nothing is compared then.
    second = judged(rows, scores(rows, [0.0, 1.0, 0.5, None, 0.0]))
    figures = reward_figures({"R_c": first, "R_m": second}, DIGIT, BOOTSTRAP)
    assert numbers(figures["R_c", "en", "auc"]) == (1.0, 3, 2)
    assert numbers(figures["R_m", "en", "auc"]) == (0.0, 2, 1)
    assert numbers(figures["R_c - R_m", "en", "auc"]) == (1.0, 2, 1)


def test_languages_are_compared_within_themselves_also_when_taken_together() -> None:
    rows = [*answers("es", q="1a"), *answers("fr", q="1a")]
    # Across languages 1 > 0 and 11 > 10 hold, and 1 > 10 does not: that is never asked.
    given = judged(rows, scores(rows, [1.0, 0.0, 11.0, 10.0]))
    assert numbers(reward_figures({"R_c": given}, DIGIT, BOOTSTRAP)["R_c", OTHERS, "auc"]) == (1.0, 2, 1)


def test_the_forms_of_a_reward() -> None:
    rows = answers("en", q="1a")
    # The characters are 10 and 20, the tokens 4 and 1: per token the first one loses, penalised it wins.
    marks = [*scores(rows[:1], [2.0]), *scores(rows[1:], [3.0], tokens=1)]
    given = judged(rows, marks, en=0.2)
    assert [list(values.values()) for values in given.values.values()] == [[2.0, 3.0], [0.5, 3.0], [0.0, -1.0]]
    figures = reward_figures({"R_m": given}, DIGIT, BOOTSTRAP)
    assert [figures["R_m", "en", form].value for form in AUC] == [0.0, 0.0, 1.0]
    assert list(judged(rows, marks, "tokens", en=1.0).values["auc_penalised"].values()) == [-2.0, 2.0]


def test_what_has_no_finite_reward_or_no_score_is_left_out() -> None:
    rows = answers("en", q="1a2b3")
    marks = scores(rows[:4], [1.0, None, math.inf, math.nan])
    assert list(judged(rows, marks).values["auc"]) == [("en", "q", 0)]
    without_tokens = judged(rows[:1], scores(rows[:1], [1.0], tokens=0)).values
    assert [list(values.values()) for values in without_tokens.values()] == [[1.0], [], [1.0]]


def pair(prompt_id: str, chosen: str, rejected: str) -> Pair:
    texts = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return Pair(prompt_id, "es", [{"role": "user", "content": "?"}], *texts, 0, 1, None, None, None, None, None)


def test_what_a_reward_selects() -> None:
    pairs = [pair("a", "1", "x"), pair("b", "1", "2"), pair("c", "x", "1"), pair("d", "1", "x")]
    figures = reward_figures({"R_m": judged([], [], pairs=pairs)}, DIGIT, BOOTSTRAP)
    assert {key: numbers(figure) for key, figure in figures.items()} == {
        ("R_m", "es", "chosen_minus_rejected"): (0.25, 4, 4)
    }
    assert reward_figures({"R_m": judged([], [])}, DIGIT, BOOTSTRAP) == {}


def test_what_else_is_counted() -> None:
    rows = [*answers("en", q="aa"), *answers("es", q="bbb")]
    figures = other_figures(TAUGHT, rows, lambda language: (lambda _: "en") if language == "en" else None, BOOTSTRAP)
    assert numbers(figures[TAUGHT, "en", "right_language"]) == (1.0, 2, 1)
    assert numbers(figures[TAUGHT, "es", "truncated"]) == (1.0, 3, 1)
    assert (TAUGHT, "es", "right_language") not in figures


def change(after: str, before: str, language: str, mean: float, spread: float = 0.1) -> Figures:
    return {(f"{after} - {before}", language, "change"): Figure(mean, mean - spread, mean + spread, 48, 12)}


def findings(*figures: Figures) -> Findings:
    return Findings("digit", "a [bold] model", 7, 20, 15, {key: row for part in figures for key, row in part.items()})


def test_the_verdict_says_what_the_intervals_allow() -> None:
    lines = verdict(
        findings(
            change(TAUGHT, INITIAL, "en", 0.4),
            change(TAUGHT, INITIAL, OTHERS, 0.05),
            change(BY_RC, TAUGHT, OTHERS, 0.2),
            change(BY_RM, TAUGHT, OTHERS, -0.2),
            {
                ("R_c", OTHERS, "auc"): Figure(0.7, 0.6, 0.8, 99, 20),
                ("R_m", OTHERS, "auc"): Figure(0.45, 0.4, 0.5, 99, 20),
                ("R_c - R_m", OTHERS, "auc"): Figure(0.25, 0.05, 0.45, 99, 20),
            },
        )
    )
    assert lines == [
        "Taught in English? Yes: +40 [+30, +50] points.",
        "Carried over by pi_0 alone, in the other languages together? Not seen: +5 [-5, +15] points, which holds 0.",
        "By R_c, beyond pi_0, in the other languages together? Yes: +20 [+10, +30] points.",
        "By R_m, beyond pi_0, in the other languages together? No, the opposite: -20 [-30, -10] points.",
        "More by R_c than by R_m, in the other languages together? This cannot be told: too few prompts.",
        "Does R_c prefer it, in the other languages together? Yes: raw AUC 0.70 [0.60, 0.80].",
        "Does R_m prefer it, in the other languages together? Not seen: raw AUC 0.45 [0.40, 0.50], which holds 0.5.",
        "Does R_c prefer it more than R_m, in the other languages together? Yes: raw AUC +0.25 [+0.05, +0.45].",
    ]


@pytest.mark.parametrize("taught", [change(TAUGHT, INITIAL, "en", 0.1), change(TAUGHT, INITIAL, "en", -0.3)])
def test_what_was_not_taught_is_said_to_tell_nothing(taught: Figures) -> None:
    assert verdict(findings(taught))[1] == "So nothing here tells whether this trait carries over."


def test_a_few_prompts_allow_no_verdict_even_if_they_all_agree() -> None:
    key = (f"{TAUGHT} - {INITIAL}", "en", "change")
    few, enough = (verdict(findings({key: Figure(1.0, 1.0, 1.0, 40, prompts)})) for prompts in (5, 6))
    assert few[0] == "Taught in English? This cannot be told: too few prompts."
    assert few[1:] == ["So nothing here tells whether this trait carries over."]
    assert enough == ["Taught in English? Yes: +100 [+100, +100] points."]


def test_one_other_language_is_named() -> None:
    assert "in es?" in verdict(findings(change(TAUGHT, INITIAL, "en", 0.4), change(TAUGHT, INITIAL, "es", 0.4)))[1]


def test_the_tables() -> None:
    figures = {
        (INITIAL, "en", "trait"): Figure(0.5, 0.25, 0.75, 48, 12),
        (BY_RM, "es", "trait"): Figure(1.0, math.nan, math.nan, 4, 1),
        ("R_m", "es", "auc"): Figure(0.75, 0.5, 1.0, 30, 9),
        ("R_m", "es", "chosen_minus_rejected"): Figure(-0.25, -0.5, 0.0, 9, 9),
        (TAUGHT, "es", "right_language"): Figure(0.9, 0.8, 1.0, 48, 12),
        (TAUGHT, "es", "characters"): Figure(99.6, 90.0, 110.0, 48, 12),
    }
    trait, changes, auc, other = make_reports(findings(figures, change(BY_RC, BY_RM, "es", 0.125)))
    assert trait.rows == [["en", "50% [25%, 75%]", "", "", ""], ["es", "", "", "", "100%"]]
    assert changes.rows[1] == ["es", "", "", "", "+12 [+2, +22]"]
    assert auc.rows[4] == ["", "R_m", "0.75\n[0.50, 1.00]", "", "", "30/9", "-25\n[-50, +0]"]
    assert other.rows == [["es", "pi_0", "90%", "", "", "100"]]
    assert trait.notes[0] == "a [bold] model, seed 7; taught with 20 English pairs of 15 prompts."


def test_the_tables_fit_a_screen() -> None:
    wide = {
        (of, "others", name): Figure(*[-0.123] * 3, 999, 99)
        for of in ("R_c", "R_m", "R_c - R_m")
        for name in ("auc", "auc_per_token", "auc_penalised", "chosen_minus_rejected")
    }
    console = Console(width=92, file=io.StringIO())
    for report in make_reports(findings(wide)):
        console.print(report.table())
    text = console.file.getvalue()
    assert "others" in text
    assert "R_c - R_m" in text
    assert text.count("[-0.12, -0.12]") == 9


def test_every_figure_is_a_line_of_the_csv() -> None:
    auc = {("R_m", "es", "auc"): Figure(1 / 3, math.nan, math.nan, 3, 1)}
    lines = list(csv.DictReader(io.StringIO(csv_of(findings(change(BY_RC, BY_RM, "es", 0.125), auc)))))
    assert list(lines[0]) == COLUMNS
    assert lines[0]["of"] == "pi_1 by R_c - pi_1 by R_m"
    assert [lines[1][name] for name in ("trait", "model", "seed", "measure", "mean", "low", "n", "prompts")] == [
        *("digit", "a [bold] model", "7", "auc", "0.333333", "nan", "3", "1")
    ]


def test_how_frequent_traits_are() -> None:
    report = frequency_report(answers("en", q="1a", p="aa"), {"en": answers("en", x="11"), "es": []}, "model")
    assert ["digit: there is a digit", "25%", "1/2", "100%", ""] in report.rows
    assert len(report.rows) == len(TRAITS)


def make(*overrides: str, seed: int | None = None, answers: int = 4) -> Canary:
    return make_canary(Path("out"), overrides, model=MODEL, seed=seed, answers=answers, reporter=Reporter())


def test_settings_are_a_recipe_that_can_be_overridden() -> None:
    assert make().recipe.seed == 42
    canary = make("sample.n=2", "languages=[en, es]", seed=7)
    assert (canary.recipe.sample.n, canary.recipe.languages, canary.recipe.seed) == (2, ["en", "es"], 7)
    assert canary.recipe.sample.temperature == SETTINGS["sample"]["temperature"]
    assert SETTINGS["sample"]["n"] != 2, "an override must not stay for the next canary"


@pytest.mark.parametrize(
    "change", ["align_english=null", "evaluate.prompts=null", "languages=[es, en]", "iterations=2"]
)
def test_what_a_canary_cannot_do_without(change: str) -> None:
    overrides = [change, "models.policy=x"] if change.startswith("align") else [change]
    with pytest.raises(RecipeError, match="A canary needs"):
        make(*overrides)


def test_one_answer_makes_no_pair() -> None:
    with pytest.raises(RecipeError, match="at least 2 answers per prompt, but --answers is 1"):
        make(answers=1)
