"""Selecting: the best and the worst response of each prompt under a length penalty solved per language (Eq. 10, 15)."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crosspref.errors import DataError
from crosspref.maths.length_penalty import LengthPenalty, best_and_worst, grid_length_penalty, solve_flat
from crosspref.maths.reward import penalised_reward
from crosspref.records import Dropped, Pair, Response, Score
from crosspref.sections import LengthPenaltySettings, SelectSettings

Identify = Callable[[str], str]
"""Returns the language tag of a text."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What one language gives: pairs, prompts without a pair, and the length penalty with its whole curve."""

    pairs: list[Pair]
    dropped: list[Dropped]
    penalty: LengthPenalty | None
    alpha: float
    length_differences: list[int]
    """len(chosen) - len(rejected) of each pair, in the unit of the penalty."""

    @property
    def mean_length_difference(self) -> float:
        """Mean of len(chosen) - len(rejected) over the pairs that were kept; nan if there are none."""
        return float(np.mean(self.length_differences)) if self.length_differences else math.nan

    def reasons(self) -> dict[str, int]:
        """Return how many prompts were dropped for each kind of reason."""
        return dict(Counter(row.reason.partition(" (")[0] for row in self.dropped).most_common())

    def figures(self) -> dict[str, float | dict[str, int]]:
        """Return what the done-marker keeps."""
        return {"alpha": self.alpha, "mean_length_difference": self.mean_length_difference, "dropped": self.reasons()}

    def summary(self) -> str:
        """Return one line for the screen."""
        dropped = "".join(f", {count} dropped: {reason}" for reason, count in self.reasons().items())
        penalty = f"; alpha {self.alpha:.3g}, mean length difference {self.mean_length_difference:+.1f}"
        return f"{len(self.pairs)} pairs{dropped}{penalty if self.pairs else ''}"

    def curve(self) -> pa.Table:
        """Return the step curve of Eq. 15: from each ``alpha`` (-inf first) up to the next, the mean difference."""
        steps = self.penalty
        alphas = [-math.inf, *steps.breakpoints.tolist()] if steps else []
        differences = steps.differences.tolist() if steps else []
        return pa.table({"alpha": alphas, "mean_length_difference": differences})


@dataclass(frozen=True, slots=True)
class _Candidate:
    response: Response
    score: Score
    length: int

    @property
    def reward(self) -> float:
        """The reward before the penalty; nan where there is none, and then ``_filter`` leaves the response out."""
        value = self.score.implicit_reward
        return math.nan if value is None else value


def select(
    responses: Sequence[Response],
    scores: Sequence[Score],
    instructions: Mapping[str, str],
    language: str,
    *,
    penalty: LengthPenaltySettings,
    settings: SelectSettings,
    identify: Identify | None,
    noise: float = 0.0,
) -> Selection:
    """Make the preference pairs of one language.

    Args:
        responses: the responses in this language.
        scores: their scores, in any order, joined by prompt_id and sample.
        instructions: the prompts in this language by prompt_id; every one of them ends as a pair or as dropped.
        language: the language's tag.
        penalty: how alpha is found (Eq. 15).
        settings: which responses and pairs are usable.
        identify: tells a text's language, where wrong languages are dropped; None for a language that it does not
            know, of which every response is kept.
        noise: the reward gap that a pair must exceed where ``settings.min_gap`` is None.

    Raises:
        DataError: a response has no score, a score no response, a key is double, or a length is not known.
    """
    least = 1 if settings.degenerate == "keep" else 2
    candidates = _join(responses, scores, instructions, language, penalty.unit)
    usable: dict[str, list[_Candidate]] = {}
    dropped = []
    for prompt_id in instructions:
        kept, reasons = _filter(candidates.get(prompt_id, []), language, settings, identify)
        if len(kept) < least:
            dropped.append(Dropped(prompt_id, language, "select", _reason(len(kept), reasons, least)))
        else:
            usable[prompt_id] = kept
    if not usable:
        return Selection([], dropped, None, 0.0, [])
    flat = [candidate for kept in usable.values() for candidate in kept]
    rewards = np.array([candidate.reward for candidate in flat])
    lengths = np.array([candidate.length for candidate in flat], dtype=float)
    offsets = np.cumsum([0, *(len(kept) for kept in usable.values())])
    solved = solve_flat(rewards, lengths, offsets)
    alpha = solved.alpha if penalty.mode == "optimal" else penalty.alpha or 0.0
    if penalty.mode == "grid":
        alpha = grid_length_penalty(rewards, lengths, offsets)
    best, worst = best_and_worst(rewards, lengths, alpha, offsets)
    min_gap = noise if settings.min_gap is None else settings.min_gap
    pairs, differences = [], []
    for prompt_id, chosen, rejected in zip(usable, best, worst, strict=True):
        pair = _pair(prompt_id, language, instructions[prompt_id], flat[chosen], flat[rejected], alpha)
        gap = (pair.chosen_reward or 0.0) - (pair.rejected_reward or 0.0)
        if settings.degenerate == "drop" and (chosen == rejected or gap <= min_gap):
            dropped.append(Dropped(prompt_id, language, "select", f"reward gap not above {min_gap:g}"))
        else:
            pairs.append(pair)
            differences.append(flat[chosen].length - flat[rejected].length)
    return Selection(pairs, dropped, solved, alpha, differences)


