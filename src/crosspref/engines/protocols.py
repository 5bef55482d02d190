"""What the stages need of an engine: three small protocols, one method each (and ``close``, which frees memory)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from crosspref.models import ModelFiles
from crosspref.recipe import TrainSettings
from crosspref.records import FinishReason, Pair, Response

Advance = Callable[[int, int], None]
"""Called with finished units and the tokens they took, to show progress."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One answer as it came from the model; the ids include the end-of-turn token if it was sampled."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class LogProbs:
    """log pi(y | x) of one response under two models, summed over ``tokens`` tokens, in nats."""

    policy: float
    reference: float
    tokens: int


class Sampler(Protocol):
    """Draws responses from one policy."""

    def sample(self, requests: Sequence[tuple[str, Sequence[int]]], advance: Advance) -> list[list[Sampled]]:
        """Answer each (instruction, seeds) with one response per seed; a response depends on its own seed only."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Scorer(Protocol):
    """Computes log-probabilities under a policy and a reference."""

    def score(self, instruction: str, responses: Sequence[Response]) -> list[LogProbs]:
        """Score all responses to one instruction; a score does not depend on other instructions."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Trainer(Protocol):
    """Trains a policy on preference pairs."""

    def train(self, pairs: Sequence[Pair], output: Path, checkpoints: Path, advance: Advance) -> dict[str, Any]:
        """Train, write the policy to ``output`` and return figures; goes on from the last whole checkpoint."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Engines(Protocol):
    """Builds the engines that a recipe asks for, when a phase needs them."""

    def sampler(self, policy: ModelFiles) -> Sampler:
        """Return a sampler that holds the policy."""
        ...

    def scorer(self, policy: ModelFiles, reference: ModelFiles) -> Scorer:
        """Return a scorer that holds both models."""
        ...

    def trainer(self, policy: ModelFiles, settings: TrainSettings) -> Trainer:
        """Return a trainer that starts from the policy."""
        ...

    def identifier(self, language: str) -> Callable[[str], str] | None:
        """Return what tells a text's language tag, or None if texts of this language are not recognised."""
        ...
