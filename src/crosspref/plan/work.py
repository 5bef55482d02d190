"""How much work a recipe is: for every phase the tokens that models read and write. Nothing is measured here."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from crosspref import algorithm
from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import load_prompts
from crosspref.data.records import Instruction, Prompt, as_messages
from crosspref.languages import ENGLISH
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import REFERENCE_FREE, TrainSettings

TYPICAL_SHARE = 0.5
"""Of the token limit, for responses of which nothing has been measured."""

Kind = Literal["light", "sample", "translate", "score", "rate", "reference", "train"]


def bytes_of(instruction: Instruction) -> int:
    """Return how many bytes of UTF-8 a text or the messages of a conversation have."""
    return sum(len(message["content"].encode()) for message in as_messages(instruction))


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long texts are in tokens, by language; from a probe or a run, else assumed.

    ``per_byte`` is tokens per byte of UTF-8, by which one rule holds for all scripts; ``template`` is what a chat
    template adds to a prompt. ``response`` and ``longest`` are a response's mean length and that of the longest.
    ``pairs`` is the share of prompts that make a pair.
    """

    template: float = 20.0
    per_byte: dict[str, float] = field(default_factory=dict)
    response: dict[str, float] = field(default_factory=dict)
    longest: dict[str, float] = field(default_factory=dict)
    pairs: float = 1.0

    def prompt(self, instruction: Instruction, language: str) -> float:
        """Return about how many tokens a prompt has."""
        return self.template + bytes_of(instruction) * self.per_byte.get(language, 0.25)

    def answer(self, language: str, limit: int) -> float:
        """Return how many tokens a response has on average."""
        typical = sum(self.response.values()) / len(self.response) if self.response else TYPICAL_SHARE * limit
        return min(self.response.get(language, typical), limit)

    def last(self, language: str, limit: int) -> float:
        """Return how many tokens the longest response of a shard has, for which sampling may have to wait."""
        return min(self.longest.get(language, max(self.longest.values(), default=limit)), limit)


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work of a phase, summed over its shards.

    ``read`` and ``written`` are tokens of prompts and of responses; ``squares`` is the sum over rows of their squared
    length, for attention. For sampling, ``steps`` is the decoding steps and ``row_steps`` the sum of the rows that take
    part in each; ``rows`` is how many are side by side at most, and ``width`` the tokens that each of them keeps.
    """

    kind: Kind
    read: float = 0.0
    written: float = 0.0
    squares: float = 0.0
    units: int = 0
    steps: float = 0.0
    row_steps: float = 0.0
    rows: int = 0
    width: float = 0.0
    settings: TrainSettings | None = None

    @property
    def tokens(self) -> float:
        """All tokens that go through a model once."""
        return self.read + self.written


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """What one phase of one iteration does."""

    phase: str
    iteration: int
    parts: tuple[Work, ...]


class Texts:
    """The prompts and preferences of a recipe, as they will be used.

    Raises:
        DataError: they cannot be used.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.training = load_prompts(recipe.prompts, recipe.languages).prompts
        self.held_out = load_prompts(recipe.held_out, recipe.languages).prompts if recipe.held_out else []
        stage_0 = recipe.align_english
        self.preferences = load_preferences(stage_0.preferences) if stage_0 else []