def _join(
    responses: Sequence[Response],
    scores: Sequence[Score],
    instructions: Mapping[str, str],
    language: str,
    unit: str,
) -> dict[str, list[_Candidate]]:
    by_key: dict[tuple[str, int], Score] = {}
    for score in scores:
        if by_key.setdefault((score.prompt_id, score.sample), score) is not score:
            raise DataError(f"Prompt {score.prompt_id!r}, sample {score.sample} ({language}) has two scores.")
    joined: dict[str, list[_Candidate]] = {}
    for response in responses:
        key = (response.prompt_id, response.sample)
        found = by_key.pop(key, None)
        where = f"prompt {response.prompt_id!r}, sample {response.sample} ({language})"
        if found is None:
            raise DataError(f"There is no score for {where}, or the response is there twice.")
        if response.prompt_id not in instructions:
            raise DataError(f"There is no prompt in {language!r} for the response of {where}.")
        length = found.characters if unit == "characters" else found.tokens
        if length is None:
            raise DataError(f"There is no number of tokens for {where}. Take length_penalty.unit: characters.")
        joined.setdefault(response.prompt_id, []).append(_Candidate(response, found, length))
    if by_key:
        prompt_id, sample = next(iter(by_key))
        raise DataError(f"{len(by_key)} scores have no response, the first: prompt {prompt_id!r}, sample {sample}.")
    return joined


def _filter(
    candidates: Sequence[_Candidate], language: str, settings: SelectSettings, identify: Identify | None
) -> tuple[list[_Candidate], Counter[str]]:
    """Return the usable responses of one prompt, and how many were left out for each reason."""
    kept: list[_Candidate] = []
    reasons: Counter[str] = Counter()
    drops = settings.degenerate == "drop"
    checked = identify if settings.wrong_language == "drop" else None
    seen: set[str] = set()
    for candidate in candidates:
        response = candidate.response
        if drops and not response.text.strip():
            reasons["empty"] += 1
        elif drops and response.text in seen:
            reasons["repeated"] += 1
        elif settings.truncated == "drop" and response.finish_reason == "length":
            reasons["truncated"] += 1
        elif candidate.score.implicit_reward is None:
            reasons["without a reward"] += 1
        elif not math.isfinite(candidate.reward):
            reasons["without a finite reward"] += 1
        elif checked and checked(response.text) != language.partition("-")[0]:
            reasons["in another language"] += 1
        else:
            kept.append(candidate)
            seen.add(response.text)
    return kept, reasons


def _reason(kept: int, reasons: Counter[str], least: int) -> str:
    if not kept and not reasons:
        return "no responses: the prompt is too long for the model, or was not sampled"
    found = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    short = "no usable response" if least == 1 else "fewer than two usable responses"
    return f"{short} ({found})" if found else "only one response"


def _pair(prompt_id: str, language: str, instruction: str, best: _Candidate, worst: _Candidate, alpha: float) -> Pair:
    return Pair(
        prompt_id,
        language,
        [{"role": "user", "content": instruction}],
        [{"role": "assistant", "content": best.response.text}],
        [{"role": "assistant", "content": worst.response.text}],
        best.response.sample,
        worst.response.sample,
        best.response.token_ids,
        worst.response.token_ids,
        penalised_reward(best.reward, best.length, alpha),
        penalised_reward(worst.reward, worst.length, alpha),
        alpha,
    )
