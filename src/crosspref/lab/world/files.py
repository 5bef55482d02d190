"""A world's files: pi_I and the corpus that it learns from, English preferences, and parallel prompts.

They are kept in the cache, under the hash of everything that determines them.
"""

import hashlib
import inspect
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from crosspref.engines import find_engine
from crosspref.lab.world.world import LANGUAGE_OF, LANGUAGES, SEPARATOR, ask, draw_meaning, gold, speak, write
from crosspref.languages import (
    ENGLISH,
    TRANSLATION_PROMPT,
    crosslingual_prefix,
    language_name,
    translation_instruction,
)
from crosspref.models.locate import cache_directory
from crosspref.run.progress import Reporter
from crosspref.run.store import digest_of

FOREIGN = LANGUAGES[1:]
LENGTH_BIAS = 0.04
"""What the annotator of the English preferences adds per token: the labels are not pure gold."""

TRAINING_PROMPTS = 800
HELDOUT_PROMPTS = 100


Mix = dict[str, tuple[float, ...]]
"""The weight of each kind of example in the corpus, per language of `LANGUAGES`, without English where there are four.

``native``: asked and answered in the language. ``instructed``: asked in English for an answer in the language.
``into_english`` and ``from_english``: translations.
"""

SCARCE: Mix = {
    "native": (0.7, 0.12, 0.1, 0.06, 0.02),
    "instructed": (0.4, 0.35, 0.3, 0.1),
    "into_english": (0.002, 0.002, 0.0015, 0.0008),
    "from_english": (0.15, 0.12, 0.1, 0.03),
}
"""English is plentiful, prompts in other languages are scarce, and translation into English hardly occurs."""

TRANSLATOR: Mix = {"into_english": (1.0,) * 4}
"""The corpus of a model that only translates into English."""


@dataclass(frozen=True, slots=True)
class World:
    """Everything that determines a world, apart from the seed.

    ``clean`` and ``noisy`` count the pre-training examples: first those without mistakes, then those with them;
    ``rates`` are their learning rates. ``shape`` is that of the Llama.
    """

    mix: Mix = field(default_factory=lambda: SCARCE)
    most_items: int = 3
    clean: int = 8_000
    noisy: int = 24_000
    rates: tuple[float, float] = (0.02, 0.01)
    preferences: int = 1_500
    candidates: int = 4
    shape: dict[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
        }
    )


class WorldFiles:
    """Where a world's files are: pi_I, English preferences, and parallel prompts for training and held out."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.initial = directory, directory / "pi_I"
        self.preferences = directory / "preferences.jsonl"
        self.prompts, self.heldout = directory / "prompts.jsonl", directory / "heldout.jsonl"


def make_world(settings: World, seed: int, threads: int, reporter: Reporter) -> WorldFiles:
    """Return the files of a world, and make them unless they are in the cache.

    The numbers also depend on ``threads``, because sums are rounded in another order. The cache's key therefore holds
    the threads, torch's version, the sentences of crosspref that pi_I learns, and the code that makes the files.
    """
    pretrain = find_engine("pretrainer", "tiny_llama")
    modules = [inspect.getmodule(function) for function in (make_world, gold, pretrain)]
    code = "".join(inspect.getsource(module) for module in modules if module)
    key = {
        "settings": asdict(settings),
        "seed": seed,
        "threads": threads,
        "torch": version("torch"),
        "sentences": spoken_sentences(),
        "code": hashlib.sha256(code.encode()).hexdigest(),
    }

    def rng(what: str) -> random.Random:
        return random.Random(f"{seed} {what}")  # noqa: S311 - not for secrets

    def make(files: WorldFiles) -> None:
        write_preferences(settings, files.preferences, rng("preferences"))
        write_prompts(settings, files.prompts, TRAINING_PROMPTS, rng("prompts"))
        write_prompts(settings, files.heldout, HELDOUT_PROMPTS, rng("heldout"))
        clean_rate, noisy_rate = settings.rates
        parts = ((settings.clean, True, clean_rate), (settings.noisy, False, noisy_rate))
        corpora = [(list(examples(settings, size, clean, rng(f"corpus {clean}"))), rate) for size, clean, rate in parts]
        with reporter.step(f"pre-training pi_I, seed {seed}", settings.clean + settings.noisy) as meter:
            pretrain(
                files.initial,
                words=[SEPARATOR, *LANGUAGE_OF],
                sentences=spoken_sentences(),
                corpora=corpora,
                shape=settings.shape,
                seed=seed,
                threads=threads,
                advance=meter.advance,
            )

    files = WorldFiles(cache_directory() / "lab" / digest_of(key))
    if not files.directory.is_dir():
        _make_once(files.directory, make)
    return files


def _make_once(directory: Path, make: Callable[[WorldFiles], None]) -> None:
    """Make the files beside their place and then rename, so that a kill leaves nothing half made."""
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    make(WorldFiles(temporary))
    try:
        temporary.rename(directory)
    except OSError:  # another process was first
        shutil.rmtree(temporary)


def examples(world: World, size: int, clean: bool, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Draw prompts and their answers for pre-training; ``clean`` ones have no mistakes."""
    kinds = [(kind, language) for kind, row in world.mix.items() for language in LANGUAGES[-len(row) :]]
    weights = [weight for row in world.mix.values() for weight in row]
    for kind, language in rng.choices(kinds, weights, k=size):
        meaning = draw_meaning(rng, world.most_items)
        answer = write(meaning, 1.0 if clean else rng.random(), rng)
        if kind == "native":
            yield ask(meaning, language), speak(answer, language)
        elif kind == "instructed":
            yield crosslingual_prefix(language) + ask(meaning, ENGLISH), speak(answer, language)
        elif kind == "into_english":
            yield translation_instruction(speak(answer, language), ENGLISH), speak(answer, ENGLISH)
        else:
            yield translation_instruction(speak(answer, ENGLISH), language), speak(answer, language)


def write_preferences(world: World, path: Path, rng: random.Random) -> None:
    """Write English pairs: the best of a few answers against a worse one, by gold and a bias for length."""
    rows = []
    for _ in range(world.preferences):
        meaning = draw_meaning(rng, world.most_items)
        texts = {speak(write(meaning, rng.random(), rng), ENGLISH) for _ in range(world.candidates)}
        worth = {text: gold(text, meaning, ENGLISH) + LENGTH_BIAS * (len(text.split()) + 1) for text in sorted(texts)}
        best = max(worth, key=lambda text: worth[text])
        worse = [text for text in worth if worth[text] < worth[best]]
        if worse:
            rows.append({"prompt": ask(meaning, ENGLISH), "chosen": best, "rejected": rng.choice(worse)})
    _write_lines(path, list({tuple(row.values()): row for row in rows}.values()))  # duplicates would be refused


def write_prompts(world: World, path: Path, count: int, rng: random.Random) -> None:
    """Write parallel prompts, one per line with a column per language."""
    rows = []
    for number in range(count):
        meaning = draw_meaning(rng, world.most_items)
        rows.append({"prompt_id": f"{number:05d}", **{language: ask(meaning, language) for language in LANGUAGES}})
    _write_lines(path, rows)


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def spoken_sentences() -> list[str]:
    """Return what crosspref says around a prompt or a text; each sentence is one token of the lab's models."""
    before, behind = TRANSLATION_PROMPT.split("{text}")
    return [
        *(crosslingual_prefix(language) for language in FOREIGN),
        *(before.format(language=language_name(language)) for language in LANGUAGES),
        behind,
    ]
