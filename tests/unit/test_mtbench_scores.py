"""From grades to the scores of MT-Bench, against numbers made by hand and a bootstrap by clusters written out."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from crosspref.maths.resampling import resample_means
from crosspref.run.verdicts import Verdict
from crosspref.suites.mtbench.files import TwoTurns
from crosspref.suites.mtbench.results import NO_ANSWER, Scores, Turn, compare, measure
from crosspref.suites.results import MEAN, ModelChange

Given = Mapping[str, Sequence[float | str | None]]
"""By question id the grades of both turns; None is one that could not be read, and a text why there was none."""


def graded(model: str, language: str, given: Given, category: str = "writing") -> list[Turn]:
    found = []
    for name, grades in given.items():
        question = TwoTurns(name, category, ("One?", "Two?"))
        for number, grade in enumerate(grades, start=1):
            turn = Turn(model, language, question, number, ("a", "b")[:number])
            if isinstance(grade, str):
                turn.failure = grade
            else:
                failure = "no grade" if grade is None else None
                turn.take(Verdict("k", "judge-1", {}, "2025-01-02", "m", "text", None, grade, failure, {}))
            found.append(turn)
    return found


def rows_of(turns: Sequence[Turn], category: str = "all", resamples: int = 200) -> dict[tuple[str, str], Scores]:
    found = measure(turns, resamples, 1)
    return {(row.model, row.language): row for row in found if row.category == category}


def test_means_by_hand_with_failed_judgements_dropped_and_counted() -> None:
    turns = [
        *graded("m", "de", {"81": (8, 4), "82": (6, None)}),
        *graded("m", "de", {"101": (2, NO_ANSWER)}, "math"),
    ]
    row = rows_of(turns)["m", "de"]
    assert (row.turn_1.value, row.turn_2.value) == (pytest.approx(16 / 3), 4.0)
    assert row.overall.value == pytest.approx((8 + 4 + 6 + 2) / 4)  # over judgements, and not the mean of both turns
    assert (row.questions, row.n_1, row.n_2, row.failed, row.no_answer) == (3, 3, 1, 1, 1)
    assert (row.judge, row.date) == ("judge-1", "2025-01-02")
    assert (math.isnan(row.turn_2.low), row.overall.low < row.overall.value < row.overall.high) == (True, True)
    assert rows_of(turns, "writing")["m", "de"].overall.value == pytest.approx(6.0)
    maths = rows_of(turns, "math")["m", "de"]
    assert (maths.overall.value, math.isnan(maths.turn_2.value), maths.questions) == (2.0, True, 1)
    assert [row.category for row in measure(turns, 10, 1)] == ["all", "writing", "math"]


def test_the_mean_is_the_plain_one_over_languages() -> None:
    turns = [
        *graded("m", "de", {"1": (9, 9)}),
        *graded("m", "fr", {"1": (3, 3), "2": (3, 3), "3": (3, 3)}),
        *graded("m", "ru", {"1": (None, None)}),
    ]
    found = rows_of(turns)
    assert list(found) == [("m", "de"), ("m", "fr"), ("m", "ru"), ("m", MEAN)]
    assert found["m", MEAN].overall.value == pytest.approx(6.0)
    assert math.isnan(found["m", "ru"].overall.value)
    assert (found["m", MEAN].n_1, found["m", MEAN].failed, found["m", MEAN].questions) == (4, 2, 5)


def test_the_bootstrap_is_that_over_questions_written_out() -> None:
    grades = {"a": [7.0, 3.0], "b": [5.0], "c": [9.0, 8.0], "d": [1.0, 2.0]}
    found = resample_means({"m": grades}, resamples=50, seed=3)["m"]
    names = list(grades)
    drawn = np.random.default_rng(3).integers(4, size=(50, 4))
    expected = [np.mean([grade for place in row for grade in grades[names[place]]]) for row in drawn]
    assert found.values == pytest.approx(np.array(expected))
    assert (found.point, found.n) == (pytest.approx(5.0), 4)


def test_two_turns_of_a_question_count_as_one_question() -> None:
    drawn = np.random.default_rng(0).integers(1, 11, size=80).astype(float)
    same = {str(place): [grade, grade] for place, grade in enumerate(drawn)}
    row = rows_of(graded("m", "de", same), resamples=4000)["m", "de"]
    assert row.overall.high - row.overall.low == pytest.approx(2 * 1.96 * drawn.std() / math.sqrt(80), rel=0.06)
    # Of 160 questions it would be 0.71 of that.


def test_languages_are_drawn_together() -> None:
    """The same grades in two languages make the mean no surer; drawn apart, its range would be 0.71 as wide."""
    grades = {str(place): (float(grade), float(grade)) for place, grade in enumerate([1, 9, 4, 7, 2, 8, 3, 10] * 5)}
    found = rows_of([*graded("m", "de", grades), *graded("m", "fr", grades)])
    german, mean = found["m", "de"].overall, found["m", MEAN].overall
    assert (mean.low, mean.high) == (german.low, german.high)


def changes_of(turns: Sequence[Turn]) -> dict[tuple[str, str], ModelChange]:
    return {(row.rate, row.language): row for row in compare(turns, 200, 1)}


def test_differences_are_over_the_turns_that_both_were_graded_on() -> None:
    ours = graded("pi_1", "de", {"1": (8, 6), "2": (5, None), "3": (7, 7)})
    theirs = graded("pi_0", "de", {"1": (4, 5), "2": (4, 9), "3": (NO_ANSWER, NO_ANSWER), "4": (1, 1)})
    found = changes_of([*theirs, *ours])
    assert {key: (row.change.value, row.change.n) for key, row in found.items()} == {
        ("turn 1", "de"): (pytest.approx(5 / 2), 2),
        ("turn 2", "de"): (pytest.approx(1.0), 1),
        ("overall", "de"): (pytest.approx(6 / 3), 2),
    }
    assert {(row.model, row.other) for row in found.values()} == {("pi_1", "pi_0")}


def test_signs_are_flipped_by_question_and_adjusted_over_languages() -> None:
    low = {str(place): (3.0, 3.0) for place in range(8)}
    high = dict.fromkeys(low, (6.0, 5.0))
    odd = {name: (3.0 + (-1) ** int(name), 3.0) for name in low}
    turns = [*graded("pi_0", "de", low), *graded("pi_0", "fr", low)]
    turns += [*graded("pi_1", "de", high), *graded("pi_1", "fr", odd)]
    found = changes_of(turns)
    # Of 2^8 signs two are as extreme, whether of one turn or of both; the smaller of two p-values is doubled by Holm.
    for rate in ("turn 1", "turn 2", "overall"):
        assert found[rate, "de"].change.p_value == pytest.approx(2 * 2 / 2**8)
        assert found[rate, "de"].change.verdict == "better"
        assert found[rate, "fr"].change.p_value == 1.0
        assert found[rate, "fr"].change.verdict == "no difference shown"
    assert found["overall", MEAN].change.value == pytest.approx(2.5 / 2)


def test_a_language_that_one_model_lacks_is_not_compared() -> None:
    turns = [*graded("pi_0", "de", {"1": (3, 3)}), *graded("pi_0", "fr", {"1": (3, 3)})]
    turns += [*graded("pi_1", "de", {"1": (5, 5)}), *graded("pi_1", "fr", {"1": (None, None)})]
    assert {language for _, language in changes_of(turns)} == {"de"}
    assert compare(graded("m", "de", {"1": (3, 3)}), 10, 1) == []
