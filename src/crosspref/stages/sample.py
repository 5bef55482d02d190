"""Sampling: N responses per prompt from the newest policy (Eq. 7)."""

from collections.abc import Sequence

from crosspref.data.records import Prompt, Response, derive_seed
from crosspref.protocols import Advance, Sampler


def sample(
    prompts: Sequence[Prompt],
    sampler: Sampler,
    *,
    n: int,
    seed: int,
    iteration: int,
    advance: Advance,
    temperature: float | None = None,
) -> list[Response]:
    """Draw ``n`` responses to each prompt, y_1..n ~ pi(x) (Eq. 7).

    The seed of a response derives from what identifies it, so it does not depend on which prompts are drawn with it. A
    prompt that is too long for the model has no responses. ``temperature`` takes the place of the recipe's.
    """
    seeds = [
        [derive_seed(seed, iteration, prompt.prompt_id, prompt.language, number) for number in range(n)]
        for prompt in prompts
    ]
    requests = [(prompt.asked, own) for prompt, own in zip(prompts, seeds, strict=True)]
    answers = sampler.sample(requests, advance, temperature)
    return [
        Response(
            prompt.prompt_id, prompt.language, number, answer.text, answer.token_ids, answer.finish_reason, own_seed
        )
        for prompt, own, sampled in zip(prompts, seeds, answers, strict=True)
        if sampled  # there are none to a prompt that is too long for the model
        for number, (answer, own_seed) in enumerate(zip(sampled, own, strict=True))
    ]
