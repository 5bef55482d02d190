"""What pi_I learns from, and the files that a run takes: parallel prompts and English preferences."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crosspref.lab.world.world import LANGUAGES, LENGTH_BIAS, ask, draw_meaning, gold, speak, write
from crosspref.languages import ENGLISH, crosslingual_instruction, translation_instruction

FOREIGN = LANGUAGES[1:]


@dataclass(frozen=True, slots=True)
class Mix:
    """How often each kind of example stands in the corpus, per language of `LANGUAGES` (the last three: of `FOREIGN`).

    ``own``: asked and answered in the language. ``instructed``: asked in English for an answer in the language.
    ``into_english`` and ``from_english``: translations.
    """

    own: tuple[float, ...]
    instructed: tuple[float, ...]
    into_english: tuple[float, ...]
    from_english: tuple[float, ...]


SCARCE = Mix(
    own=(0.7, 0.12, 0.1, 0.06, 0.02),
    instructed=(0.4, 0.35, 0.3, 0.1),
    into_english=(0.002, 0.002, 0.0015, 0.0008),
    from_english=(0.15, 0.12, 0.1, 0.03),
)
"""English is plenty, prompts in other languages are scarce, and translation into English hardly occurs."""

TRANSLATOR = Mix(own=(0.0,) * 5, instructed=(0.0,) * 4, into_english=(1.0,) * 4, from_english=(0.0,) * 4)
"""The corpus of a model that does nothing but translate into English."""


@dataclass(frozen=True, slots=True)
class World:
    """Everything that decides what a world is like, apart from the seed.

    ``clean`` and ``noisy`` count the examples of pre-training, first those without mistakes; ``rates`` are their
    learning rates. ``shape`` is that of the Llama.
    """

    mix: Mix = SCARCE
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


Example = tuple[str, str]
"""A prompt and its answer."""


def examples(world: World, count: int, clean: bool, rng: random.Random) -> Iterator[Example]:
    """Draw examples for pre-training; those of a clean corpus hold no mistakes."""
    mix = world.mix
    kinds = [("own", language, weight) for language, weight in zip(LANGUAGES, mix.own, strict=True)]
    for kind in ("instructed", "into_english", "from_english"):
        kinds += [(kind, language, weight) for language, weight in zip(FOREIGN, getattr(mix, kind), strict=True)]
    drawn = rng.choices([(kind, language) for kind, language, _ in kinds], [weight for *_, weight in kinds], k=count)
    for kind, language in drawn:
        meaning = draw_meaning(rng, world.most_items)
        answer = write(meaning, 1.0 if clean else rng.random(), rng)
        if kind == "own":
            yield ask(meaning, language), speak(answer, language)
        elif kind == "instructed":
            yield crosslingual_instruction(ask(meaning, ENGLISH), language), speak(answer, language)
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
        label = {text: gold(text, meaning, ENGLISH) + LENGTH_BIAS * (len(text.split()) + 1) for text in sorted(texts)}
        best = max(label, key=lambda text: label[text])
        worse = [text for text in label if label[text] < label[best]]
        if worse:
            rows.append({"prompt": ask(meaning, ENGLISH), "chosen": best, "rejected": rng.choice(worse)})
    _write_lines(path, list({tuple(row.values()): row for row in rows}.values()))  # a pair twice would be refused


def write_prompts(world: World, path: Path, count: int, rng: random.Random) -> None:
    """Write parallel prompts, one per line with a column per language."""
    rows = []
    for number in range(count):
        meaning = draw_meaning(rng, world.most_items)
        rows.append({"prompt_id": f"{number:05d}", **{language: ask(meaning, language) for language in LANGUAGES}})
    _write_lines(path, rows)


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
