"""Counting flips between the exact mathematics and the released scripts, on pairs worked out by hand."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from crosspref.data.records import Response, Score
from crosspref.errors import DataError
from crosspref.recipe.sections import LengthPenaltySettings, SelectSettings
from crosspref.stages.select.flips import Flips, flips, flips_table
from crosspref.stages.select.select import PairRules

# All texts have 4 characters, so no length penalty changes any of it and both alphas are 0.
# prompt: (text, finish reason, exact reward, znlp reward) by sample
PROMPTS: dict[str, list[tuple[str, str, float | None, float | None]]] = {
    # best and worst are (0, 2) and (0, 2)
    "same": [("aaaa", "stop", 3.0, 9.0), ("bbbb", "stop", 2.0, 5.0), ("cccc", "stop", 1.0, 1.0)],
    # (0, 1) and (2, 1): another sample with the same text
    "same text": [("aaaa", "stop", 3.0, 2.0), ("bbbb", "stop", 1.0, 1.0), ("aaaa", "stop", 3.0, 2.5)],
    # (0, 2) and (1, 2)
    "chosen": [("aaaa", "stop", 3.0, 5.0), ("bbbb", "stop", 2.0, 9.0), ("cccc", "stop", 1.0, 1.0)],
    # (0, 2) and (0, 1)
    "rejected": [("aaaa", "stop", 3.0, 9.0), ("bbbb", "stop", 2.0, 1.0), ("cccc", "stop", 1.0, 5.0)],
    # (0, 1) and (1, 0)
    "swapped": [("aaaa", "stop", 3.0, 1.0), ("bbbb", "stop", 1.0, 3.0)],
    # (0, 1), and (0, 0): all are equal to the scripts, which keep the pair
    "tied": [("aaaa", "stop", 3.0, 1.0), ("bbbb", "stop", 1.0, 1.0)],
    # only one is not cut, and the scripts keep what was cut
    "only znlp": [("aaaa", "stop", 3.0, 1.0), ("bbbb", "length", 1.0, 3.0)],
    # the scripts' scores are missing
    "only exact": [("aaaa", "stop", 3.0, None), ("bbbb", "stop", 1.0, None)],
    "none": [("aaaa", "length", 1.0, None)],
}
KEYED = [(prompt, n, *row) for prompt, rows in PROMPTS.items() for n, row in enumerate(rows)]
RESPONSES = [Response(prompt, "es", n, text, None, reason, None) for prompt, n, text, reason, _, _ in KEYED]
EXACT = [Score(prompt, "es", n, "crosslingual", -1.0, -1.0, 1, 4, exact) for prompt, n, _, _, exact, _ in KEYED]
ZNLP = [replace(score, implicit_reward=row[5]) for score, row in zip(EXACT, KEYED, strict=True)]
INSTRUCTIONS = {prompt: f"¿{prompt}?" for prompt in PROMPTS}


def rules(instructions: dict[str, str], settings: SelectSettings, noise: float = 0.0) -> PairRules:
    return PairRules("es", instructions, LengthPenaltySettings(mode="none"), settings, noise=noise)


def counted(exact: list[Score] = EXACT, znlp: list[Score] = ZNLP, noise: float = 0.0, **changes: str) -> Flips:
    return flips(RESPONSES, exact, znlp, rules(INSTRUCTIONS, SelectSettings(**changes), noise))


def test_every_kind_of_flip_is_counted() -> None:
    assert counted() == Flips(
        "es",
        prompts=9,
        both=6,
        same=2,
        chosen_differs=2,
        rejected_differs=3,
        swapped=1,
        only_exact=1,
        only_znlp=1,
        exact_alpha=0.0,
        znlp_alpha=0.0,
    )


def test_the_given_settings_are_those_of_the_exact_pairs_alone() -> None:
    # The cut responses take part in the exact pairs too: that pair is the scripts' one exchanged.
    kept = counted(truncated="keep")
    assert (kept.both, kept.swapped, kept.only_znlp) == (7, 2, 0)
    # All exact gaps are 2.
    assert counted(noise=2.0) == replace(
        counted(), both=0, same=0, chosen_differs=0, rejected_differs=0, swapped=0, only_exact=0, only_znlp=7
    )


def test_pairs_of_two_equal_texts_are_the_same_and_not_swapped() -> None:
    rows = [RESPONSES[0], replace(RESPONSES[0], sample=1)]
    scores = [EXACT[0], replace(EXACT[0], sample=1, implicit_reward=1.0)]
    settings = SelectSettings(degenerate="keep")
    found = flips(rows, scores, scores, rules({"same": "¿?"}, settings))
    assert (found.both, found.same, found.swapped) == (1, 1, 0)


def test_alphas_are_exact_and_of_the_grid() -> None:
    # 2 - 10 a and 1 - 2 a cross at 1/8. Exactly: 8 below and -8 above, and 0 is below. On the grid 1/8 ties.
    rows = [Response("p", "es", n, text, None, "stop", None) for n, text in enumerate(["a" * 10, "bb"])]
    scores = [
        Score("p", "es", n, "crosslingual", 0.0, 0.0, 1, length, reward)
        for n, (length, reward) in enumerate([(10, 2.0), (2, 1.0)])
    ]
    found = flips(rows, scores, scores, rules({"p": "¿?"}, SelectSettings()))
    assert (found.exact_alpha, found.znlp_alpha) == (0.0, 0.125)
    assert (found.both, found.chosen_differs, found.rejected_differs) == (1, 0, 1)


def test_scores_that_do_not_join_are_an_error() -> None:
    with pytest.raises(DataError, match="There is no score for prompt 'none'"):
        counted(znlp=ZNLP[:-1])


def test_the_table_fits_the_screen() -> None:
    screen = io.StringIO()
    rows = [replace(counted(), prompts=3000, both=2999, exact_alpha=-0.0123456, znlp_alpha=0.123), counted()]
    Console(file=screen, width=80).print(flips_table(rows))
    *_, first, second = [line.split() for line in screen.getvalue().splitlines() if line.strip()]
    assert first == ["es", "3000", "2999", "2", "2", "3", "1", "1", "1", "-0.0123", "0.123"]
    assert second == ["es", "9", "6", "2", "2", "3", "1", "1", "1", "0", "0"]
