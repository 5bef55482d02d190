"""What the stages need of an engine: small protocols with one method each, and ``close``, which frees memory."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from crosspref.data.records import FinishReason, Instruction, Pair, Response
from crosspref.models.locate import ModelFiles
from crosspref.recipe.sections import TrainSettings

Advance = Callable[[int, int], None]
"""Called with finished units and the tokens they took, to show progress. A phase's own also keeps what engines tell it
to keep, so that a kill does not cost a whole shard: see ``run.kept``. An engine need not know of that."""

Work = Callable[[Any, Any, Advance], Any]
"""Makes one shard's result from an engine and the shard, and advances."""


@dataclass(frozen=True, slots=True)
class Done:
    """A shard that was worked on, its result, and what that took: seconds, units of progress and tokens."""

    shard: Any
    result: Any
    seconds: float
    units: int
    tokens: int


Results = Callable[[Advance], Iterator[Done]]
"""Works on all shards and yields each as it is done, in any order; advances as it goes."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One answer as it came from the model; the ids include the end-of-turn token if it was sampled.

    The ids are None where a server returned text alone. ``thinking_tokens`` is how many tokens of thinking were cut in
    front of it; None if there were none.
    """

    text: str
    token_ids: list[int] | None
    finish_reason: FinishReason
    thinking_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class LogProbs:
    """log pi(y | x) of one response under two models, summed over ``tokens`` tokens, in nats.

    ``reference`` is None where there is no reference model.
    """

    policy: float
    reference: float | None
    tokens: int


SampleRequest = tuple[Instruction, Sequence[int]]
"""An instruction, which may be a conversation, and a seed for each response."""

Known = tuple[float | None, float | None]
"""What is already known of a response: log pi(y | x) under policy and reference, nats; None must be computed."""


class Engine(Protocol):
    """What holds models in memory."""

    def close(self) -> None:
        """Give the memory back."""


class Sampler(Engine, Protocol):
    """Draws responses from one policy."""

    def sample(
        self, requests: Sequence[SampleRequest], advance: Advance, temperature: float | None = None
    ) -> list[list[Sampled]]:
        """Answer each (instruction, seeds) with one response per seed; a response depends on its own seed only.

        A prompt that is longer than the recipe allows, or than leaves room for a response in the model's context, gets
        no responses. ``temperature`` takes the place of the recipe's; 0 is the likeliest token.

        Raises:
            ServerError: a server gave no usable answer to one of them, after all retries.
        """


class Translator(Engine, Protocol):
    """Translates texts, greedily."""

    def translate(self, requests: Sequence[tuple[str, str, str]], advance: Advance) -> list[Sampled | None]:
        """Translate each (text, its language, the language wanted); None for a text that is too long for the model.

        The token ids are the policy's, or empty where the translator's tokenizer is another one.
        """


class Scorer(Engine, Protocol):
    """Computes log-probabilities under a policy and, where there is one, a reference."""

    def score(
        self, instruction: Instruction, responses: Sequence[Response], known: Sequence[Known] = ()
    ) -> list[LogProbs]:
        """Score all responses to one instruction; a score does not depend on other instructions.

        ``known`` holds what is already known of each response, or is empty.

        Raises:
            ServerError: a server gave no usable answer to one of them, after all retries.
        """


class ReleasedScorer(Scorer, Protocol):
    """Also computes what the paper's released scripts count, which depends on what stands beside a response."""

    def score_each(
        self, requests: Sequence[tuple[Instruction, Sequence[Response]]], without: Collection[int] = ()
    ) -> Iterator[list[LogProbs]]:
        """Score the responses to each (instruction, responses) in batches of 3 in the order given.

        The requests of the numbers ``without`` stand in their batches, but are left out of what is returned.
        """


class RewardModel(Engine, Protocol):
    """A model that says how good a response is."""

    def rate(self, instruction: Instruction, responses: Sequence[str]) -> list[float]:
        """Return one number per response to an instruction; it does not depend on the other responses."""


class Trainer(Engine, Protocol):
    """Trains a policy on preference pairs."""

    def train(self, pairs: Sequence[Pair], output: Path, checkpoints: Path, advance: Advance) -> dict[str, Any]:
        """Train, write the policy to ``output`` and return figures; resumes from the last whole checkpoint."""

    def reference_logprobs(self, pairs: Sequence[Pair], advance: Advance) -> list[tuple[float, float] | None]:
        """Return the training reference's (chosen, rejected) log-probabilities, nats; None where a pair is too long."""


class Executor(Protocol):
    """Works on the shards of a run, on this machine or on the workers of Ray."""

    def cluster(self) -> AbstractContextManager[None]:
        """Hold what a whole run needs beside its phases: nothing, or a connection to Ray.

        Raises:
            RunError: Ray does not answer.
        """

    def map_shards(
        self, build: Callable[[], Any], work: Work, shards: Sequence[Any], say: Callable[[str], None]
    ) -> AbstractContextManager[Results]:
        """Hold the engine that ``build`` makes, once here or once on each worker of Ray, to work on the shards.

        ``build``, ``work``, the shards and the results must be picklable; ``say`` prints a line.

        Raises:
            RunError: Ray does not answer, has no room for a worker, or a shard ended its worker again and again.
        """

    def train_together(self, phase: Callable[[], None], folder: Path) -> None:
        """Run a phase that trains on all of Ray's workers at once; a rank's environment says which one it is.

        Args:
            phase: picklable; resumes from its own last checkpoint when it is run again after a worker died.
            folder: where Ray Train may keep its state meanwhile, on storage that all nodes share.

        Raises:
            RunError: the workers have no room, or died again and again.
        """


class Engines(Protocol):
    """Builds the engines that a recipe asks for, when a phase needs them."""

    def sampler(self, policy: ModelFiles, *, greedy: bool = False) -> Sampler:
        """Return a sampler that holds the policy; a greedy one takes the likeliest token, whatever the recipe says."""

    def translator(self, policy: ModelFiles) -> Translator:
        """Return the translator that the recipe names, or the policy as one."""

    def scorer(self, policy: ModelFiles, reference: ModelFiles | None) -> Scorer:
        """Return a scorer that holds both models; a ReleasedScorer where ``reward.counting`` is znlp."""

    def reward_model(self, model: ModelFiles) -> RewardModel:
        """Return a sequence-classification reward model."""

    def trainer(self, policy: ModelFiles, settings: TrainSettings, reference: ModelFiles | None = None) -> Trainer:
        """Return a trainer that starts from the policy; without a reference the policy's start is its reference."""

    def identifier(self, language: str) -> Callable[[str], str] | None:
        """Return what tells a text's language tag, or None if texts of this language are not recognised."""

    def executor(self) -> Executor:
        """Return what works on shards: this process, or Ray's workers."""
