"""The lines on exactness: how noisy scores in bfloat16 are, and whether a batch's size turns a pair round."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import rivals
import torch
from lines import reached
from prepared import Prepared, quiet

from crosspref.engines import EngineFactory, EngineSettings
from crosspref.engines.transformers.models import readable_directory
from crosspref.models.locate import ModelFiles
from crosspref.reports.noise import least_gap
from crosspref.stages.score import score

Found = dict[str, dict[str, Any]]
TOKENS = 48
"""Of each response, that are scored: all in float32 takes minutes."""
GROUPS = 4
"""Groups of prompts, each of which has its own noise."""
BATCHES = (1, 8, 64)
"""Responses side by side."""


def measure_exactness(work: Prepared) -> Found:
    """Compare log-ratios in the workload's number format with those in float32, in nats."""
    short = work.short()
    begun = [replace(row, token_ids=(row.token_ids or [])[:TOKENS], finish_reason="length") for row in short.responses]
    part = short.with_responses(begun)
    models = (work.policy, work.initial)
    exact = log_ratios(*(naive(part, files, torch.float32) for files in models))
    plain = log_ratios(*(naive(part, files, work.options.torch_dtype) for files in models))
    own = {size: in_batches(part, size, work.options.dtype) for size in BATCHES}
    float32 = in_batches(part, max(BATCHES), "float32")
    noise = {size: spread_of(values, exact) for size, values in own.items()}
    theirs, worst = spread_of(plain, exact), max(noise.values())
    noisiest = own[max(noise, key=noise.__getitem__)]
    size = len(exact) // GROUPS
    cuts = [slice(start, start + size) for start in range(0, size * GROUPS, size)]
    each = [ratio(spread_of(plain[cut], exact[cut]), spread_of(noisiest[cut], exact[cut])) for cut in cuts]
    flips, pairs = turned_round(list(own.values()), least_gap(worst), part.options.responses)
    apart = max(abs(one - other) for one, other in zip(float32, exact, strict=True))
    said: dict[str, float] = {"in float32, furthest, nats": apart}
    said |= {f"noise at {size} side by side, nats": value for size, value in noise.items()}
    return {
        "noise": reached("noise", each, all_together=ratio(theirs, worst), naive_noise_nats=theirs, **said),
        "flips": reached("flips", [float(flips)], pairs_with_a_greater_gap=pairs, gap_nats=least_gap(worst)),
    }


def ratio(theirs: float, own: float) -> float:
    """Return how much larger their noise is; where there is none at all, as in float32, both are alike."""
    return theirs / own if own else 1.0


def naive(work: Prepared, files: ModelFiles, dtype: torch.dtype) -> list[float]:
    """Return each response's log-probability, nats, by one full forward pass of its own."""
    model = rivals.load(readable_directory(files), dtype)
    found = []
    with torch.inference_mode():
        for prompt, responses in work.rows():
            for response in responses:
                logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits
                logprobs = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
                picked = logprobs.gather(-1, torch.tensor(response)[:, None])
                found.append(float(picked.sum(dtype=torch.float64)))
    return found


def in_batches(work: Prepared, size: int, dtype: str) -> list[float]:
    """Return each response's log-ratio, nats, by crosspref with so many responses to a prompt side by side."""
    resources = {"dtype": dtype, "device": "cpu", "threads": work.options.threads}
    scorer = EngineFactory(EngineSettings.of(work.recipe(resources=resources))).scorer(work.policy, work.initial)
    settings = work.recipe().reward
    scores = []
    for prompt in work.prompts:
        rows = [row for row in work.responses if row.prompt_id == prompt.prompt_id]
        for start in range(0, len(rows), size):
            side_by_side = rows[start : start + size]
            given = {"settings": settings, "reward": "multilingual", "advance": quiet}
            scores += score(side_by_side, work.prompts, scorer, **given)
    scorer.close()
    return log_ratios([row.policy_logprob for row in scores], [row.reference_logprob for row in scores])


def log_ratios(policy: Sequence[Any], reference: Sequence[Any]) -> list[float]:
    """Return their differences."""
    return [one - other for one, other in zip(policy, reference, strict=True)]


def spread_of(values: Sequence[float], exact: Sequence[float]) -> float:
    """Return the standard deviation of the errors, as audit does."""
    return statistics.pstdev([one - other for one, other in zip(values, exact, strict=True)])


def turned_round(ways: Sequence[Sequence[float]], gap: float, n: int) -> tuple[int, int]:
    """Return how many pairs of responses to one prompt two ways put in different orders, and how many were looked at.

    Looked at are those whose values are further apart than ``gap`` by one of the two.
    """
    flips = looked = 0
    for start in range(0, len(ways[0]), n):
        for first in range(start, start + n):
            for second in range(start, first):
                apart = [way[first] - way[second] for way in ways]
                if max(map(abs, apart)) > gap:
                    looked += 1
                    flips += len({math.copysign(1, value) for value in apart}) > 1
    return flips, looked
