"""The libraries that do the heavy work, one file each, found by name in one dictionary."""

import importlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from crosspref.engines import langid
from crosspref.errors import MissingLibraryError, RecipeError
from crosspref.models.locate import ModelFiles, is_encoder_decoder, locate_model
from crosspref.protocols import ReleasedScorer, Results, RewardModel, Sampler, Scorer, Trainer, Translator, Work
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import TrainSettings

# On a processor with bfloat16 it says in each process that imports peft that a kernel of the hub is missing.
logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)

ENGINES: dict[str, dict[str, str]] = {
    "sampler": {
        "transformers": "crosspref.engines.transformers.sampler:TransformersSampler",
        "vllm": "crosspref.engines.vllm:VllmSampler",
        "server": "crosspref.engines.server.sampler:ServerSampler",
    },
    "translator": {
        "chat": "crosspref.engines.transformers.translator:ChatTranslator",
        "seq2seq": "crosspref.engines.transformers.translator:TranslationModel",
    },
    "scorer": {
        "transformers": "crosspref.engines.transformers.scorer:TransformersScorer",
        "server": "crosspref.engines.server.scorer:ServerScorer",
        "znlp": "crosspref.engines.transformers.released_scorer:ReleasedScorer",
    },
    "client": {"server": "crosspref.engines.server.client:ServerClient"},
    "harness": {"lm_eval": "crosspref.engines.lm_eval:Harness"},
    "fit": {"liblinear": "crosspref.engines.liblinear:fit_by_cross_validation"},
    "reward_model": {"transformers": "crosspref.engines.transformers.reward_model:TransformersRewardModel"},
    "trainer": {"trl": "crosspref.engines.training.trainer:TrlTrainer"},
    "executor": {
        "local": "crosspref.engines.local:map_shards",
        "ray": "crosspref.engines.ray.executor:map_shards",
    },
    "cluster": {
        "local": "crosspref.engines.local:cluster",
        "ray": "crosspref.engines.ray.executor:cluster",
    },
    "together": {"ray": "crosspref.engines.ray.trainer:train_together"},
    "pretrainer": {"tiny_llama": "crosspref.engines.tiny_llama:pretrain"},
    "figures": {"curves": "crosspref.engines.figures:draw_curves", "dots": "crosspref.engines.figures:draw_dots"},
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
        extras = {"ray": "ray", "openai": "server", "lm_eval": "eval"}
        install = f"pip install 'crosspref[{extras[library]}]'" if library in extras else f"pip install {library}"
        raise MissingLibraryError(library, f"The {kind} {name!r}", install) from error


class RecipeEngines:
    """Builds the engines that a recipe asks for; each library is imported only when its engine is built."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def sampler(self, policy: ModelFiles, *, greedy: bool = False) -> Sampler:
        """Return a sampler that holds the policy; a greedy one takes the likeliest token, whatever the recipe says."""
        recipe = self.recipe
        settings, name = recipe.sample, recipe.sample.engine
        given: dict[str, tuple[Any, ...]] = {
            "transformers": (settings, recipe.resources, greedy),
            "vllm": (settings, recipe.resources, recipe.vllm, greedy),
            "server": (self._role(policy), settings, recipe.server, greedy),
        }
        sampler: Sampler = self._build("sampler", name, policy, *given[name])
        return sampler

    def translator(self, policy: ModelFiles) -> Translator:
        """Return the translator that the recipe names, or the policy as one."""
        settings, resources = self.recipe.translate, self.recipe.resources
        model = policy if settings.model is None else locate_model(settings.model)
        if is_encoder_decoder(model):
            translator: Translator = self._build("translator", "seq2seq", model, settings, resources)
        else:
            own = model.identity == policy.identity
            translator = self._build("translator", "chat", model, settings, resources, self.recipe.sample, own)
        return translator

    def scorer(self, policy: ModelFiles, reference: ModelFiles | None) -> Scorer:
        """Return a scorer that holds both models."""
        settings, name = self.recipe.reward, self.recipe.reward.engine
        given: dict[str, tuple[Any, ...]] = {
            "transformers": (settings, self.recipe.resources),
            "server": (self._role(policy), reference and self._role(reference), settings, self.recipe.server),
        }
        scorer: Scorer = self._build("scorer", name, policy, reference, *given[name])
        return scorer

    def released_scorer(self, policy: ModelFiles, reference: ModelFiles | None) -> ReleasedScorer:
        """Return a scorer that counts as the paper's released scripts do."""
        settings = self.recipe.reward
        scorer: ReleasedScorer = self._build("scorer", "znlp", policy, reference, settings, self.recipe.resources)
        return scorer

    def reward_model(self, model: ModelFiles) -> RewardModel:
        """Return a sequence-classification reward model."""
        found: RewardModel = self._build("reward_model", "transformers", model, self.recipe.resources)
        return found

    def trainer(self, policy: ModelFiles, settings: TrainSettings, reference: ModelFiles | None = None) -> Trainer:
        """Return a trainer that starts from the policy; without a reference the policy's start is its reference."""
        resources, seed = self.recipe.resources, self.recipe.seed
        trainer: Trainer = self._build("trainer", "trl", policy, settings, resources, seed, reference)
        return trainer

    def identifier(self, language: str) -> Callable[[str], str] | None:
        """Return what tells a text's language tag, or None if texts of this language are not recognised."""
        return langid.identify if language.partition("-")[0] in langid.known_languages() else None

    def cluster(self) -> AbstractContextManager[None]:
        """Hold what a whole run needs beside its phases."""
        held: AbstractContextManager[None] = find_engine("cluster", self.recipe.resources.executor)(self.recipe)
        return held

    def map_shards(
        self, build: Callable[[], Any], work: Work, shards: Sequence[Any], say: Callable[[str], None]
    ) -> AbstractContextManager[Results]:
        """Hold the engine that ``build`` makes, here or on each worker, to work on the shards."""
        mapped = find_engine("executor", self.recipe.resources.executor)
        held: AbstractContextManager[Results] = mapped(self.recipe, build, work, shards, say)
        return held

    def train_together(self, phase: Callable[[], None], folder: Path) -> None:
        """Run a phase that trains on all of Ray's workers at once."""
        find_engine("together", self.recipe.resources.executor)(self.recipe, phase, folder)

    def _role(self, model: ModelFiles) -> str:
        """Return what a model is in the run: pi_I, pi_0, pi_1 ..."""
        models = self.recipe.models
        return {models.policy: "pi_0", models.initial: "pi_I"}.get(model.name, model.name)

    def _build(self, kind: str, name: str, *arguments: Any) -> Any:
        return find_engine(kind, name)(*arguments, trust_remote_code=self.recipe.models.trust_remote_code)
