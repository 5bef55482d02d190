"""Measuring this machine: crosspref's engines on a few of the recipe's prompts, for about two minutes."""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from crosspref.data.records import Pair, Prompt, Response
from crosspref.engines import ENGINES, EngineFactory, EngineSettings
from crosspref.errors import RunError
from crosspref.languages import ENGLISH, crosslingual_instruction
from crosspref.models.locate import locate_model
from crosspref.plan.accelerators import Accelerator
from crosspref.plan.costs import Speeds, flops
from crosspref.plan.observed import fit_decoding
from crosspref.plan.shapes import ModelShape
from crosspref.plan.work import Lengths, Texts, Work, add_pair, bytes_of
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import REFERENCE_FREE, TrainSettings
from crosspref.run.processes import ending, run_in_child
from crosspref.run.progress import Reporter
from crosspref.run.store import publish_directory
from crosspref.stages.sample import Drawing, sample

BUDGET = 120.0
"""About how many seconds a probe may take: a batch or a training step that has begun is finished."""
TRIAL_TOKENS = 16
"""How many tokens are sampled first, to see how many can be."""


def this_machine(recipe: Recipe) -> tuple[Accelerator, int]:
    """Return the device that phases run on here, and bytes per value of its number format; this imports torch."""
    from crosspref.engines.transformers.models import Loading, free_bytes

    loading = Loading.of(EngineSettings.of(recipe))
    memory = free_bytes(loading.device) / 1e9
    return Accelerator(f"this machine ({loading.device})", memory), loading.dtype.itemsize


