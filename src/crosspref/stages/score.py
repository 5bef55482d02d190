"""Scoring: every reward of the paper, of every response (Eq. 8, 9, 12, 13, 14, 17), without the length penalty."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import cast

from crosspref.data.records import Prompt, Response, Score, Translation
from crosspref.errors import DataError
from crosspref.languages import ENGLISH, crosslingual_instruction
from crosspref.maths.reward import implicit_reward
from crosspref.protocols import Advance, Known, LogProbs, ReleasedScorer, RewardModel, Scorer
from crosspref.recipe.sections import RewardName, RewardSettings


@dataclass(frozen=True, slots=True)
class _Group:
    """All responses to one prompt in one language, and on which instruction they are conditioned."""

    prompt_id: str
    language: str
    instruction: str
    responses: list[Response]


def condition(prompt_id: str, language: str, instructions: Mapping[tuple[str, str], str], reward: RewardName) -> str:
    """Return the instruction on which a response is conditioned.

    Args:
        prompt_id: which prompt was answered.
        language: the language it was answered in.
        instructions: texts by (prompt_id, language).
        reward: which reward is computed.

    Raises:
        DataError: the prompt is not there in the language that the reward needs.
    """
    needed = ENGLISH if reward in {"crosslingual", "translated"} else language
    text = instructions.get((prompt_id, needed))
    if text is None:
        raise DataError(f"The prompt {prompt_id!r} has responses in {language!r} but no instruction in {needed!r}.")
    return crosslingual_instruction(text, language) if reward == "crosslingual" else text


def score(
    responses: Sequence[Response],
    prompts: Iterable[Prompt],
    scorer: Scorer | ReleasedScorer,
    *,
    settings: RewardSettings,
    reward: RewardName,
    advance: Advance,
    translations: Iterable[Translation] = (),
    before: Mapping[Hashable, Known] = MappingProxyType({}),
) -> list[Score]:
    """Return the implicit reward of each response without its length penalty (Eq. 9, 12 or 13 with alpha = 0).

    The scores of one prompt and language stand together, in the order of their first response.

    Args:
        responses: the responses.
        prompts: their prompts, in the languages that the reward needs.
        scorer: computes log-probabilities; a ReleasedScorer where ``settings.counting`` is ``znlp``.
        settings: which formula, and which tokens count.
        reward: ``crosslingual``, ``multilingual`` or ``translated``.
        advance: called after each prompt with 1 and the tokens that were summed.
        translations: into English, of every response in another language; for ``translated`` only.
        before: by ``content_of`` a response, its log-probabilities that were computed before; znlp knows none.

    Raises:
        DataError: a prompt's instruction, or a response's translation, is missing.
    """
    groups = _groups(responses, prompts, reward)
    known = {(row.prompt_id, row.language, row.sample): row for row in translations if row.target == ENGLISH}
    asked: list[list[Response | None]] = [
        [_in_english(response, known) if reward == "translated" else response for response in group.responses]
        for group in groups
    ]
    # A response that has no text to score, since its translation failed, is left out and comes back without a reward.
    requests = [
        (group.instruction, [row for row in rows if row is not None]) for group, rows in zip(groups, asked, strict=True)
    ]
    if settings.counting == "znlp":
        found = iter(cast("ReleasedScorer", scorer).score_all(requests))
    else:
        exact = cast("Scorer", scorer)
        found = (
            exact.score(instruction, rows, [before.get(content_of(row), (None, None)) for row in rows])
            for instruction, rows in requests
        )
    scores = []
    for group, rows, logprobs in zip(groups, asked, found, strict=True):
        places = [index for index, row in enumerate(rows) if row is not None]
        values = dict(zip(places, logprobs, strict=True))
        scores += [
            _scored(response, values.get(index), reward, settings) for index, response in enumerate(group.responses)
        ]
        advance(1, sum(value.tokens for value in logprobs))
    return scores


def content_of(response: Response) -> Hashable:
    """Return what decides the log-probability of a response: all but its number among the others."""
    ids = response.token_ids
    said = response.text if ids is None else tuple(ids)
    return response.prompt_id, response.language, response.finish_reason, said


def rate(
    responses: Sequence[Response], prompts: Iterable[Prompt], model: RewardModel, *, advance: Advance
) -> list[Score]:
    """Return what a reward model says of each response to the prompt in its own language (R_n of section 4.2)."""
    scores = []
    for group in _groups(responses, prompts, "reward_model"):
        values = model.rate(group.instruction, [response.text for response in group.responses])
        scores += [
            Score(
                response.prompt_id,
                response.language,
                response.sample,
                "reward_model",
                None,
                None,
                _own_tokens(response),
                len(response.text),
                _finite(value),
            )
            for response, value in zip(group.responses, values, strict=True)
        ]
        advance(1, sum(_own_tokens(response) or 0 for response in group.responses))
    return scores


def _groups(responses: Sequence[Response], prompts: Iterable[Prompt], reward: RewardName) -> list[_Group]:
    instructions = {(prompt.prompt_id, prompt.language): prompt.instruction for prompt in prompts}
    groups: dict[tuple[str, str], list[Response]] = {}
    for response in responses:
        groups.setdefault((response.prompt_id, response.language), []).append(response)
    return [_Group(*key, condition(*key, instructions, reward), group) for key, group in groups.items()]


def _in_english(response: Response, known: Mapping[tuple[str, str, int], Translation]) -> Response | None:
    """Return T(y) of Eq. 14 as a response, or None if its translation failed."""
    if response.language == ENGLISH:
        return response
    found = known.get((response.prompt_id, response.language, response.sample))
    if found is None:
        where = f"prompt {response.prompt_id!r}, sample {response.sample} ({response.language})"
        raise DataError(f"There is no English translation of {where}. Translate all responses first.")
    if found.failure is not None:
        return None
    return replace(response, text=found.text, token_ids=found.token_ids, finish_reason=found.finish_reason)


def _scored(response: Response, found: LogProbs | None, reward: RewardName, settings: RewardSettings) -> Score:
    key = (response.prompt_id, response.language, response.sample, reward)
    if found is None:
        return Score(*key, None, None, _own_tokens(response), len(response.text), None)
    value = implicit_reward(settings.algorithm, found.policy, found.reference, found.tokens, settings.beta)
    # |y| of Eq. 13 is the response's and not its translation's.
    is_other_text = reward == "translated" and response.language != ENGLISH
    tokens = _own_tokens(response) if is_other_text else found.tokens
    return Score(*key, found.policy, found.reference, tokens, len(response.text), _finite(value))


def _own_tokens(response: Response) -> int | None:
    return None if response.token_ids is None else len(response.token_ids)


def _finite(value: float | None) -> float | None:
    """Return a number that can be compared, or None: no reward, which is counted when pairs are made."""
    return value if value is not None and math.isfinite(value) else None
