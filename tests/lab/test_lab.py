"""The laboratory as a regression test: the method must carry a preference over, and planted faults must be noticed.

With the shipped pi_I gold rises by .036 (by -.043 with a wrong sign or swapped pairs). Pairs by R_c are right in 83%,
by R_m in 80%, without the prefix in 72%. Without the penalty responses grow by .64 tokens, with it by .10. R_c prefers
the right first word in 92%, with a mask that is off by one in 12%. docs/evidence.md has the spread of seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from small import SmallLab, gain

from crosspref.engines.training import trainer as trl_trainer
from crosspref.engines.transformers.scorer import ModelScorer
from crosspref.lab.world.measure import means, without_english
from crosspref.stages import score as scoring

MULTILINGUAL = {"reward": {"name": "multilingual"}}
NO_PENALTY = {"length_penalty": {"mode": "none"}}
LEAST_GAIN, LEAST_ACCURACY, LEAST_LEAD, LEAST_LENGTH, LEAST_SEEN = 0.015, 0.78, 0.01, 0.2, 0.7


def test_r_c_raises_gold_in_other_languages(small_lab: SmallLab) -> None:
    assert gain(small_lab.run("base"), "gold") > LEAST_GAIN


def test_pairs_of_r_c_are_better_than_those_of_r_m_and_than_random_ones(small_lab: SmallLab) -> None:
    r_c = without_english(means(small_lab.run("base"), "accuracy", 1))
    r_m = without_english(means(small_lab.run("multilingual", MULTILINGUAL), "accuracy", 1))
    assert r_c > LEAST_ACCURACY  # random pairs are right in half of all cases
    assert r_c > r_m + LEAST_LEAD


def test_the_penalty_holds_length_down(small_lab: SmallLab) -> None:
    held, free = gain(small_lab.run("base"), "tokens"), gain(small_lab.run("none", NO_PENALTY), "tokens")
    assert free > held + LEAST_LENGTH


def test_r_c_sees_the_first_word(small_lab: SmallLab) -> None:
    assert small_lab.sees_first_word() > LEAST_SEEN


def _wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    right = scoring.implicit_reward
    monkeypatch.setattr(scoring, "implicit_reward", lambda *values: -right(*values))


def _dropped_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "crosslingual_instruction", lambda text, *_: text)


def _mask_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an unshifted mask does to shifted log-probabilities: the first response token is not counted."""
    right = ModelScorer.logprobs

    def logprobs(self: ModelScorer, prompt: list[int], responses: Sequence[list[int]], *_: Any) -> list[float]:
        return right(self, prompt, responses, lambda ids: [number > 0 for number in range(len(ids))])

    monkeypatch.setattr(ModelScorer, "logprobs", logprobs)


def _swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    right = trl_trainer.example_of

    def example_of(*arguments: Any) -> dict[str, list[int]]:
        example = right(*arguments)
        return {**example, "chosen_ids": example["rejected_ids"], "rejected_ids": example["chosen_ids"]}

    monkeypatch.setattr(trl_trainer, "example_of", example_of)


def test_a_planted_mask_that_is_off_by_one_is_noticed(small_lab: SmallLab, monkeypatch: pytest.MonkeyPatch) -> None:
    _mask_off_by_one(monkeypatch)
    assert not small_lab.sees_first_word() > LEAST_SEEN


@pytest.mark.parametrize("plant", [_wrong_sign, _dropped_prefix])
def test_a_planted_fault_in_the_reward_is_noticed(
    small_lab: SmallLab, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    plant(monkeypatch)
    measured = small_lab.run(plant.__name__, without_scores=True)
    assert not without_english(means(measured, "accuracy", 1)) > LEAST_ACCURACY


def test_planted_pairs_that_are_swapped_are_noticed(small_lab: SmallLab, monkeypatch: pytest.MonkeyPatch) -> None:
    _swapped(monkeypatch)
    assert not gain(small_lab.run("swapped"), "gold") > LEAST_GAIN
