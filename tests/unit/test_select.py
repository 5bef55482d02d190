"""Making pairs from hand-made responses and scores, with alpha and pairs worked out by hand."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspref.data.records import Response, Score, to_table
from crosspref.errors import DataError
from crosspref.recipe.sections import LengthPenaltySettings, SelectSettings
from crosspref.run.job import settings_of
from crosspref.stages.select.select import PairRules, Part, Selection, pair_faults, select, select_parts

Row = tuple[Response, Score]


def row(prompt: str, sample: int, reward: float, characters: int, **changes: Any) -> Row:
    """A response of that many characters, with its score; its token ids tell which one it is."""
    text = changes.pop("text", chr(ord("a") + sample) * characters)
    tokens = changes.pop("tokens", 1)
    response = Response(prompt, "es", sample, text, [100, sample], changes.pop("finish_reason", "stop"), None)
    score = Score(prompt, "es", sample, "crosslingual", -1.0, -1.0 - reward, tokens, characters, reward)
    return replace(response, **changes), score


def forbidden(text: str) -> str:
    raise AssertionError("languages are identified only where wrong ones are dropped")


def chosen(
    rows: list[Row],
    *,
    prompts: str = "pq",
    penalty: dict[str, Any] | None = None,
    language: str = "es",
    identify: Any = forbidden,
    noise: float = 0.0,
    **settings: Any,
) -> Selection:
    return select(
        [response for response, _ in rows],
        [score for _, score in rows],
        PairRules(
            language,
            {prompt: f"¿{prompt}?" for prompt in prompts},
            LengthPenaltySettings(**(penalty or {"mode": "none"})),
            SelectSettings(**settings),
            identify,
            noise,
        ),
    )


def samples(selection: Selection) -> dict[str, tuple[int | None, int | None]]:
    return {pair.prompt_id: (pair.chosen_sample, pair.rejected_sample) for pair in selection.pairs}


def reasons(selection: Selection) -> dict[str, str]:
    return {dropped.prompt_id: dropped.reason for dropped in selection.dropped}


# p: the lines 2 - 10 a and 1 - 2 a cross at a = 1/8. q: 3 - 6 a and 1 - 2 a cross at a = 1/2.
# The mean of len(chosen) - len(rejected) is (8 + 4) / 2 = 6 below 1/8, (-8 + 4) / 2 = -2 up to 1/2, then -6.
# So the minimisers of its size are those between 1/8 and 1/2, and their middle is 5/16.
WORKED = [row("p", 0, 2.0, 10), row("p", 1, 1.0, 2), row("q", 0, 1.0, 2), row("q", 1, 3.0, 6)]


def test_worked_example() -> None:
    found = chosen(WORKED, penalty={"mode": "optimal"})
    assert found.alpha == 5 / 16
    assert found.penalty.interval == (1 / 8, 1 / 2)
    assert found.curve().to_pydict() == {
        "alpha": [-math.inf, 1 / 8, 1 / 2],
        "mean_length_difference": [6.0, -2.0, -6.0],
    }
    assert found.dropped == []
    p, q = found.pairs
    # 1 - 2 * 5/16 and 2 - 10 * 5/16; 3 - 6 * 5/16 and 1 - 2 * 5/16.
    assert (p.prompt_id, p.chosen_reward, p.rejected_reward, p.alpha) == ("p", 0.375, -1.125, 5 / 16)
    assert (q.prompt_id, q.chosen_reward, q.rejected_reward, q.alpha) == ("q", 1.125, 0.375, 5 / 16)
    assert p.prompt == [{"role": "user", "content": "¿p?"}]
    assert p.chosen == [{"role": "assistant", "content": "bb"}]
    assert p.rejected == [{"role": "assistant", "content": "a" * 10}]
    assert (p.language, p.chosen_sample, p.rejected_sample) == ("es", 1, 0)
    assert (q.chosen_sample, q.rejected_sample) == (1, 0)
    assert found.length_differences == [-8, 4]
    assert found.figures() == {"alpha": 5 / 16, "mean_length_difference": -2.0, "dropped": {}}
    assert found.summary() == "2 pairs; alpha 0.312, mean length difference -2.0"


CUT = {"finish_reason": "length", "token_ids": None}


def ends(rows: list[Row], always_ended: bool = False, **settings: Any) -> list[tuple[bool | None, bool | None]]:
    tables: list[Any] = []
    rules = PairRules(
        "es",
        dict.fromkeys("pq", "?"),
        LengthPenaltySettings(mode="none"),
        SelectSettings(**settings),
        always_ended=always_ended,
    )
    responses, scores = ([both[side] for both in rows] for side in (0, 1))
    part = Part(to_table(responses, Response).select, to_table(scores, Score).select)
    select_parts([part], rules, tables.append)
    [table] = tables
    names = [name for name in ("chosen_ended", "rejected_ended") if name in table.column_names]
    return [tuple(row[name] for name in names) for row in table.to_pylist()]


def test_pairs_say_which_texts_were_cut() -> None:
    texts = [row("p", 0, 2.0, 5, **CUT), row("p", 1, 1.0, 2, token_ids=None), row("q", 0, 1.0, 3, **CUT)]
    texts.append(row("q", 1, 3.0, 3, finish_reason="length"))
    assert ends(texts, truncated="keep") == [(False, None), (None, False)]
    assert ends(texts, truncated="keep", always_ended=True) == [(), ()]
    assert ends([row("p", 0, 2.0, 5, finish_reason="length"), row("p", 1, 1.0, 2)], truncated="keep") == [()]
    assert ends([row("p", 0, 2.0, 5, token_ids=None), row("p", 1, 1.0, 2, token_ids=None)], truncated="drop") == [()]


def test_pairs_of_versions_that_did_not_say_which_texts_were_cut_are_whole() -> None:
    texts = [row("p", 0, 2.0, 5, **CUT), row("p", 1, 1.0, 2, token_ids=None)]
    [pair] = chosen(texts, truncated="keep").pairs
    older = replace(pair, chosen_ended=None, rejected_ended=None)
    assert pair.chosen_ended is False
    assert not [*pair_faults([older], [pair])]
    assert [*pair_faults([replace(pair, chosen_ended=True)], [pair])]
    assert [*pair_faults([replace(older, chosen_reward=9.0)], [pair])]


@pytest.mark.parametrize("rows", [WORKED, []])
def test_a_language_that_cannot_be_identified_is_said(rows: list[Row]) -> None:
    unchecked = chosen(rows, identify=None, wrong_language="drop")
    assert unchecked.unidentified
    assert "cannot be identified" in unchecked.summary()
    assert not chosen(rows, identify=None).unidentified
    assert not chosen(rows, identify=lambda text: "es", wrong_language="drop").unidentified


@pytest.mark.parametrize(
    ("penalty", "pairs"),
    [
        ({"mode": "none"}, {"p": (0, 1), "q": (1, 0)}),
        # 2 - 10, 1 - 2 and 1 - 2, 3 - 6.
        ({"mode": "fixed", "alpha": 1.0}, {"p": (1, 0), "q": (0, 1)}),
        # Longer is better: 2 + 10 and 1 + 2; 1 + 2 and 3 + 6.
        ({"mode": "fixed", "alpha": -1.0}, {"p": (0, 1), "q": (1, 0)}),
        ({"mode": "fixed", "alpha": 0.0}, {"p": (0, 1), "q": (1, 0)}),
    ],
)
def test_modes(penalty: dict[str, Any], pairs: dict[str, tuple[int, int]]) -> None:
    found = chosen(WORKED, penalty=penalty)
    assert samples(found) == pairs
    assert {pair.alpha for pair in found.pairs} == {penalty.get("alpha", 0.0)}
    assert len(found.curve()) == 3  # the curve is kept whatever alpha is used


def test_length_in_tokens() -> None:
    # 2 - 1 a and 1 - 3 a cross at a = -1/2; above it the shorter one (in tokens) is better, a difference of -2.
    # 1 - 1 a and 3 - 5 a cross at a = 1/2; below it the longer one is better, a difference of +4.
    # The mean is (2 + 4) / 2 below -1/2, (-2 + 4) / 2 up to 1/2, (-2 - 4) / 2 above: 1 is least, and 0 is inside.
    tokens = (1, 3, 1, 5)
    rows = [(response, replace(score, tokens=n)) for (response, score), n in zip(WORKED, tokens, strict=True)]
    found = chosen(rows, penalty={"mode": "optimal", "unit": "tokens"})
    assert (found.alpha, found.penalty.interval) == (0.0, (-0.5, 0.5))
    assert samples(found) == {"p": (0, 1), "q": (1, 0)}
    assert found.length_differences == [-2, 4]


def test_best_and_worst_of_several() -> None:
    rows = [row("p", n, reward, 3) for n, reward in enumerate([0.5, 3.0, -2.0, 1.0])]
    found = chosen(rows, prompts="p")
    assert samples(found) == {"p": (1, 2)}
    assert (found.pairs[0].chosen_token_ids, found.pairs[0].rejected_token_ids) == ([100, 1], [100, 2])


def test_text_without_token_ids_has_none_in_its_pair() -> None:
    [pair] = chosen([row("p", 0, 1.0, 3, token_ids=None), row("p", 1, 2.0, 3)], prompts="p").pairs
    assert (pair.chosen_token_ids, pair.rejected_token_ids) == ([100, 1], None)


@pytest.mark.parametrize("min_gap", [0.0, 0.05])
@pytest.mark.parametrize("mode", ["none", "optimal"])
def test_equal_rewards_make_no_pair(mode: str, min_gap: float) -> None:
    rows = [row("p", n, 0.25, 4) for n in range(3)]
    found = chosen(rows, prompts="p", penalty={"mode": mode}, min_gap=min_gap)
    assert found.pairs == []
    assert reasons(found) == {"p": f"reward gap not above {min_gap:g}"}
    assert math.isnan(found.mean_length_difference)
    assert found.summary() == f"0 pairs, 1 dropped: reward gap not above {min_gap:g}"


def test_a_setting_that_came_later_leaves_fingerprints_as_they_were() -> None:
    assert "select.upper_bound" not in settings_of("select", SelectSettings())
    assert settings_of("select", SelectSettings(upper_bound=2.0))["select.upper_bound"] == 2.0


@pytest.mark.parametrize(
    ("bound", "degenerate", "pair"),
    [
        (None, "drop", (2, 1)),
        (3.0, "drop", (3, 1)),
        (2.5, "keep", (0, 1)),
        (-1.0, "drop", None),
        (-1.0, "keep", (0, 1)),
    ],
)
def test_only_rewards_below_the_upper_bound_are_chosen(
    bound: float | None, degenerate: str, pair: tuple[int, int] | None
) -> None:
    """Penalised rewards count, and 3 is not below 3. Where none is, the released scripts take the first response."""
    rows = [row("p", n, reward, 4) for n, reward in enumerate([2.0, 1.0, 4.0, 3.0])]
    rows[3] = row("p", 3, 2.5, 4)
    found = chosen(rows, prompts="p", upper_bound=bound, degenerate=degenerate, min_gap=0.0)
    assert samples(found) == ({"p": pair} if pair else {})
    assert len(found.dropped) == (0 if pair else 1)


@pytest.mark.parametrize(("min_gap", "pairs"), [(0.0, "pq"), (0.75, "pq"), (1.0, "q"), (1.5, "q"), (2.0, "")])
def test_a_pair_needs_a_gap_above_the_smallest(min_gap: float, pairs: str) -> None:
    # Without a penalty the gaps are 1 and 2.
    assert "".join(samples(chosen(WORKED, min_gap=min_gap))) == pairs


def test_ten_equal_responses_are_dropped() -> None:
    found = chosen([row("p", n, float(n), 4, text="same") for n in range(10)], prompts="p")
    assert (found.pairs, reasons(found)) == ([], {"p": "fewer than two usable responses (9 repeated)"})


def test_a_repeated_response_takes_no_part() -> None:
    # The same text with other token ids, or scored with noise, is no preference.
    rows = [row("p", 0, 1.0, 4, text="same"), row("p", 1, 9.0, 4, text="same"), row("p", 2, 2.0, 4)]
    assert samples(chosen(rows, prompts="p")) == {"p": (2, 0)}


def test_a_response_that_is_not_usable_hides_no_other() -> None:
    rows = [row("p", 0, 1.0, 4, text="same", finish_reason="length"), row("p", 1, 1.0, 4, text="same")]
    assert samples(chosen([*rows, row("p", 2, 2.0, 4)], prompts="p")) == {"p": (2, 1)}


def test_truncated_responses() -> None:
    rows = [row("p", 0, 9.0, 4, finish_reason="length"), row("p", 1, 1.0, 4), row("p", 2, 2.0, 4)]
    assert samples(chosen(rows, prompts="p")) == {"p": (2, 1)}
    assert samples(chosen(rows, prompts="p", truncated="keep")) == {"p": (0, 1)}
    assert reasons(chosen(rows[:2], prompts="p")) == {"p": "fewer than two usable responses (1 truncated)"}


def test_unusable_responses_are_counted_by_reason() -> None:
    rows = [
        row("p", 0, 1.0, 0, text=""),
        row("p", 1, 1.0, 2, text=" \n"),
        row("p", 2, math.nan, 4),
        row("p", 3, -math.inf, 4),
        row("p", 4, 2.0, 4),
    ]
    found = chosen(rows)
    assert reasons(found) == {
        "p": "fewer than two usable responses (2 empty, 2 without a finite reward)",
        "q": "no responses: the prompt is too long for the model, or was not sampled",
    }
    assert list(found.reasons().values()) == [1, 1]
    assert found.curve().num_rows == 0
    assert reasons(chosen(rows[4:], prompts="p")) == {"p": "only one response"}


def test_wrong_languages() -> None:
    rows = [row("p", 0, 9.0, 4), row("p", 1, 1.0, 4), row("p", 2, 2.0, 4)]
    rows = [(replace(response, language="pt-br"), replace(score, language="pt-br")) for response, score in rows]
    dropped = chosen(
        rows, prompts="p", language="pt-br", wrong_language="drop", identify=lambda text: "en" if "a" in text else "pt"
    )
    assert samples(dropped) == {"p": (2, 1)}
    assert samples(chosen(rows, prompts="p", language="pt-br")) == {"p": (0, 1)}
    none = chosen(rows, prompts="p", language="pt-br", wrong_language="drop", identify=lambda text: "en")
    assert reasons(none) == {"p": "fewer than two usable responses (3 in another language)"}


def test_scores_are_joined_by_key() -> None:
    rows = [row(prompt, n, random.Random(f"{prompt}{n}").random(), n + 3) for prompt in "pqrs" for n in range(6)]
    expected = chosen(rows, prompts="pqrs", penalty={"mode": "optimal"})
    assert len(expected.pairs) == 4
    scores = [score for _, score in rows]
    random.Random(0).shuffle(scores)
    shuffled = [(response, score) for (response, _), score in zip(rows, scores, strict=True)]
    assert chosen(shuffled, prompts="pqrs", penalty={"mode": "optimal"}).pairs == expected.pairs


@pytest.mark.parametrize(
    ("responses", "scores", "said"),
    [
        ([0, 1, 2, 3], [0, 1, 3], "There is no score for prompt 'q', sample 0 (es), or the response is there twice."),
        ([0, 1, 2, 3], [0, 1, 2, 3, 1], "Prompt 'p', sample 1 (es) has two scores."),
        ([0, 1, 2, 3, 3], [0, 1, 2, 3], "There is no score for prompt 'q', sample 1 (es), or the response is there tw"),
        ([0, 2, 3], [0, 1, 2, 3], "1 scores have no response, the first: prompt 'p', sample 1."),
        ([0, 1, 2, 4], [0, 1, 2, 4], "There is no prompt in 'es' for the response of prompt 'other', sample 0 (es)."),
    ],
)
def test_what_does_not_join_is_an_error(responses: list[int], scores: list[int], said: str) -> None:
    rows = [*WORKED, row("other", 0, 1.0, 3)]
    with pytest.raises(DataError) as caught:
        select(
            [rows[n][0] for n in responses],
            [replace(rows[n][1], reward=rows[n][1].reward) for n in scores],
            PairRules("es", {"p": "¿p?", "q": "¿q?"}, LengthPenaltySettings(), SelectSettings(), forbidden),
        )
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("rows", "alpha", "pair"),
    [
        # 2 - 10 a and 1 - 2 a cross at 1/8, a point of the grid: there they tie, and the first is best and worst.
        (WORKED[:2], 0.125, (0, 0)),
        # 2.05 - 10 a and 1 - 2 a cross between two points of the grid: nothing is better than no penalty.
        ([row("p", 0, 2.05, 10), row("p", 1, 1.0, 2)], 0.0, (0, 1)),
    ],
)
def test_grid(rows: list[Row], alpha: float, pair: tuple[int, int]) -> None:
    found = chosen(rows, prompts="p", penalty={"mode": "grid"}, degenerate="keep", min_gap=0.0)
    assert (found.alpha, samples(found)) == (alpha, {"p": pair})
    assert found.pairs[0].alpha == alpha
    assert len(found.curve()) == 2  # the exact curve is kept
    dropped = chosen(rows, prompts="p", penalty={"mode": "grid"})
    assert bool(dropped.pairs) == (pair[0] != pair[1])


KEEP: dict[str, Any] = {"prompts": "p", "degenerate": "keep"}


def test_degenerate_responses_take_part_if_they_are_kept() -> None:
    rows = [row("p", 0, 3.0, 0, text=" "), row("p", 1, 1.0, 4, text="same"), row("p", 2, -1.0, 4, text="same")]
    assert samples(chosen(rows, prompts="p")) == {}
    assert samples(chosen(rows, **KEEP)) == {"p": (0, 2)}
    # What is not degenerate is filtered by its own setting.
    assert samples(chosen([*rows, row("p", 3, 9.0, 4, finish_reason="length")], **KEEP)) == {"p": (0, 2)}
    assert samples(chosen([*rows, row("p", 3, math.inf, 4)], **KEEP)) == {"p": (0, 2)}


@pytest.mark.parametrize("mode", ["none", "optimal", "grid"])
@pytest.mark.parametrize("count", [1, 10])
def test_equal_responses_make_a_pair_of_the_first_if_degenerate_ones_are_kept(mode: str, count: int) -> None:
    rows = [row("p", n, 0.25, 4, text="same") for n in range(count)]
    found = chosen(rows, **KEEP, penalty={"mode": mode}, min_gap=0.0)
    assert samples(found) == {"p": (0, 0)}
    assert found.pairs[0].chosen == found.pairs[0].rejected
    assert (found.length_differences, found.dropped, found.alpha) == ([0], [], 0.0)


def test_a_small_gap_is_kept_if_degenerate_pairs_are() -> None:
    assert samples(chosen(WORKED, degenerate="keep", min_gap=9.0)) == {"p": (0, 1), "q": (1, 0)}


def test_a_prompt_without_a_usable_response_is_dropped_even_so() -> None:
    found = chosen([row("p", 0, 1.0, 4, finish_reason="length")], prompts="pq", degenerate="keep")
    assert reasons(found) == {
        "p": "no usable response (1 truncated)",
        "q": "no responses: the prompt is too long for the model, or was not sampled",
    }


@pytest.mark.parametrize("degenerate", ["drop", "keep"])
def test_responses_without_a_reward_are_left_out(degenerate: str) -> None:
    rows = [row("p", 0, 1.0, 4), row("p", 1, 2.0, 4), row("p", 2, 9.0, 4), row("q", 0, 1.0, 4)]
    rows = [
        (response, replace(score, implicit_reward=None) if key in {("p", 2), ("q", 0)} else score)
        for response, score in rows
        for key in [(response.prompt_id, response.sample)]
    ]
    found = chosen(rows, degenerate=degenerate)
    assert samples(found) == {"p": (1, 0)}
    least = {"drop": "fewer than two usable responses", "keep": "no usable response"}[degenerate]
    assert reasons(found) == {"q": f"{least} (1 without a reward)"}


def test_an_unknown_number_of_tokens_is_an_error_only_where_it_is_needed() -> None:
    rows = [(response, replace(score, tokens=None)) for response, score in WORKED]
    assert samples(chosen(rows)) == {"p": (0, 1), "q": (1, 0)}
    with pytest.raises(DataError) as caught:
        chosen(rows, penalty={"mode": "none", "unit": "tokens"})
    assert str(caught.value) == (
        "There is no number of tokens for prompt 'p', sample 0 (es). Take length_penalty.unit: characters."
    )


@pytest.mark.parametrize(
    ("noise", "min_gap", "pairs"),
    [(0.0, None, "pq"), (1.0, None, "q"), (2.0, None, ""), (2.0, 1.0, "q"), (2.0, 0.0, "pq")],
)
def test_the_noise_counts_where_no_smallest_gap_is_given(noise: float, min_gap: float | None, pairs: str) -> None:
    found = chosen(WORKED, min_gap=min_gap, noise=noise)
    assert "".join(samples(found)) == pairs  # the gaps are 1 and 2
    assert all(
        reason == f"reward gap not above {noise if min_gap is None else min_gap:g}" for reason in found.reasons()
    )


ANSWERS = st.tuples(
    st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.nan]),
    st.sampled_from(["", "Hola", "Sí", "No lo sé"]),
    st.sampled_from(["stop", "length"]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(ANSWERS, max_size=4), min_size=1, max_size=4),
    st.sampled_from([{"mode": "none"}, {"mode": "optimal"}, {"mode": "fixed", "alpha": 0.125}]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_every_prompt_ends_as_a_pair_or_as_dropped(answers, penalty, min_gap) -> None:
    names = [f"prompt {number}" for number in range(len(answers))]
    rows = [
        row(name, number, reward, len(text), text=text, finish_reason=finish)
        for name, given in zip(names, answers, strict=True)
        for number, (reward, text, finish) in enumerate(given)
    ]
    found = chosen(rows, prompts=names, penalty=penalty, min_gap=min_gap)
    assert sorted([*samples(found), *reasons(found)]) == sorted(names)
    assert sum(found.reasons().values()) + len(found.pairs) == len(names)
    for pair in found.pairs:
        first: dict[str, float] = {}
        for reward, text, finish in answers[names.index(pair.prompt_id)]:
            if text and finish == "stop" and math.isfinite(reward):
                first.setdefault(text, reward - found.alpha * len(text))
        assert (pair.chosen_reward, pair.rejected_reward) == (max(first.values()), min(first.values()))
        assert pair.chosen_reward - pair.rejected_reward > min_gap
        assert pair.chosen != pair.rejected
