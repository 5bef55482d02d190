"""The lines on exactness: how noisy scores in bfloat16 are, and whether a batch's size reverses a pair."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import rivals
import torch
from lines import reached
from workload import Workload, rate

from crosspref.engines.transformers.models import readable_directory
from crosspref.models.locate import ModelFiles
from crosspref.reports.audit import least_gap

TOKENS = 48
"""Of each response, that are scored: all in float32 takes minutes."""
GROUPS = 4
"""Groups of prompts, each of which has its own noise."""
BATCHES = (1, 8, 64)
"""Responses side by side."""


def measure(work: Workload) -> dict[str, dict[str, Any]]:
    """Compare log-ratios in the workload's number format with those in float32, in nats."""
    part = work.short()
    part = part.with_responses(
        [replace(row, token_ids=(row.token_ids or [])[:TOKENS], finish_reason="length") for row in part.responses]
    )
    exact, plain = (naive(part, dtype) for dtype in (torch.float32, part.dtype))
    ours = {size: in_batches(part, size, part.options.dtype) for size in BATCHES}
    noise = {size: deviation(values, exact) for size, values in ours.items()}
    naive_noise, most_noise = deviation(plain, exact), max(noise.values())
    noisiest = ours[max(noise, key=noise.__getitem__)]
    size = len(exact) // GROUPS
    groups = [slice(start, start + size) for start in range(0, size * GROUPS, size)]
    each = [ratio(deviation(plain[cut], exact[cut]), deviation(noisiest[cut], exact[cut])) for cut in groups]
    flips, pairs = reversed_pairs(list(ours.values()), least_gap(most_noise), part.options.responses)
    in_float32 = in_batches(part, max(BATCHES), "float32")
    figures = {
        "all_together": ratio(naive_noise, most_noise),
        "naive_noise_nats": naive_noise,
        "in float32, furthest, nats": max(abs(one - other) for one, other in zip(in_float32, exact, strict=True)),
        **{f"noise at {size} side by side, nats": value for size, value in noise.items()},
    }
    return {
        "noise": reached("noise", each, **figures),
        "flips": reached("flips", [float(flips)], pairs_with_a_greater_gap=pairs, gap_nats=least_gap(most_noise)),
    }


def ratio(theirs: float, ours: float) -> float:
    """Return how much larger their noise is; where there is none at all, as in float32, both are alike."""
    return theirs / ours if ours else 1.0


def naive(work: Workload, dtype: torch.dtype) -> list[float]:
    """Return each response's log-ratio, nats, by one full forward pass of its own under each model."""
    return log_ratios(*(full_passes(work, files, dtype) for files in (work.policy, work.initial)))


@torch.inference_mode()
def full_passes(work: Workload, files: ModelFiles, dtype: torch.dtype) -> list[float]:
    """Return each response's log-probability, nats."""
    model = rivals.load(readable_directory(files), dtype)
    sums = []
    for prompt, responses in work.rows():
        for response in responses:
            logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits
            logprobs = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            picked = logprobs.gather(-1, torch.tensor(response)[:, None])
            sums.append(float(picked.sum(dtype=torch.float64)))
    return sums


def in_batches(work: Workload, size: int, dtype: str) -> list[float]:
    """Return each response's log-ratio, nats, by crosspref with so many responses to a prompt side by side."""
    scorer = work.engines(dtype=dtype).scorer(work.policy, work.initial)
    scores = []
    for prompt in work.prompts:
        rows = work.responses_to(prompt)
        for start in range(0, len(rows), size):
            scores += rate(scorer, work.with_responses(rows[start : start + size]))
    scorer.close()
    return log_ratios([row.policy_logprob for row in scores], [row.reference_logprob for row in scores])


def log_ratios(policy: Sequence[Any], reference: Sequence[Any]) -> list[float]:
    """Return the log-probabilities of the policy less those of the reference."""
    return [one - other for one, other in zip(policy, reference, strict=True)]


def deviation(values: Sequence[float], exact: Sequence[float]) -> float:
    """Return the standard deviation of the errors, as audit does."""
    return statistics.pstdev(log_ratios(values, exact))


def reversed_pairs(ways: Sequence[Sequence[float]], gap: float, n: int) -> tuple[int, int]:
    """Return how many pairs of responses to one prompt two ways put in different orders, and how many were compared.

    Compared are those whose values are further apart than ``gap`` by one of the ways.
    """
    flips = compared = 0
    for start in range(0, len(ways[0]), n):
        for second, first in combinations(range(start, start + n), 2):
            apart = [way[first] - way[second] for way in ways]
            if max(map(abs, apart)) > gap:
                compared += 1
                flips += len({math.copysign(1, value) for value in apart}) > 1
    return flips, compared
