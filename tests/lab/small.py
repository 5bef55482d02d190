"""A cut-down laboratory with a shipped pi_I."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import crosspref
from crosspref.lab.world.experiment import Content, lab_recipe, run
from crosspref.lab.world.files import World, WorldFiles, write_preferences, write_prompts
from crosspref.lab.world.measure import Measured, means, measure_run, without_english
from crosspref.lab.world.world import LANGUAGES, WORDS, Answer, ask, draw_meaning, speak
from crosspref.recipe.files import merged
from crosspref.run.progress import Reporter

QUIET = Reporter(Console(quiet=True))
SHIPPED = Path(__file__).parent / "pi_I"
SMALL: Content = {
    "iterations": 1,
    "prompts": {"limit": 80},
    "sample": {"n": 6},
}


@dataclass(frozen=True, slots=True)
class SmallLab:
    """A world on disk, and the run from which others take over pi_0 and the responses."""

    files: WorldFiles
    base: Path
    content: Content

    def run(self, name: str, changes: Content | None = None, *, without_scores: bool = False) -> Measured:
        """Run the base, or another run that takes over what it may from the base (``without_scores``: but scores)."""
        place = self.base.with_name(name)
        base = None if place == self.base else self.base
        if without_scores:
            base = self.base.with_name("unscored")
            shutil.copytree(self.base, base, ignore=shutil.ignore_patterns("scores"), dirs_exist_ok=True)
        content = merged(self.content, changes or {})
        return measure_run(run(content, self.files.heldout, place, QUIET, base=base), resamples=2)

    def sees_first_word(self) -> float:
        """Return how often R_c prefers the right answer to one whose first word is wrong, with the same length."""
        reward = crosspref.ImplicitReward(
            str(self.base / "iteration_0" / "policy"), str(self.files.initial), device="cpu", dtype="float32"
        )
        rng, won = random.Random(3), []
        for _ in range(60):
            meaning = draw_meaning(rng, 3)
            (item, attribute), *rest = meaning
            other = (attribute + 1 + rng.randrange(7)) % 8
            for language in LANGUAGES:
                if WORDS[language].item_first:
                    continue
                texts = [speak(Answer(((item, value), *rest), (), True), language) for value in (attribute, other)]
                right, wrong = (row.reward for row in reward.score(ask(meaning, "en"), texts, language=language))
                won.append(right > wrong)
        return sum(won) / len(won)


def make_small_lab(folder: Path) -> SmallLab:
    """Lay out the world's files and do the base run."""
    files, world = WorldFiles(folder), World(preferences=1000)
    shutil.copytree(SHIPPED, files.initial)
    write_preferences(world, files.preferences, random.Random("preferences"))
    write_prompts(world, files.prompts, 80, random.Random("prompts"))
    write_prompts(world, files.heldout, 60, random.Random("heldout"))
    lab = SmallLab(files, folder / "base", merged(lab_recipe(files, 7, threads=1), SMALL))
    lab.run("base")
    return lab


def gain(measured: Measured, measure: str) -> float:
    """Return by how much pi_1 differs from pi_0, in the mean of the languages other than English."""
    return without_english(means(measured, measure, 1)) - without_english(means(measured, measure, 0))
