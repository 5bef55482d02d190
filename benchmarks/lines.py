"""The lines of `make bench`: what is compared with what, and what it is to reach. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from timing import spread


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison: what is reached is a ratio, at least ``target``, or megabytes or a count, at most ``target``."""

    what: str
    against: str
    target: float
    kind: Literal["ratio", "megabytes", "count"] = "ratio"


LINES = {
    "released": Line(
        "scoring under one model, response tokens per second",
        "the released scripts' way: file order, batches of 3, padded, full log-softmax, one pass per response index",
        4.0,
    ),
    "trl-reference": Line(
        "scoring under one model, response tokens per second",
        "TRL's reference log-probability pass, responses two by two, its batches of 8 pairs",
        1.5,
    ),
    "limit": Line(
        "scoring under one model, response tokens per second",
        "the limit: a bare forward of the same unique tokens without padding, head on response tokens only",
        0.85,
    ),
    "memory": Line(
        "scoring, memory above the weights: vocabulary 128,000, 10 responses of 2,400 tokens",
        "batch x length x vocabulary in float32",
        512,
        "megabytes",
    ),
    "memory-workload": Line(
        "scoring, memory above the weights: the workload", "batch x length x vocabulary in float32", 512, "megabytes"
    ),
    "adapter-memory": Line(
        "policy and reference as an adapter on and off of one base, memory", "two separate models", 1.6
    ),
    "adapter-time": Line(
        "policy and reference as an adapter on and off of one base, response tokens per second",
        "two separate models",
        1.0,
    ),
    "alpha": Line("alpha and pairs of 3,000 prompts with 10 responses, time", "the 1,000-step grid", 1000),
    "training": Line(
        "a training step, reference pass included, pairs per second",
        "TRL's DPOTrainer with its defaults, equal batch and loss",
        2.0,
    ),
    "sampling": Line(
        "sampling through transformers, response tokens per second",
        "`model.generate` prompt by prompt with as many sequences",
        2.0,
    ),
    "iteration": Line(
        "one whole iteration, models' loading included, response tokens per second",
        "generate prompt by prompt, the released scripts' scoring and grid, TRL's DPOTrainer",
        2.5,
    ),
    "rescoring": Line(
        "scoring in iteration 2 what came up in iteration 1: tokens that the same reference computes again",
        "scoring everything anew",
        0,
        "count",
    ),
    "noise": Line(
        "noise of a log-ratio in the workload's number format, against float32",
        "that of a full forward pass per response",
        1.0,
    ),
    "flips": Line(
        "pairs with a gap above that noise that turn round between 1, 8 and 64 responses side by side",
        "none",
        0,
        "count",
    ),
}


def reached(line: str, values: Sequence[float], **figures: Any) -> dict[str, Any]:
    """Return what a line reached: ``values`` of each round in the line's unit, and figures beside it."""
    spec, summary = LINES[line], spread(values)
    met = summary["median"] >= spec.target if spec.kind == "ratio" else summary["median"] <= spec.target
    return {**summary, "met": met, "rounds": list(values), "figures": figures}


def shown(value: float, kind: str) -> str:
    """Return a number with its unit."""
    if kind == "megabytes":
        return f"{value:,.0f} MB"
    if kind == "count":
        return f"{value:,.0f}"
    return f"{value:,.0f} x" if value >= 100 else f"{value:.2f} x"
