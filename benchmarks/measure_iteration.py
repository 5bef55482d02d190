"""The lines on sampling and on one whole iteration."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import torch
from lines import reached
from measure_training import micro_batch
from prepared import Prepared, draw, quiet, rate
from timing import alike, mean_per_token, ratios, spread, take_turns, timed

from crosspref.data.records import Response
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.engines.transformers.models import ChatTokenizer, free_memory, readable_directory, stop_ids
from crosspref.languages import ENGLISH
from crosspref.stages.select.select import select

Drawn = list[Response]


def measure_sampling(work: Prepared) -> dict[str, dict[str, Any]]:
    """Sample by crosspref, against one generate per prompt; both must draw from the same distribution."""
    part = work.short().first(work.options.sample_prompts)
    sampler, model = work.engines().sampler(work.policy), rivals.load(readable_directory(work.policy), _dtype(work))
    turns = {"crosspref": partial(draw, sampler), "generate": partial(by_generate, model)}
    for run in turns.values():
        run(part.first(1), 0)
    speeds, results = take_turns({name: _speed(run, part) for name, run in turns.items()}, work.options.rounds)
    sampler.close()
    scorer = work.engines().scorer(work.policy, work.initial)
    means = {}
    for name, rows in results.items():
        scores = rate(scorer, part.with_responses(rows))
        means[name] = mean_per_token([row.policy_logprob or 0.0 for row in scores], [row.tokens or 0 for row in scores])
    scorer.close()
    alike(means)
    said = {f"{name}, tokens/s": spread(values)["median"] for name, values in speeds.items()}
    said |= {f"{name}, nats per token": mean for name, (mean, _) in means.items()}
    said |= {"standard error of these": max(error for _, error in means.values())}
    return {
        "sampling": reached(
            "sampling", ratios(speeds["crosspref"], speeds["generate"]), prompts=len(part.prompts), **said
        )
    }


def measure_iteration(work: Prepared) -> dict[str, dict[str, Any]]:
    """Sample, score, select and train, against the same chain of what people run now; both load their models in it."""
    part = work.short().first(work.options.iteration_prompts)
    chains = {"crosspref": own_iteration, "what people run": their_iteration}
    for chain in chains.values():
        chain(part.first(1), 0)
    speeds, _ = take_turns({name: _speed(chain, part) for name, chain in chains.items()}, work.options.rounds)
    said = {f"{name}, tokens/s": spread(values)["median"] for name, values in speeds.items()}
    reach = ratios(speeds["crosspref"], speeds["what people run"])
    return {"iteration": reached("iteration", reach, prompts=len(part.prompts), **said)}


def own_iteration(work: Prepared, iteration: int) -> Drawn:
    """Run one iteration by crosspref and return what was sampled."""
    recipe = work.recipe(train={"batch_size": 8, "micro_batch_size": micro_batch(8)})
    engines = EngineFactory(EngineSettings.of(recipe))
    sampler = engines.sampler(work.policy)
    rows = draw(sampler, work, iteration)
    sampler.close()
    scorer = engines.scorer(work.policy, work.initial)
    scores = rate(scorer, work.with_responses(rows))
    scorer.close()
    texts = {prompt.prompt_id: prompt.instruction for prompt in work.prompts}
    given: dict[str, Any] = {"penalty": recipe.length_penalty, "settings": recipe.select, "identify": None}
    selection = select(rows, scores, texts, ENGLISH, **given)
    with tempfile.TemporaryDirectory() as folder:
        trainer = engines.trainer(work.policy, recipe.train)
        trainer.train(selection.pairs, Path(folder) / "policy", Path(folder) / "checkpoints", quiet)
        trainer.close()
    return rows


def their_iteration(work: Prepared, iteration: int) -> Drawn:
    """Run the same by generate, the released scripts' scoring and grid, and TRL's trainer."""
    directory, tokenizer = readable_directory(work.policy), work.tokenizer()
    policy = rivals.load(directory, _dtype(work))
    responses = by_generate(policy, work, iteration)
    rows = work.with_responses(responses).rows()
    reference = rivals.load(readable_directory(work.initial), _dtype(work))
    scores = [rivals.released_logprobs(model, rows) for model in (policy, reference)]
    del policy, reference
    free_memory()
    beta, n = work.recipe().reward.beta, work.options.responses
    rewards = beta * (np.array(scores[0]) - np.array(scores[1]))
    lengths = np.array([len(row.text) for row in responses], dtype=np.float64).reshape(-1, n)
    alpha, _ = rivals.grid(rewards, lengths)
    penalised = rewards - alpha * lengths
    chosen = [
        {"prompt_ids": prompt, "chosen_ids": ids[best], "rejected_ids": ids[worst]}
        for (prompt, ids), best, worst in zip(
            rows, penalised.argmax(1).tolist(), penalised.argmin(1).tolist(), strict=True
        )
    ]
    with tempfile.TemporaryDirectory() as folder:
        models = rivals.load(directory, torch.float32), rivals.load(directory, torch.float32)
        rate = work.recipe().train.learning_rate
        changes: dict[str, Any] = {
            "learning_rate": rate,
            "bf16": work.options.dtype == "bfloat16",
            "num_train_epochs": 1,
        }
        trainer = rivals.dpo_trainer(chosen, models, tokenizer.tokenizer, folder, **changes)
        trainer.train()
        trainer.save_model(str(Path(folder) / "policy"))
    del trainer, models
    free_memory()
    return responses


def by_generate(model: Any, work: Prepared, iteration: int) -> Drawn:
    """Sample by one generate per prompt."""
    tokenizer: ChatTokenizer = work.tokenizer()
    stops = stop_ids(model, tokenizer)
    torch.manual_seed(iteration)
    prompts = [tokenizer.prompt_ids(prompt.instruction) for prompt in work.prompts]
    answers = rivals.generate(model, prompts, work.options, stops, tokenizer.pad)
    return [
        Response(
            prompt.prompt_id, ENGLISH, number, tokenizer.text(ids), ids, "stop" if ids[-1] in stops else "length", None
        )
        for prompt, own in zip(work.prompts, answers, strict=True)
        for number, ids in enumerate(own)
    ]


def _speed(run: Callable[[Prepared, int], Drawn], work: Prepared) -> Callable[[], tuple[float, Drawn]]:
    """Return what samples other responses each time, and returns tokens per second of all of it, and the responses."""
    number = 0

    def turn() -> tuple[float, Drawn]:
        nonlocal number
        number += 1
        seconds, rows = timed(lambda: run(work, number))
        return sum(len(row.token_ids or ()) for row in rows) / seconds, rows

    return turn


def _dtype(work: Prepared) -> torch.dtype:
    return work.options.torch_dtype