class Probe:
    """Samples, scores and trains a little, each with the recipe's own settings, and measures the time."""

    def __init__(self, recipe: Recipe, texts: Texts, shape: ModelShape, rows: int, width: int) -> None:
        self.recipe, self.texts, self.shape, self.rows, self.width = recipe, texts, shape, rows, width
        self.settings = EngineSettings.of(recipe)
        self.model = locate_model(recipe.models.policy or recipe.models.initial or "")
        self.began = time.monotonic()
        self.cap = recipe.sample.max_new_tokens
        self.n = 1 if recipe.language_imbalance else recipe.sample.n
        self.answered: list[tuple[Prompt, list[Response]]] = []

    @property
    def seconds(self) -> float:
        """Seconds since the probe began."""
        return time.monotonic() - self.began

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        from crosspref.engines.transformers.chat import load_tokenizer
        from crosspref.engines.transformers.models import readable_directory

        # A GGUF file is converted once and kept: the run will find it there.
        return load_tokenizer(readable_directory(self.model), self.recipe.models)

    def measure(self, reporter: Reporter) -> tuple[Speeds, Lengths]:
        """Return the machine's speeds and the lengths of texts.

        Raises:
            CrossprefError: an engine cannot be built, or cannot do what the recipe asks for.
        """
        lengths = self._prompt_lengths()
        reporter.say("probe: sampling")
        sampling, load_sampler = self._sample()
        reporter.say("probe: scoring")
        score, load_scorer = self._score()
        reporter.say("probe: training")
        train, beside = self._train(score)
        light, heavy, trainer = (
            _start_seconds(name.partition(":")[0])
            for name in ("crosspref.api", ENGINES["sampler"][self.recipe.sample.engine], ENGINES["trainer"]["trl"])
        )
        start = {"prompts": light, "select": light, "sample": heavy + load_sampler, "score": heavy + load_scorer}
        start |= {"translate": heavy + load_sampler, "evaluate": heavy + load_sampler + load_scorer}
        start |= {"train": trainer + beside, "align_english": trainer + beside}
        read, decode = fit_decoding(sampling, self.shape, self.width, score)
        return Speeds(read, decode, score, train, start), self._with_responses(lengths)

    def _requests(self, rows: int) -> list[Prompt]:
        """Return the prompts whose responses make a batch of so many rows, of all languages in turn."""
        recipe = self.recipe
        by_language = [[p for p in self.texts.training if p.language == tag] for tag in recipe.languages]
        turns = [prompt for parallel in zip_longest(*by_language) for prompt in parallel if prompt]
        return turns[: max(1, rows // self.n)]

    def _sample(self) -> tuple[list[tuple[float, Work]], float]:
        """Return seconds and work of batches, and the seconds of loading; the first batch says how many tokens fit."""
        many, few = self._requests(self.rows), self._requests(1)
        trial = min(TRIAL_TOKENS, self.cap)
        sampler, first = self._sampler(trial)
        seconds, _ = self._batch(sampler, many, trial)
        sampler.close()
        affordable = int(0.25 * BUDGET / (seconds / trial))
        self.cap = min(self.cap, max(TRIAL_TOKENS, affordable))
        sampler, second = self._sampler(self.cap)
        try:
            batches: list[tuple[float, Work]] = []
            until = time.monotonic() + 0.2 * BUDGET
            while not batches or (time.monotonic() < until and len(batches) < 6):
                batches.append(self._batch(sampler, many, self.cap, keep=True))
                batches.append(self._batch(sampler, few, self.cap))
        finally:
            sampler.close()
        return batches, min(first, second)

    def _sampler(self, tokens: int) -> tuple[Any, float]:
        settings = self.recipe.sample.model_copy(update={"max_new_tokens": tokens})
        engines = EngineFactory(replace(self.settings, sample=settings))
        began = time.monotonic()
        sampler = engines.sampler(self.model, greedy=self.recipe.language_imbalance is not None)
        return sampler, time.monotonic() - began

    def _batch(self, sampler: Any, prompts: Sequence[Prompt], limit: int, keep: bool = False) -> tuple[float, Work]:
        began = time.monotonic()
        rows = sample(prompts, sampler, Drawing(self.n, seed=len(self.answered), iteration=0), lambda *_: None)
        seconds = time.monotonic() - began
        sizes = [len(row.token_ids or []) for row in rows]
        for prompt in prompts if keep else ():
            key = prompt.prompt_id, prompt.language
            self.answered.append((prompt, [row for row in rows if (row.prompt_id, row.language) == key]))
        read = sum(len(self.tokenizer.prompt_ids(prompt.instruction)) for prompt in prompts)
        steps = max(sizes, default=limit)
        return seconds, Work("sample", read, steps=steps, row_steps=sum(sizes), rows=len(sizes))

    def _score(self) -> tuple[float, float]:
        """Return seconds per FLOP of scoring, and the seconds of loading."""
        recipe = self.recipe
        if not recipe.has_implicit_reward:
            return 0.0, 0.0
        english = {prompt.prompt_id: prompt for prompt in self.texts.training if prompt.language == ENGLISH}
        reference = None
        if recipe.reward.algorithm not in REFERENCE_FREE:
            reference = locate_model(recipe.models.initial or "")
        began = time.monotonic()
        scorer: Any = EngineFactory(self.settings).scorer(self.model, reference)
        loading = time.monotonic() - began
        seconds = work = 0.0
        until = time.monotonic() + 0.2 * BUDGET
        for index, (prompt, responses) in enumerate(self.answered):
            asked = english[prompt.prompt_id].instruction
            source = crosslingual_instruction(asked, prompt.language, recipe.reward.prefix)
            read = len(self.tokenizer.prompt_ids(source))
            began = time.monotonic()
            scorer.score(source, responses)
            if index == 0 and len(self.answered) > 1:
                continue  # the first one warms up
            seconds += time.monotonic() - began
            sizes = [len(response.token_ids or []) for response in responses]
            squares = sum((read + size) ** 2 for size in sizes) - (len(sizes) - 1) * read**2
            part = Work("score", read, sum(sizes), squares)
            work += flops(part, self.shape, recipe)
            if time.monotonic() > until:
                break
        scorer.close()
        return seconds / work, loading

    def _train(self, score: float) -> tuple[float, float]:
        """Return seconds per FLOP of training, and what it takes beside its steps: loading, storing."""
        recipe = self.recipe
        settings: TrainSettings = recipe.align_english or recipe.train
        # Without preferences, two responses to each prompt, which are as long as the run's will be.
        sampled = [(prompt.instruction, row[0], row[-1]) for prompt, row in self.answered if row]
        pairs = self.texts.preferences or [Pair.of(*sides) for sides in sampled]
        step = settings.micro_batch_size
        one = flops(self._pairs_work(pairs, settings), self.shape, recipe) / len(pairs)
        # As many as fit, by the speed of scoring, into two steps; at least one micro-batch each.
        fitting = int(0.35 * max(BUDGET - self.seconds, 0) / max(2 * one * score, 1e-12))
        size = max(step, min(settings.batch_size, fitting // step * step))
        spread = [pairs[index * len(pairs) // (2 * size) % len(pairs)] for index in range(2 * size)]
        training = settings.model_copy(update={"batch_size": size, "epochs": 1})
        is_initial = recipe.align_english is None and settings.reference == "initial"
        reference = locate_model(recipe.models.initial or "") if is_initial else None
        stamps: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            output.mkdir()
            began = time.monotonic()
            trainer = EngineFactory(self.settings).trainer(self.model, training, reference)
            try:
                trainer.train(spread, output, Path(folder) / "checkpoints", lambda *_: stamps.append(time.monotonic()))
                publish_directory(output, Path(folder) / "policy")
            finally:
                trainer.close()
            whole = time.monotonic() - began
        per_step = (stamps[-1] - stamps[0]) / max(1, len(stamps) - 1)
        second = self._pairs_work(spread[size:], settings)
        return per_step / flops(second, self.shape, recipe), max(0.0, whole - 2 * per_step)

    def _pairs_work(self, pairs: Sequence[Pair], settings: TrainSettings) -> Work:
        tokenizer = self.tokenizer
        total = Work("train", units=len(pairs), settings=settings)
        for pair in pairs:
            sides = ((pair.chosen, pair.chosen_token_ids), (pair.rejected, pair.rejected_token_ids))
            answers = [
                len(ids if ids is not None else tokenizer.response_ids(messages[-1]["content"], True))
                for messages, ids in sides
            ]
            total = add_pair(total, len(tokenizer.chat_ids(pair.prompt, answered=True)), answers, settings)
        return total

    def _prompt_lengths(self) -> Lengths:
        """Return exact lengths of prompts."""
        template = len(self.tokenizer.prompt_ids(""))
        per_byte: dict[str, float] = {}
        for language in dict.fromkeys([ENGLISH, *self.recipe.languages]):
            asked = [prompt.instruction for prompt in self.texts.training if prompt.language == language][:200]
            tokens = sum(len(self.tokenizer.prompt_ids(instruction)) - template for instruction in asked)
            per_byte[language] = tokens / max(1, sum(map(bytes_of, asked)))
        return Lengths(template, per_byte)

    def _with_responses(self, lengths: Lengths) -> Lengths:
        """Return lengths with those of responses, by the sampled ones."""
        limit = self.recipe.sample.max_new_tokens
        sampled: dict[str, list[Response]] = {}
        for prompt, responses in self.answered:
            sampled.setdefault(prompt.language, []).extend(responses)
        response = {language: uncut_length(rows, limit) for language, rows in sampled.items() if rows}
        most = max((len(row.token_ids or []) for rows in sampled.values() for row in rows), default=0)
        longest = float(most if most < self.cap else limit)
        return replace(lengths, response=response, longest=dict.fromkeys(self.recipe.languages, longest))


def uncut_length(responses: Sequence[Response], limit: int) -> float:
    """Return how many tokens responses have on average within a limit, though some were cut off before it.

    Each token is taken to be the last one with the same chance, of which stops per sampled token is the likeliest
    value, whether or not some were cut off.
    """
    tokens = sum(len(row.token_ids or []) for row in responses)
    stop = sum(row.finish_reason == "stop" for row in responses) / max(1, tokens)
    return limit if stop == 0 else (1 - (1 - stop) ** limit) / stop


def _start_seconds(module: str) -> float:
    """Return how long a process takes to start and to import a module, which every phase does anew."""
    began = time.monotonic()
    code, _ = run_in_child([sys.executable, "-c", f"import {module}"])
    if code:
        raise RunError(f"A process that imports {module} {ending(code)}")
    return time.monotonic() - began
