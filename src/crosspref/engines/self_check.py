"""Self-checks: a fast path is used only where it gives what a model's plain forward pass gives."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from crosspref.errors import ModelError
from crosspref.maths.logprobs import token_logprobs

log = logging.getLogger(__name__)

NATS_PER_TOKEN = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""By how much a fast path may differ, by number format. The bfloat16 value is above rounding (about 0.1) and far below
the effect of a missing soft-cap, a wrong scale or a shifted position (over 1)."""

FAULTS = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model raises that cannot be computed in a way it was not written for."""

Values = Callable[[], Iterable[float]]
"""Computes log-probabilities of some made-up responses, in nats."""


def made_up_ids(model: Any, count: int = 16) -> list[int]:
    """Return token ids on which two ways of computing the same can be compared."""
    size = model.config.get_text_config().vocab_size
    return [(7 * index * index + 11 * index + 5) % size for index in range(count)]


def plain_logprobs(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Return log-probabilities (tokens,), float32, nats, of a response by the model's own logits."""
    ids = torch.tensor([prompt + response], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    return token_logprobs(logits[0, len(prompt) - 1 : -1], ids[0, len(prompt) :])


def require_finite(values: torch.Tensor, where: str) -> None:
    """Raise ModelError unless all values are finite numbers; ``where`` says what was computed.

    Where a token may be impossible, whose log-probability is -inf, hand over what must be finite all the same: the
    highest logit of each row.
    """
    if not torch.isfinite(values).all():
        raise not_finite(where)


def not_finite(where: str) -> ModelError:
    """Return the error that says that a model computes numbers that are not finite."""
    return ModelError(
        f"The model's probabilities are not finite: NaN or infinity came up in {where}. Its files may hold NaN, as "
        "after a broken merge: then name another model. If they do not, its number format overflows: set "
        "resources.dtype: float32."
    )


class SelfCheck:
    """Compares fast paths with plain ones; where they differ, a log line or an error says so.

    Args:
        model: the messages name its class.
        consequence: what follows for the model where a fast path fails, such as "is trained on padded rows".
        stops: whether a failure is an error instead of a line in the log.
        nats: by how much values may differ per token; by default what suits the model's number format.
    """

    def __init__(self, model: Any, consequence: str, *, stops: bool = False, nats: float | None = None) -> None:
        self.name, self.consequence, self.stops = type(model).__name__, consequence, stops
        self.nats = NATS_PER_TOKEN.get(model.dtype, 0.3) if nats is None else nats

    def passes(self, reason: str, fast: Values, plain: Values, tokens: Sequence[int]) -> bool:
        """Compare the values of a fast path with those of the plain one.

        ``reason`` says what is wrong with the fast path if they differ; ``tokens``, of how many each value is the sum.

        Raises:
            ModelError: they differ or cannot be computed, and a failure is an error; or the plain values are NaN.
        """
        try:
            for value, expected, count in zip(fast(), plain(), tokens, strict=True):
                if math.isnan(expected):
                    raise not_finite(f"a first test of {self.name}")
                if not abs(value - expected) <= self.nats * count:
                    return self.fails(f"{reason} ({value:.4g} nats instead of {expected:.4g})")
        except FAULTS as error:
            return self.fails(f"{reason} ({error})")
        return True

    def fails(self, reason: str) -> bool:
        """Say why the fast path is not used, and return False.

        Raises:
            ModelError: a failure is an error.
        """
        if self.stops:
            raise ModelError(f"{self.name} {self.consequence}, since {reason}.")
        log.warning("%s %s, since %s.", self.name, self.consequence, reason)
        return False
