"""Sampling: N responses per prompt from the newest policy (Eq. 7)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

from crosspref.data.records import FinishReason, Prompt, Response, derive_seed
from crosspref.models.locate import ModelFiles
from crosspref.protocols import Advance, Sampler
from crosspref.recipe.schema import Recipe
from crosspref.run.job import Filling, Job, Shard, asking_of, digest_rows, fill, settings_of
from crosspref.run.layout import ShardedTable
from crosspref.run.phases import Expected, Output, Phase
from crosspref.run.store import Fingerprint

SETTINGS = ("sample", "seed", "models", "server.protocol", "resources.shard_prompts")
"""What responses depend on."""


def phase(recipe: Recipe, iteration: int) -> Phase:
    """Return the phase that samples from pi_{t-1}."""
    responses = Output(
        "responses",
        lambda run: run.iteration(iteration).responses,
        (*SETTINGS, "language_imbalance"),
        ("prompts", "policy"),
        names=recipe.languages,
    )
    return Phase("sample", iteration, sample_prompts, expect_samples, [responses])


def sample_prompts(job: Job, iteration: int) -> None:
    """Eq. 7: draw N responses to every training prompt from pi_{t-1}; for language imbalance, its greedy answer."""
    table, drawing = job.run.iteration(iteration).responses, _drawing(job.recipe, iteration)
    fill_responses(job, f"iteration {iteration} sample", table, job.policy(iteration - 1), drawing)


def expect_samples(job: Job, iteration: int) -> Iterator[Expected]:
    """Yield what the responses to the training prompts must be."""
    table, drawing = job.run.iteration(iteration).responses, _drawing(job.recipe, iteration)
    return expected_responses(job, table, job.policy(iteration - 1), drawing)


def _drawing(recipe: Recipe, iteration: int) -> "Drawing":
    greedy = recipe.language_imbalance is not None
    return Drawing(1 if greedy else recipe.sample.n, recipe.seed, iteration, greedy=greedy)


@dataclass(frozen=True, slots=True)
class Drawing:
    """How many responses are drawn to each prompt, and what their seeds derive from.

    ``temperature`` takes the place of the recipe's; the likeliest tokens are taken if ``greedy``.
    """

    n: int
    seed: int
    iteration: int
    temperature: float | None = None
    greedy: bool = False


def fill_responses(job: Job, label: str, table: ShardedTable, policy: ModelFiles, drawing: Drawing) -> None:
    """Fill a table with responses of a policy to the prompts of the table."""

    def work(sampler: Sampler, shard: Shard, advance: Advance) -> list[Response]:
        return sample(shard.prompts, sampler, drawing, advance)

    build = partial(job.engines.sampler, policy, greedy=drawing.greedy)
    shards = response_shards(job, table, policy, drawing)
    fill(job, shards, Filling(label, Response, build, work, per_prompt=drawing.n))
    if job.recipe.models.thinking == "cut":
        job.reporter.say(f"{label}: {thinking_cut(row for shard in shards for row in shard.unit.rows(Response))}")


def thinking_cut(responses: Iterable[Response]) -> str:
    """Say in how many responses thinking was cut, and how many ended inside it."""
    tokens = [(row.thinking_tokens, row.token_ids or row.text) for row in responses]
    thought = [answer for count, answer in tokens if count is not None]
    ended = sum(not answer for answer in thought)
    return f"thinking was cut from {len(thought)} of {len(tokens)} responses; {ended} ended inside it and are empty"


def response_shards(job: Job, table: ShardedTable, policy: ModelFiles, drawing: Drawing) -> list[Shard]:
    """Return the shards of a table of responses, done or not."""
    recipe = job.recipe
    settings = {
        **settings_of("sample", recipe.sample, without=("n",)),
        **asking_of(recipe.models),
        "n": drawing.n,
        "seed": drawing.seed,
        "iteration": drawing.iteration,
        "greedy": drawing.greedy,
    }
    if recipe.sample.engine == "server":
        settings["server.protocol"] = recipe.server.protocol  # chat brings no token ids
    return [
        Shard(
            table.unit(language, start),
            Fingerprint(settings, {"policy": policy.identity, "prompts": digest_rows(prompts)}),
            prompts,
        )
        for language, start, prompts in table.cut(recipe.languages, recipe.resources.shard_prompts)
    ]


def expected_responses(job: Job, table: ShardedTable, policy: ModelFiles, drawing: Drawing) -> Iterator[Expected]:
    """Yield what the shards of a table of responses must be."""
    for shard in response_shards(job, table, policy, drawing):
        yield Expected(shard.unit, shard.fingerprint, Response, partial(_response_faults, shard.prompts, drawing))


def _response_faults(prompts: Sequence[Prompt], drawing: Drawing, rows: list[Response]) -> Iterator[str]:
    """Each prompt has n responses, or none if it was too long, and each response has the seed that it derives from."""
    asked = {(prompt.prompt_id, prompt.language) for prompt in prompts}
    samples: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows:
        key = row.prompt_id, row.language
        samples[key].append(row.sample)
        if row.finish_reason not in get_args(FinishReason):
            yield f"sample {row.sample} of prompt {row.prompt_id!r} ended by {row.finish_reason!r}, which is no reason"
        if key not in asked:
            yield f"there is no prompt {row.prompt_id!r} in {row.language!r} for a response"
        elif row.seed != derive_seed(drawing.seed, drawing.iteration, *key, row.sample):
            yield f"the seed of sample {row.sample} of prompt {row.prompt_id!r} is not its own"
    for (prompt_id, _), numbers in samples.items():
        if len(numbers) != drawing.n or sorted(numbers) != list(range(drawing.n)):
            yield f"prompt {prompt_id!r} has other samples than the {drawing.n} that were drawn"


def sample(prompts: Sequence[Prompt], sampler: Sampler, drawing: Drawing, advance: Advance) -> list[Response]:
    """Draw n responses to each prompt, y_1..n ~ pi(x) (Eq. 7).

    The seed of a response derives from what identifies it, so it does not depend on which prompts are drawn with it. A
    prompt that is too long for the model has no responses.
    """
    seed, iteration = drawing.seed, drawing.iteration
    seeds = [
        [derive_seed(seed, iteration, prompt.prompt_id, prompt.language, number) for number in range(drawing.n)]
        for prompt in prompts
    ]
    requests = [(prompt.instruction, prompt_seeds) for prompt, prompt_seeds in zip(prompts, seeds, strict=True)]
    answers = sampler.sample(requests, advance, drawing.temperature)
    return [
        Response(
            prompt.prompt_id,
            prompt.language,
            number,
            answer.text,
            answer.token_ids,
            answer.finish_reason,
            answer_seed,
            answer.thinking_tokens,
        )
        for prompt, prompt_seeds, sampled in zip(prompts, seeds, answers, strict=True)
        if sampled  # a prompt that is too long for the model has none
        for number, (answer, answer_seed) in enumerate(zip(sampled, prompt_seeds, strict=True))
    ]
