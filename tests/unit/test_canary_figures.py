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
    BY_RC,
    BY_RM,
    INITIAL,
    OTHERS,
    TAUGHT,
    Bootstrap,
    Figure,
    other_figures,
    pair_figures,
    reward_figures,
    rewarded,
    trait_figures,
)
from crosspref.lab.canary.report import COLUMNS, Found, csv_of, frequency_report, make_reports, verdict
from crosspref.lab.canary.run import MODEL, SETTINGS, Canary, plan
from crosspref.lab.canary.traits import TRAITS
from crosspref.run.progress import Reporter

DIGIT = TRAITS["digit"].test
BOOTSTRAP = Bootstrap(200, 0)


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


def only(figures: list[Figure], of: str, language: str, measure: str) -> Figure:
    (found,) = [row for row in figures if (row.of, row.language, row.measure) == (of, language, measure)]
    return found


def numbers(figure: Figure) -> tuple[float, int, int]:
    return figure.mean, figure.n, figure.prompts


def test_how_often_the_trait_appears_and_what_stands_for_the_other_languages() -> None:
    rows = [*answers("en", q="11aa", p="1aaa"), *answers("es", q="aaaa", p="1111"), *answers("fr", q="1aaa")]
    figures = trait_figures({INITIAL: rows}, DIGIT, BOOTSTRAP)
    assert [row.language for row in figures] == ["en", "es", "fr", OTHERS]
    assert [numbers(row) for row in figures] == [(3 / 8, 8, 2), (4 / 8, 8, 2), (1 / 4, 4, 1), (5 / 12, 12, 2)]
    assert (figures[1].low, figures[1].high) == (0, 1)
    assert math.isnan(figures[2].low)


def test_one_other_language_is_not_taken_together_with_itself() -> None:
    figures = trait_figures({INITIAL: [*answers("en", q="1"), *answers("es", q="1")]}, DIGIT, BOOTSTRAP)
    assert [row.language for row in figures] == ["en", "es"]


def test_a_change_is_of_the_same_prompt_and_sample() -> None:
    # The order is another one, and the last prompt has an answer of one policy alone.
    before = [*answers("en", q="1a"), *answers("en", p="aa")]
    after = [*answers("en", p="1a", more="1"), *answers("en", q="aa")]
    figures = trait_figures({INITIAL: before, TAUGHT: after}, DIGIT, BOOTSTRAP)
    change = only(figures, "pi_0 - pi_I", "en", "change")
    assert numbers(change) == (0.0, 4, 2)
    assert (change.low, change.high) == (-0.5, 0.5)


def test_auc_by_hand() -> None:
    rows = [*answers("en", q="1a2", p="1aa", same="11"), *answers("es", q="1a")]
    # q: 3 > 1 and 0 < 1; p: 2 > 1 and 2 = 2; of `same` nothing can be compared; es: 0 < 5.
    values = [3.0, 1.0, 0.0, 2.0, 1.0, 2.0, 9.0, 9.0, 0.0, 5.0]
    found = rewarded(rows, scores(rows, list(values))[::-1], {"en": 0.0, "es": 0.0}, "characters")
    figures = reward_figures({"R_c": found}, DIGIT, BOOTSTRAP)
    assert numbers(only(figures, "R_c", "en", "auc")) == ((1 + 0 + 1 + 0.5) / 4, 4, 2)
    assert numbers(only(figures, "R_c", "es", "auc")) == (0.0, 1, 1)
    assert (only(figures, "R_c", "en", "auc").low, only(figures, "R_c", "en", "auc").high) == (0.5, 0.75)


