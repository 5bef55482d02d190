"""Scoring: the implicit reward of every response, conditioned on the parallel English instruction (Eq. 8, 9)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from crosspref.engines.protocols import Advance, Scorer
from crosspref.errors import DataError
from crosspref.languages import ENGLISH, crosslingual_instruction
from crosspref.maths.reward import implicit_reward
from crosspref.records import Prompt, Response, Score

RewardName = Literal["crosslingual", "multilingual"]
"""``crosslingual``: R_c, conditioned on G(x) (Eq. 9). ``multilingual``: R_m, on the prompt as it was asked (Eq. 12)."""


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
    needed = ENGLISH if reward == "crosslingual" else language
    text = instructions.get((prompt_id, needed))
    if text is None:
        raise DataError(f"The prompt {prompt_id!r} has responses in {language!r} but no instruction in {needed!r}.")
    return crosslingual_instruction(text, language) if reward == "crosslingual" else text


def score(
    responses: Sequence[Response],
    prompts: Iterable[Prompt],
    scorer: Scorer,
    *,
    beta: float,
    reward: RewardName = "crosslingual",
    advance: Advance,
) -> list[Score]:
    """Return the reward of each response without its length penalty (Eq. 9, or Eq. 12, with alpha = 0).

    The scores of one prompt and language stand together, in the order of their first response.

    Raises:
        DataError: a prompt's instruction is missing.
    """
    instructions = {(prompt.prompt_id, prompt.language): prompt.instruction for prompt in prompts}
    groups: dict[tuple[str, str], list[Response]] = {}
    for response in responses:
        groups.setdefault((response.prompt_id, response.language), []).append(response)
    scores = []
    for (prompt_id, language), group in groups.items():
        found = scorer.score(condition(prompt_id, language, instructions, reward), group)
        scores += [
            Score(
                prompt_id,
                language,
                response.sample,
                reward,
                logprobs.policy,
                logprobs.reference,
                logprobs.tokens,
                len(response.text),
                implicit_reward(logprobs.policy, logprobs.reference, beta),
            )
            for response, logprobs in zip(group, found, strict=True)
        ]
        advance(1, sum(logprobs.tokens for logprobs in found))
    return scores