def plan_work(recipe: Recipe, texts: Texts, lengths: Lengths, cache_tokens: float = math.inf) -> list[PhaseWork]:
    """Return the work of every phase of ``algorithm.phases``; vLLM's cache has room for ``cache_tokens``."""
    plan = _Plan(recipe, texts, lengths, cache_tokens)
    return [
        PhaseWork(phase.name, phase.iteration, WORK[phase.name](plan, phase.iteration))
        for phase in algorithm.phases(recipe)
    ]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the work of a phase follows from."""

    recipe: Recipe
    texts: Texts
    lengths: Lengths
    cache_tokens: float

    @property
    def n(self) -> int:
        """How many responses are drawn to a training prompt."""
        return self.recipe.sample.n if self.recipe.language_imbalance is None else 1

    def sampling(self, prompts: Sequence[Prompt], n: int) -> Work:
        """Cut the prompts into shards, as the sampler does; in each a row that ends makes room for the next.

        Each prompt is read once, and kept once for its rows that are side by side.
        """
        recipe, lengths = self.recipe, self.lengths
        asked, shard = recipe.sample, recipe.resources.shard_prompts
        read = written = squares = steps = row_steps = width = 0.0
        units = most = 0
        for language in recipe.languages:
            sizes = [lengths.prompt(prompt.instruction, language) for prompt in _in(prompts, language)]
            mean, longest = lengths.answer(language, asked.max_new_tokens), lengths.last(language, asked.max_new_tokens)
            for start in range(0, len(sizes), shard):
                part = sizes[start : start + shard]
                rows = len(part) * n
                beside = min(rows, self._beside(max(part), mean, n))
                width = max(width, max(part) / min(n, beside) + asked.max_new_tokens)
                most = max(most, beside)
                steps += decoding_steps(rows, beside, mean, longest)
                row_steps += rows * mean
                read += sum(part)
                written += rows * mean
                squares += n * sum((size + mean) ** 2 for size in part)
                units += rows
        return Work("sample", read, written, squares, units, steps, row_steps, most, width)

    def _beside(self, prompt: float, mean: float, n: int) -> int:
        """Return about how many rows are side by side, with prompts of so many tokens and n responses to each.

        vLLM makes room in its cache as a row grows. What a server can hold at once is not known.
        """
        recipe, asked = self.recipe, self.recipe.sample
        if asked.engine == "server":
            return recipe.server.concurrency
        if asked.engine == "vllm":
            return rows_beside(recipe.vllm.max_sequences, self.cache_tokens, prompt, mean, n)
        return rows_beside(asked.batch_size, asked.batch_tokens, prompt, asked.max_new_tokens, n)

    def scoring(self, prompts: Sequence[Prompt], n: int, reward: str) -> Work:
        """Each prompt is read once and shared by its responses; by a reward model it is read with each of them."""
        recipe, lengths = self.recipe, self.lengths
        english = {prompt.prompt_id: prompt for prompt in _in(prompts, ENGLISH)}
        read = written = squares = width = 0.0
        units = 0
        for language in recipe.languages:
            for prompt in _in(prompts, language):
                own = reward in ("multilingual", "reward_model")
                source = prompt if own else english[prompt.prompt_id]
                size = lengths.prompt(source.instruction, source.language)
                mean = lengths.answer(language, recipe.sample.max_new_tokens)
                times = n if reward == "reward_model" else 1
                read += times * size
                written += n * mean
                squares += n * (size + mean) ** 2 - (n - times) * size**2
                width = max(width, size + recipe.sample.max_new_tokens)
                units += n
        return Work("rate" if reward == "reward_model" else "score", read, written, squares, units, rows=n, width=width)

    def translating(self) -> Work:
        """A translation reads a response and is taken to be as long; for language imbalance they go both ways."""
        recipe, lengths, prompts = self.recipe, self.lengths, self.texts.training
        settings = recipe.translate
        foreign = [language for language in recipe.languages if language != ENGLISH]
        both_ways = recipe.language_imbalance is not None
        count = sum(len(_in(prompts, language)) for language in foreign) * self.n * (2 if both_ways else 1)
        means = [lengths.answer(language, recipe.sample.max_new_tokens) for language in foreign]
        mean = sum(means) / max(1, len(means))
        written = min(mean, settings.max_new_tokens)
        rows = max(1, min(recipe.sample.batch_size, count))
        steps = math.ceil(count / rows) * float(settings.max_new_tokens if not lengths.longest else written)
        size = mean + 3 * lengths.template
        squares = count * (size + written) ** 2
        width = size + settings.max_new_tokens
        return Work("translate", count * size, count * written, squares, count, steps, steps * rows, rows, width)

    def training(self, iteration: int) -> Work:
        stage_0 = self.recipe.align_english
        return self._stage_0(stage_0) if iteration == 0 and stage_0 is not None else self._pairs()

    def _pairs(self) -> Work:
        """How many prompts make a pair is not known before."""
        recipe, lengths = self.recipe, self.lengths
        total, width, pairs = Work("train"), 0.0, 0
        foreign = len(recipe.languages) - 1
        for language in recipe.languages:
            each = 1 if recipe.language_imbalance is None or language != ENGLISH else foreign
            mean = lengths.answer(language, recipe.sample.max_new_tokens)
            for prompt in _in(self.texts.training, language):
                size = lengths.prompt(prompt.instruction, language)
                total = add_pair(total, size, (mean, mean), recipe.train, times=each)
                width = max(width, size + recipe.sample.max_new_tokens)
                pairs += each
        return _trained(total, lengths.pairs, pairs, width, recipe.train)

    def _stage_0(self, settings: TrainSettings) -> Work:
        lengths, total, width = self.lengths, Work("train"), 0.0
        for pair in self.texts.preferences:
            size = lengths.prompt(pair.prompt, ENGLISH)
            sides = (pair.chosen, pair.rejected)
            answers = [lengths.prompt(answer[-1]["content"], ENGLISH) - lengths.template for answer in sides]
            total = add_pair(total, size, answers, settings)
            width = max(width, size + max(answers))
        return _trained(total, 1.0, len(self.texts.preferences), width, settings)

    def reference(self, iteration: int) -> Work:
        """Each pair goes through the reference once, however many epochs it is trained on."""
        training = self.training(iteration)
        epochs = training.settings.epochs if training.settings else 1
        read, written, squares = (value / epochs for value in (training.read, training.written, training.squares))
        return Work("reference", read, written, squares, training.units, width=training.width)

    def evaluating(self) -> tuple[Work, ...]:
        prompts, n = self.texts.held_out, self.recipe.evaluate.n
        scoring = [self.scoring(prompts, n, "multilingual")] if self.recipe.has_implicit_reward else []
        return self.sampling(prompts, n), *scoring

    def scoring_by_all(self) -> tuple[Work, ...]:
        return tuple(self.scoring(self.texts.training, self.n, reward) for reward in self.recipe.reward.names)


WORK: dict[str, Callable[[_Plan, int], tuple[Work, ...]]] = {
    "prompts": lambda _, __: (Work("light"),),
    "align_english": lambda plan, iteration: (plan.training(iteration),),
    "sample": lambda plan, _: (plan.sampling(plan.texts.training, plan.n),),
    "translate": lambda plan, _: (plan.translating(),),
    "score": lambda plan, _: plan.scoring_by_all(),
    "select": lambda _, __: (Work("light"),),
    "reference": lambda plan, iteration: (plan.reference(iteration),),
    "train": lambda plan, iteration: (plan.training(iteration),),
    "evaluate": lambda plan, _: plan.evaluating(),
}
"""What each phase does, by its name."""


def _in(prompts: Sequence[Prompt], language: str) -> list[Prompt]:
    return [prompt for prompt in prompts if prompt.language == language]


def rows_beside(most: int, tokens: float, prompt: float, response: float, n: int) -> int:
    """Return about how many rows, at most ``most``, have room in so many tokens; n rows keep their prompt once."""
    return max(1, int(min(most, (tokens - prompt) / (response + prompt / n))))


def decoding_steps(rows: int, beside: int, mean: float, longest: float) -> float:
    """Return about how many steps rows take: they come in turns of mean length, and the last may be the longest."""
    return (math.ceil(rows / beside) - 1) * mean + max(mean, longest)


def add_pair(total: Work, prompt: float, answers: Sequence[float], settings: TrainSettings, times: int = 1) -> Work:
    """Return the work with that of training on a pair added, ``times`` over.

    A pair's prompt goes through a model once for both of its responses, but for KTO, whose examples come one by one.
    """
    prompts = len(answers) if settings.method == "kto" else 1
    squares = sum((prompt + answer) ** 2 for answer in answers) - (len(answers) - prompts) * prompt**2
    return replace(
        total,
        read=total.read + times * prompts * prompt,
        written=total.written + times * sum(answers),
        squares=total.squares + times * squares,
    )


def _trained(total: Work, share: float, pairs: int, width: float, settings: TrainSettings) -> Work:
    """Return the work of all epochs on a share of the pairs."""
    read, written, squares = (share * settings.epochs * value for value in (total.read, total.written, total.squares))
    width = min(width, settings.max_length)
    return Work("train", read, written, squares, round(share * pairs), width=width, settings=settings)


def reference_models(settings: TrainSettings) -> int:
    """Return how many models training holds beside the policy: adapters share their base with their own reference."""
    if settings.method in REFERENCE_FREE or settings.precompute_reference:
        return 0
    return int(settings.lora is None or settings.reference == "initial")
