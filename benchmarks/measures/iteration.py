"""The lines on sampling and on one whole iteration."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import torch
from lines import reached
from measures.training import settings
from timing import alternate, check_alike, mean_per_token, medians, ratios, timed
from workload import Workload, draw, quiet, rate

from crosspref.data.records import Response
from crosspref.engines.transformers.chat import ChatTokenizer, stop_ids
from crosspref.engines.transformers.models import free_memory, readable_directory
from crosspref.languages import ENGLISH
from crosspref.recipe.sections import LengthPenaltySettings, RewardSettings, SelectSettings, TrainSettings
from crosspref.stages.select.select import PairRules, select

Sampled = list[Response]


def measure_sampling(work: Workload) -> dict[str, dict[str, Any]]:
    """Sample by crosspref, against one generate per prompt; both must draw from the same distribution."""
    part = work.short().first(work.options.sample_prompts)
    sampler = work.engines().sampler(work.policy)
    model = rivals.load(readable_directory(work.policy), work.dtype)
    runs = {"crosspref": partial(draw, sampler), "generate": partial(by_generate, model)}
    speeds, results = alternate_samplers(runs, part)
    sampler.close()
    scorer = work.engines().scorer(work.policy, work.initial)
    means = {name: mean_per_token(rate(scorer, part.with_responses(rows))) for name, rows in results.items()}
    scorer.close()
    check_alike(means)
    figures = medians(speeds, "tokens/s") | {f"{name}, nats per token": mean for name, (mean, _) in means.items()}
    figures["standard error of these"] = max(error for _, error in means.values())
    times = ratios(speeds["crosspref"], speeds["generate"])
    return {"sampling": reached("sampling", times, prompts=len(part.prompts), **figures)}


def measure_iteration(work: Workload) -> dict[str, dict[str, Any]]:
    """Sample, score, select and train, against the same chain of what people run now; both load their models in it."""
    part = work.short().first(work.options.iteration_prompts)
    speeds, _ = alternate_samplers({"crosspref": our_iteration, "what people run": their_iteration}, part)
    times = ratios(speeds["crosspref"], speeds["what people run"])
    return {"iteration": reached("iteration", times, prompts=len(part.prompts), **medians(speeds, "tokens/s"))}


def alternate_samplers(
    runs: dict[str, Callable[[Workload, int], Sampled]], work: Workload
) -> tuple[dict[str, list[float]], dict[str, Sampled]]:
    """Let what samples run in alternating rounds, with other random numbers in each; measure tokens per second."""

    def turn(run: Callable[[Workload, int], Sampled], rounds: Iterator[int]) -> tuple[float, Sampled]:
        seconds, rows = timed(lambda: run(work, next(rounds)))
        return sum(len(row.token_ids or ()) for row in rows) / seconds, rows

    for run in runs.values():
        run(work.first(1), 0)  # what is done once is done
    return alternate({name: partial(turn, run, count(1)) for name, run in runs.items()}, work.options.rounds)


def our_iteration(work: Workload, iteration: int) -> Sampled:
    """Run one iteration by crosspref and return what was sampled."""
    engines = work.engines()
    sampler = engines.sampler(work.policy)
    rows = draw(sampler, work, iteration)
    sampler.close()
    scorer = engines.scorer(work.policy, work.initial)
    scores = rate(scorer, work.with_responses(rows))
    scorer.close()
    texts = {prompt.prompt_id: prompt.instruction for prompt in work.prompts}
    # With so few new tokens most are truncated; and every prompt is to give a pair, as in the scripts.
    kept = SelectSettings(truncated="keep", min_gap=0.0)
    selection = select(rows, scores, PairRules(ENGLISH, texts, LengthPenaltySettings(), kept))
    with tempfile.TemporaryDirectory() as folder:
        trainer = engines.trainer(work.policy, settings(8))
        trainer.train(selection.pairs, Path(folder) / "policy", Path(folder) / "checkpoints", quiet)
        trainer.close()
    return rows


def their_iteration(work: Workload, iteration: int) -> Sampled:
    """Run the same by generate, the released scripts' scoring and grid, and TRL's trainer."""
    directory, tokenizer = readable_directory(work.policy), work.tokenizer()
    policy = rivals.load(directory, work.dtype)
    responses = by_generate(policy, work, iteration)
    rows = work.with_responses(responses).rows()
    reference = rivals.load(readable_directory(work.initial), work.dtype)
    scores = [rivals.released_logprobs(model, rows) for model in (policy, reference)]
    del policy, reference
    free_memory()
    rewards = RewardSettings().beta * (np.array(scores[0]) - np.array(scores[1]))
    lengths = np.array([len(row.text) for row in responses], dtype=np.float64).reshape(rewards.shape)
    alpha, _ = rivals.grid(rewards, lengths)
    penalised = rewards - alpha * lengths
    best, worst = penalised.argmax(1).tolist(), penalised.argmin(1).tolist()
    chosen = [
        {"prompt_ids": prompt, "chosen_ids": ids[first], "rejected_ids": ids[last]}
        for (prompt, ids), first, last in zip(rows, best, worst, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        models = rivals.load(directory, torch.float32), rivals.load(directory, torch.float32)
        bf16, learning_rate = work.options.dtype == "bfloat16", TrainSettings().learning_rate
        changes = {"learning_rate": learning_rate, "bf16": bf16, "num_train_epochs": 1}
        trainer = rivals.dpo_trainer(chosen, models, tokenizer.tokenizer, folder, **changes)
        trainer.train()
        trainer.save_model(str(Path(folder) / "policy"))
    del trainer, models
    free_memory()
    return responses


def by_generate(model: Any, work: Workload, iteration: int) -> Sampled:
    """Sample by one generate per prompt."""
    tokenizer: ChatTokenizer = work.tokenizer()
    stops = stop_ids(model.generation_config, tokenizer)
    torch.manual_seed(iteration)
    prompts = [tokenizer.prompt_ids(prompt.instruction) for prompt in work.prompts]
    answers = rivals.generate(model, prompts, work.options, stops, tokenizer.pad)
    responses = []
    for prompt, samples in zip(work.prompts, answers, strict=True):
        for number, ids in enumerate(samples):
            reason = "stop" if ids[-1] in stops else "length"
            responses.append(Response(prompt.prompt_id, ENGLISH, number, tokenizer.text(ids), ids, reason, None))
    return responses
