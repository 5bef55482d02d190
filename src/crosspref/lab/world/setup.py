"""Making a world's files: pi_I, English preferences, and prompts. They are kept in the cache, by all that made them."""

import hashlib
import inspect
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from crosspref.engines import find_engine
from crosspref.lab.world import corpus, world
from crosspref.lab.world.corpus import FOREIGN, World, examples, write_preferences, write_prompts
from crosspref.lab.world.world import LANGUAGE_OF, LANGUAGES, SEPARATOR
from crosspref.languages import CROSSLINGUAL_PREFIX, TRANSLATION_PROMPT, language_name
from crosspref.models.locate import cache_directory
from crosspref.run.progress import Reporter
from crosspref.run.store import digest_of

TRAINING_PROMPTS = 800
"""How many training prompts there are to choose from."""

HELDOUT_PROMPTS = 100


@dataclass(frozen=True, slots=True)
class WorldFiles:
    """A world with one seed, on disk."""

    directory: Path

    @property
    def initial(self) -> Path:
        """pi_I."""
        return self.directory / "pi_I"

    @property
    def preferences(self) -> Path:
        """English preference pairs."""
        return self.directory / "preferences.jsonl"

    @property
    def prompts(self) -> Path:
        """Parallel training prompts."""
        return self.directory / "prompts.jsonl"

    @property
    def heldout(self) -> Path:
        """Parallel held-out prompts."""
        return self.directory / "heldout.jsonl"


def make_world(settings: World, seed: int, threads: int, reporter: Reporter) -> WorldFiles:
    """Return the files of a world; what is not in the cache yet is made.

    The numbers of a seed also depend on ``threads``: sums are rounded in another order.
    """
    engine = find_engine("pretrainer", "tiny_llama")
    made_by = {
        "settings": asdict(settings),
        "seed": seed,
        "threads": threads,
        "torch": version("torch"),
        "code": _code(corpus, world, inspect.getmodule(engine)),
    }
    directory = cache_directory() / "lab" / digest_of(made_by)

    def make(folder: Path) -> None:
        def rng(what: str) -> random.Random:
            return random.Random(f"{seed} {what}")  # noqa: S311 - not for secrets

        write_preferences(settings, folder / "preferences.jsonl", rng("preferences"))
        write_prompts(settings, folder / "prompts.jsonl", TRAINING_PROMPTS, rng("prompts"))
        write_prompts(settings, folder / "heldout.jsonl", HELDOUT_PROMPTS, rng("heldout"))
        parts = ((settings.clean, True, settings.rates[0]), (settings.noisy, False, settings.rates[1]))
        corpora = [
            (list(examples(settings, count, clean, rng(f"corpus {clean}"))), rate) for count, clean, rate in parts
        ]
        with reporter.step(f"pre-training pi_I, seed {seed}", settings.clean + settings.noisy) as meter:
            engine(
                folder / "pi_I",
                words=[SEPARATOR, *LANGUAGE_OF],
                sentences=spoken_sentences(),
                corpora=corpora,
                shape=settings.shape,
                seed=seed,
                threads=threads,
                advance=meter.advance,
            )

    _once(directory, make)
    return WorldFiles(directory)


def _once(directory: Path, make: Callable[[Path], None]) -> None:
    """Make a folder unless it is there; a kill leaves nothing half-made."""
    if directory.is_dir():
        return
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    make(temporary)
    try:
        temporary.rename(directory)
    except OSError:  # another process was first
        shutil.rmtree(temporary)


def spoken_sentences() -> list[str]:
    """Return what crosspref says around a prompt or a text; each is one token here."""
    before, behind = TRANSLATION_PROMPT.split("{text}")
    return [
        *(CROSSLINGUAL_PREFIX.format(language=language_name(language)) for language in FOREIGN),
        *(before.format(language=language_name(language)) for language in LANGUAGES),
        behind,
    ]


def _code(*modules: ModuleType | None) -> str:
    return hashlib.sha256("".join(inspect.getsource(module) for module in modules if module).encode()).hexdigest()
