"""The libraries that do the heavy work, one file each, found by name in one dictionary."""

import importlib
from collections.abc import Callable
from typing import Any

from crosspref.engines import langid
from crosspref.engines.protocols import Sampler, Scorer, Trainer
from crosspref.errors import MissingLibraryError, RecipeError
from crosspref.models import ModelFiles
from crosspref.recipe import Recipe, TrainSettings

ENGINES: dict[str, dict[str, str]] = {
    "sampler": {"transformers": "crosspref.engines.transformers_sampler:TransformersSampler"},
    "scorer": {"transformers": "crosspref.engines.transformers_scorer:TransformersScorer"},
    "trainer": {"trl": "crosspref.engines.trl_trainer:TrlTrainer"},
}


def find_engine(kind: str, name: str) -> Any:
    """Import and return an engine's class.

    Raises:
        RecipeError: there is no engine of that name.
        MissingLibraryError: its library is not installed.
    """
    known = ENGINES[kind]
    if name not in known:
        raise RecipeError(f"There is no {kind} {name!r}. Known: {', '.join(known)}")
    module, _, attribute = known[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        library = error.name or name
        raise MissingLibraryError(library, f"The {kind} {name!r}", f"pip install {library}") from error


class RecipeEngines:
    """Builds the engines that a recipe asks for; each library is imported only when its engine is built."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def sampler(self, policy: ModelFiles) -> Sampler:
        """Return a sampler that holds the policy."""
        sampler: Sampler = self._build("sampler", "transformers", policy, self.recipe.sample, self.recipe.resources)
        return sampler

    def scorer(self, policy: ModelFiles, reference: ModelFiles) -> Scorer:
        """Return a scorer that holds both models."""
        scorer: Scorer = self._build(
            "scorer", "transformers", policy, reference, self.recipe.reward, self.recipe.resources
        )
        return scorer

    def trainer(self, policy: ModelFiles, settings: TrainSettings) -> Trainer:
        """Return a trainer that starts from the policy."""
        trainer: Trainer = self._build("trainer", "trl", policy, settings, self.recipe.resources, self.recipe.seed)
        return trainer

    def identifier(self, language: str) -> Callable[[str], str] | None:
        """Return what tells a text's language tag, or None if texts of this language are not recognised."""
        return langid.identify if language.partition("-")[0] in langid.known_languages() else None

    def _build(self, kind: str, name: str, *arguments: Any) -> Any:
        return find_engine(kind, name)(*arguments, trust_remote_code=self.recipe.models.trust_remote_code)