def test_how_much_better_one_reward_is_than_another() -> None:
    rows = answers("en", q="1a2", p="1a")
    none = {"en": 0.0}
    first = rewarded(rows, scores(rows, [2.0, 1.0, 3.0, 1.0, 0.0]), none, "characters")  # prefers it in all cases
    # The second one prefers it in none of q, and has no reward of an answer to p, where nothing is compared then.
    second = rewarded(rows, scores(rows, [0.0, 1.0, 0.5, None, 0.0]), none, "characters")
    figures = reward_figures({"R_c": first, "R_m": second}, DIGIT, BOOTSTRAP)
    assert numbers(only(figures, "R_c", "en", "auc")) == (1.0, 3, 2)
    assert numbers(only(figures, "R_m", "en", "auc")) == (0.0, 2, 1)
    assert numbers(only(figures, "R_c - R_m", "en", "auc")) == (1.0, 2, 1)


def test_languages_are_compared_within_themselves_also_when_taken_together() -> None:
    rows = [*answers("es", q="1a"), *answers("fr", q="1a")]
    # Across languages 1 > 0 and 11 > 10 hold, and 1 > 10 does not: that is never asked.
    found = rewarded(rows, scores(rows, [1.0, 0.0, 11.0, 10.0]), {"es": 0.0, "fr": 0.0}, "characters")
    assert numbers(only(reward_figures({"R_c": found}, DIGIT, BOOTSTRAP), "R_c", OTHERS, "auc")) == (1.0, 2, 1)


def test_the_forms_of_a_reward() -> None:
    rows = answers("en", q="1a")
    # The characters are 10 and 20, the tokens 4 and 1: per token the first one loses, penalised it wins.
    marks = [*scores(rows[:1], [2.0]), *scores(rows[1:], [3.0], tokens=1)]
    found = rewarded(rows, marks, {"en": 0.2}, "characters")
    assert [row.rewards for row in found] == [(2.0, 0.5, 0.0), (3.0, 3.0, -1.0)]
    figures = reward_figures({"R_m": found}, DIGIT, BOOTSTRAP)
    means = [only(figures, "R_m", "en", name).mean for name in ("auc", "auc_per_token", "auc_penalised")]
    assert means == [0.0, 0.0, 1.0]
    in_tokens = rewarded(rows, marks, {"en": 1.0}, "tokens")
    assert [row.rewards[2] for row in in_tokens] == [-2.0, 2.0]


def test_what_has_no_finite_reward_or_no_score_is_left_out() -> None:
    rows = answers("en", q="1a2b3")
    marks = scores(rows[:4], [1.0, None, math.inf, math.nan])
    assert [row.response.sample for row in rewarded(rows, marks, {"en": 0.0}, "characters")] == [0]
    without_tokens = rewarded(rows[:1], scores(rows[:1], [1.0], tokens=0), {"en": 0.0}, "characters")
    assert without_tokens[0].rewards == (1.0, None, 1.0)


def pair(prompt_id: str, chosen: str, rejected: str) -> Pair:
    texts = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return Pair(prompt_id, "es", [{"role": "user", "content": "?"}], *texts, 0, 1, None, None, None, None, None)


def test_what_a_reward_selects() -> None:
    pairs = [pair("a", "1", "x"), pair("b", "1", "2"), pair("c", "x", "1"), pair("d", "1", "x")]
    assert [numbers(row) for row in pair_figures("R_m", pairs, DIGIT, BOOTSTRAP)] == [(0.25, 4, 4)]
    assert pair_figures("R_m", [], DIGIT, BOOTSTRAP) == []


def test_what_else_is_counted() -> None:
    rows = [*answers("en", q="aa"), *answers("es", q="bbb")]
    figures = other_figures(TAUGHT, rows, lambda language: (lambda _: "en") if language == "en" else None, BOOTSTRAP)
    found = {(row.language, row.measure): numbers(row) for row in figures}
    assert found[("en", "right_language")] == (1.0, 2, 1)
    assert found[("es", "truncated")] == (1.0, 3, 1)
    assert ("es", "right_language") not in found


def change(after: str, before: str, language: str, mean: float, spread: float = 0.1) -> Figure:
    return Figure(f"{after} - {before}", language, "change", mean, mean - spread, mean + spread, 48, 12)


def found(*figures: Figure) -> Found:
    return Found("digit", "a [bold] model", 7, 20, 15, figures)


