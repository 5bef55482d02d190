"""What is counted in held-out responses, and the win rate by reward per token, by hand on small sets."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from crosspref.data.records import Measure, Response, Score
from crosspref.stages import evaluate
from crosspref.stages.evaluate import MEASURES, WIN_RATE, Bootstrap, compare, measure, repeated_share

OPTIONS = Bootstrap(resamples=200, seed=3)


def response(prompt: str, sample: int, text: str = "hola", **changes: Any) -> Response:
    return replace(Response(prompt, "es", sample, text, [1, 2, 3], "stop", None), **changes)


def score(prompt: str, sample: int, reward: float, tokens: int = 1) -> Score:
    return Score(prompt, "es", sample, "multilingual", 0.0, -reward, tokens, 4, reward)


def counted(responses: list[Response], identify: Any = None, language: str = "es") -> dict[str, Measure]:
    return {row.measure: row for row in measure(responses, language, 1, identify, OPTIONS)}


@pytest.mark.parametrize(
    ("units", "share"),
    [
        ("", 0.0),
        ("abc", 0.0),
        ("abcd", 0.0),
        ("abcdefgh", 0.0),
        ("aaaaa", 1 / 2),  # aaaa twice
        ("abcdabcd", 1 / 5),  # abcd bcda cdab dabc abcd
        ("xyxyxyxy", 3 / 5),  # xyxy yxyx xyxy yxyx xyxy
        ([7, 7, 7, 7, 7, 7], 2 / 3),
    ],
)
def test_repeated_share(units: Any, share: float) -> None:
    assert repeated_share(units) == pytest.approx(share)


def test_worked_example() -> None:
    rows = counted(
        [
            response("p", 0, "hola", token_ids=[5] * 5),  # half of its two 4-grams is repeated
            response("p", 1, "hola mundo", finish_reason="length"),
            response("q", 0, "hello", token_ids=[]),
            response("q", 1, "añ👍", token_ids=[1, 2, 3, 4, 1, 2, 3, 4]),  # a fifth
        ],
        identify=lambda text: "en" if text == "hello" else "es",
    )
    assert {name: row.mean for name, row in rows.items()} == pytest.approx(
        {
            "right_language": 3 / 4,
            "repetition": (1 / 2 + 1 / 5) / 4,
            "truncated": 1 / 4,
            "characters": (4 + 10 + 5 + 3) / 4,
        }
    )
    for row in rows.values():
        assert (row.iteration, row.language, row.n, row.prompts) == (1, "es", 4, 2)


def test_intervals_resample_prompts() -> None:
    # Two prompts, one always right and one always wrong: a resample of two prompts is right to 0, 1/2 or 1.
    texts = {"p": "es", "q": "en"}
    rows = counted([response(prompt, n, texts[prompt]) for prompt in "pq" for n in range(50)], identify=str)
    row = rows["right_language"]
    assert (row.mean, row.low, row.high, row.n, row.prompts) == (0.5, 0.0, 1.0, 100, 2)
    # No resample has a truncated response. By Wilson, none of two prompts is 0 to z^2 / (2 + z^2).
    assert (rows["truncated"].low, rows["truncated"].high) == (0.0, pytest.approx(3.841459 / 5.841459))


def test_a_language_that_is_not_known_has_no_share_of_right_ones() -> None:
    assert set(counted([response("p", 0)])) == {"repetition", "truncated", "characters"}
    assert counted([]) == {}  # all held-out prompts of a language can be too long for the model


def test_a_regional_form_counts_as_its_language() -> None:
    rows = [response("p", 0, "oi", language="pt-br"), response("p", 1, "hi", language="pt-br")]
    found = counted(rows, identify={"oi": "pt", "hi": "en"}.__getitem__, language="pt-br")
    assert found["right_language"].mean == 0.5


def test_repetition_is_not_guessed_where_token_ids_are_missing() -> None:
    # Its label says tokens; characters repeat far more.
    assert "repetition" not in counted([response("p", 0), response("p", 1, "aaaaaaaa", token_ids=None)])


def test_every_measure_says_what_it_is() -> None:
    rows = counted([response("p", 0)], identify=lambda text: "es")
    assert {*rows, WIN_RATE} == set(MEASURES)
    assert "not the reward that was trained on (unless that was R_m)" in MEASURES[WIN_RATE]
    assert "a proxy, not a judgement of quality" in MEASURES[WIN_RATE]


def test_every_response_meets_every_one_of_the_baseline() -> None:
    own = [*(score("p", n, reward) for n, reward in enumerate([1.0, 2.0, 3.0])), score("q", 0, 0.5)]
    baseline = [*(score("p", n, reward) for n, reward in enumerate([0.0, 2.0])), score("q", 0, 0.5)]
    # p: 1 beats 0; 2 beats 0 and ties with 2; 3 beats both: 4.5 of 6. q: a tie.
    row = compare(own, baseline, "es", 2, OPTIONS)
    assert (row.mean, row.n, row.prompts) == (5 / 7, 7, 2)
    assert (row.iteration, row.language, row.measure) == (2, "es", WIN_RATE)
    assert row.low <= row.mean <= row.high
    assert compare(baseline, own, "es", 2, OPTIONS).mean == 2 / 7


def test_the_reward_is_per_token() -> None:
    # 4 nats over 4 tokens are less than 3 over 2, and -4 over 4 are more than -3 over 2.
    assert compare([score("p", 0, 4.0, 4)], [score("p", 0, 3.0, 2)], "es", 1, OPTIONS).mean == 0.0
    assert compare([score("p", 0, -4.0, 4)], [score("p", 0, -3.0, 2)], "es", 1, OPTIONS).mean == 1.0


def test_what_cannot_be_compared_is_left_out() -> None:
    unrewarded = replace(score("p", 3, 9.0), implicit_reward=None)
    own = [score("p", 0, 1.0), score("p", 1, 9.0, 0), score("p", 2, math.nan), unrewarded, score("own alone", 0, 9.0)]
    baseline = [score("p", 0, 2.0), score("p", 1, -math.inf), score("baseline alone", 0, 0.0)]
    row = compare(own, baseline, "es", 1, OPTIONS)
    assert (row.mean, row.n, row.prompts) == (0.0, 1, 1)
    assert compare(own[1:], baseline, "es", 1, OPTIONS) is None
    assert compare([], [], "es", 1, OPTIONS) is None


def test_the_order_of_rows_and_of_sets_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [score(f"p{number}", n, random.Random(f"a{number}{n}").random()) for number in range(30) for n in range(2)]
    baseline = [score(f"p{number}", 0, random.Random(f"b{number}").random()) for number in range(30)]
    expected = compare(own, baseline, "es", 1, OPTIONS)
    shuffled = random.Random(1).sample(own, len(own)), random.Random(2).sample(baseline, len(baseline))
    assert compare(*shuffled, "es", 1, OPTIONS) == expected
    # A set of strings has another order in every process, and the bootstrap draws prompts by their place.
    seen: list[str] = []
    original = evaluate.mean_interval

    def noted(values: Any, clusters: Any, **options: Any) -> Any:
        seen.extend(clusters)
        return original(values, clusters, **options)

    monkeypatch.setattr(evaluate, "mean_interval", noted)
    compare(own, baseline, "es", 1, OPTIONS)
    assert seen == sorted(seen)


def test_seed_and_resamples_reach_the_interval() -> None:
    rows = [response(f"p{number}", 0, "x" * (number**2)) for number in range(20)]

    def interval(**changes: int) -> tuple[float, float]:
        [row] = [
            row for row in measure(rows, "es", 1, None, replace(OPTIONS, **changes)) if row.measure == "characters"
        ]
        return row.low, row.high

    assert interval() == interval()
    assert interval(seed=4) != interval()
    assert interval(resamples=201) != interval()


def test_a_reward_per_token_is_not_divided_again() -> None:
    # 0.4 and 0.3 per token; summed they would be 0.4 and 1.2.
    own, baseline = [replace(score("p", 0, 0.4), tokens=1)], [replace(score("p", 0, 0.3), tokens=4)]
    assert compare(own, baseline, "es", 1, OPTIONS).mean == 1.0
    summed = [replace(score("p", 0, 0.5), tokens=1)], [replace(score("p", 0, 1.2), tokens=4)]
    assert compare(*summed, "es", 1, OPTIONS).mean == 1.0
    assert compare(*summed, "es", 1, OPTIONS, per_token=True).mean == 0.0