def test_the_verdict_says_what_the_intervals_allow() -> None:
    lines = verdict(
        found(
            change(TAUGHT, INITIAL, "en", 0.4),
            change(TAUGHT, INITIAL, OTHERS, 0.05),
            change(BY_RC, TAUGHT, OTHERS, 0.2),
            change(BY_RM, TAUGHT, OTHERS, -0.2),
            Figure("R_c", OTHERS, "auc", 0.7, 0.6, 0.8, 99, 20),
            Figure("R_m", OTHERS, "auc", 0.45, 0.4, 0.5, 99, 20),
            Figure("R_c - R_m", OTHERS, "auc", 0.25, 0.05, 0.45, 99, 20),
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
def test_what_was_not_taught_is_said_to_tell_nothing(taught: Figure) -> None:
    assert verdict(found(taught))[1] == "So nothing here tells whether this trait carries over."


def test_a_few_prompts_allow_no_verdict_even_if_they_all_agree() -> None:
    few = Figure(f"{TAUGHT} - {INITIAL}", "en", "change", 1.0, 1.0, 1.0, 40, 5)
    lines = verdict(found(few))
    assert lines[0] == "Taught in English? This cannot be told: too few prompts."
    assert lines[1] == "So nothing here tells whether this trait carries over."
    enough = Figure(f"{TAUGHT} - {INITIAL}", "en", "change", 1.0, 1.0, 1.0, 40, 6)
    assert verdict(found(enough)) == ["Taught in English? Yes: +100 [+100, +100] points."]


def test_one_other_language_is_named() -> None:
    assert "in es?" in verdict(found(change(TAUGHT, INITIAL, "en", 0.4), change(TAUGHT, INITIAL, "es", 0.4)))[1]


def test_the_tables() -> None:
    figures = [
        Figure(INITIAL, "en", "trait", 0.5, 0.25, 0.75, 48, 12),
        Figure(BY_RM, "es", "trait", 1.0, math.nan, math.nan, 4, 1),
        change(BY_RC, BY_RM, "es", 0.125),
        Figure("R_m", "es", "auc", 0.75, 0.5, 1.0, 30, 9),
        Figure("R_m", "es", "chosen_minus_rejected", -0.25, -0.5, 0.0, 9, 9),
        Figure(TAUGHT, "es", "right_language", 0.9, 0.8, 1.0, 48, 12),
        Figure(TAUGHT, "es", "characters", 99.6, 90.0, 110.0, 48, 12),
    ]
    trait, changes, auc, other = make_reports(found(*figures))
    assert trait.rows == [["en", "50% [25%, 75%]", "", "", ""], ["es", "", "", "", "100%"]]
    assert changes.rows[1] == ["es", "", "", "", "+12 [+2, +22]"]
    assert auc.rows[4] == ["", "R_m", "0.75\n[0.50, 1.00]", "", "", "30/9", "-25\n[-50, +0]"]
    assert other.rows == [["es", "pi_0", "90%", "", "", "100"]]
    assert trait.notes[0] == "a [bold] model, seed 7; taught with 20 English pairs of 15 prompts."


def test_the_tables_fit_a_screen() -> None:
    wide = [
        Figure(of, "others", name, *[-0.123] * 3, 999, 99)
        for of in ("R_c", "R_m", "R_c - R_m")
        for name in ("auc", "auc_per_token", "auc_penalised", "chosen_minus_rejected")
    ]
    console = Console(width=92, file=io.StringIO())
    for report in make_reports(found(*wide)):
        console.print(report.table())
    text = console.file.getvalue()
    assert "others" in text
    assert "R_c - R_m" in text
    assert text.count("[-0.12, -0.12]") == 9


def test_every_figure_is_a_line_of_the_csv() -> None:
    figures = [change(BY_RC, BY_RM, "es", 0.125), Figure("R_m", "es", "auc", 1 / 3, math.nan, math.nan, 3, 1)]
    lines = list(csv.DictReader(io.StringIO(csv_of(found(*figures)))))
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
    return plan(Path("out"), overrides, model=MODEL, seed=seed, answers=answers, reporter=Reporter())


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
