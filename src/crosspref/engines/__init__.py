"""The libraries that do the heavy work: a folder or a file for each family, found by name in one dictionary.

An engine is built by ``EngineFactory`` from ``EngineSettings``, and never sees a recipe. The stages know engines by the
protocols in ``crosspref.protocols`` only; above the stages everything may import this package.
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from crosspref.engines.threads import settle_waiting
from crosspref.errors import MissingLibraryError, RecipeError
from crosspref.models.locate import ModelFiles, is_encoder_decoder, locate_model
from crosspref.protocols import Executor, RewardModel, Sampler, Scorer, Trainer, Translator
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import (
    AskingSettings,
    RaySettings,
    ResourceSettings,
    RewardSettings,
    SampleSettings,
    ServerSettings,
    TrainSettings,
    TranslateSettings,
    VllmSettings,
)
from crosspref.recipe.stages import StageSettings

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
        "znlp": "crosspref.engines.transformers.scorer:ReleasedScorer",
    },
    "identifier": {"py3langid": "crosspref.engines.langid:identifier"},
    "client": {"server": "crosspref.engines.server.client:ServerClient"},
    "harness": {"lm_eval": "crosspref.engines.lm_eval:Harness"},
    "fit": {"liblinear": "crosspref.engines.liblinear:fit_by_cross_validation"},
    "reward_model": {"transformers": "crosspref.engines.transformers.reward_model:TransformersRewardModel"},
    "trainer": {"trl": "crosspref.engines.training.trainer:TrlTrainer"},
    "executor": {
        "local": "crosspref.engines.local:LocalExecutor",
        "ray": "crosspref.engines.ray.executor:RayExecutor",
    },
    "pretrainer": {"tiny_llama": "crosspref.engines.tiny_llama:pretrain"},
    "examination": {"transformers": "crosspref.engines.examination:Examination"},
    "figures": {"curves": "crosspref.engines.figures:draw_curves", "dots": "crosspref.engines.figures:draw_dots"},
}
EXTRAS = {
    "bitsandbytes": "qlora",
    "gguf": "gguf",
    "lm_eval": "eval",
    "matplotlib": "lab",
    "openai": "server",
    "ray": "ray",
    "sentencepiece": "translation",
    "sklearn": "eval",
    "vllm": "vllm",
}
"""Which of crosspref's extras installs a library."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What engines read: sections of a recipe, each with its defaults.

    ``roles`` says what models are in a run, by their names: pi_I, pi_0 ... By these a server knows them.
    """

    sample: SampleSettings = field(default_factory=SampleSettings)
    translate: TranslateSettings = field(default_factory=TranslateSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    vllm: VllmSettings = field(default_factory=VllmSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    seed: int = 42
    asking: AskingSettings = field(default_factory=AskingSettings)
    roles: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Recipe | StageSettings, **models: str | None) -> "EngineSettings":
        """Return the settings of a recipe, or of a stage that runs alone with ``models``, by their roles."""
        if isinstance(settings, Recipe):
            models = {"pi_I": settings.models.initial, "pi_0": settings.models.policy}
        sections = {part.name: getattr(settings, part.name) for part in fields(cls) if hasattr(settings, part.name)}
        roles = {name: role for role, name in models.items() if name is not None}
        return cls(**sections, asking=settings.models, roles=roles)

    @property
    def trust_remote_code(self) -> bool:
        """Whether Python code that comes with a model may run."""
        return self.asking.trust_remote_code

    def role(self, model: ModelFiles) -> str:
        """Return what a model is in the run; a policy that the run trained has its role as its name."""
        return self.roles.get(model.name, model.name)


def missing_library(library: str, purpose: str) -> MissingLibraryError:
    """Return the error that says how to install an optional library."""
    package = f"'crosspref[{EXTRAS[library]}]'" if library in EXTRAS else library
    return MissingLibraryError(library, purpose, f"pip install {package}")


def require_library(library: str, purpose: str) -> None:
    """Raise MissingLibraryError unless a library is installed; it is not imported."""
    if importlib.util.find_spec(library) is None:
        raise missing_library(library, purpose)


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
        raise missing_library(error.name or name, f"The {kind} {name!r}") from error


class EngineFactory:
    """Builds engines; see ``protocols.Engines``. Each library is imported only when its engine is built.

    The class of an engine takes the settings first, then its models, then what only engines of its kind have.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings

    def sampler(self, policy: ModelFiles, *, greedy: bool = False) -> Sampler:
        """Return a sampler that holds the policy; a greedy one takes the likeliest token, whatever the recipe says."""
        sampler: Sampler = self._build("sampler", self.settings.sample.engine, policy, greedy=greedy)
        return sampler

    def translator(self, policy: ModelFiles) -> Translator:
        """Return the translator that the recipe names, or the policy as one."""
        name = self.settings.translate.model
        model = policy if name is None else locate_model(name)
        if is_encoder_decoder(model):
            translator: Translator = self._build("translator", "seq2seq", model)
        else:
            is_policy = model.identity == policy.identity
            translator = self._build("translator", "chat", model, is_policy=is_policy)
        return translator

    def scorer(self, policy: ModelFiles, reference: ModelFiles | None) -> Scorer:
        """Return a scorer that holds both models; a ReleasedScorer where ``reward.counting`` is znlp."""
        reward = self.settings.reward
        name = "znlp" if reward.counting == "znlp" else reward.engine
        scorer: Scorer = self._build("scorer", name, policy, reference)
        return scorer

    def reward_model(self, model: ModelFiles) -> RewardModel:
        """Return a sequence-classification reward model."""
        reward_model: RewardModel = self._build("reward_model", "transformers", model)
        return reward_model

    def trainer(self, policy: ModelFiles, training: TrainSettings, reference: ModelFiles | None = None) -> Trainer:
        """Return a trainer that starts from the policy; without a reference the policy's start is its reference."""
        trainer: Trainer = self._build("trainer", "trl", policy, reference, training=training)
        return trainer

    def identifier(self, language: str) -> Callable[[str], str] | None:
        """Return what tells a text's language tag, or None if texts of this language are not recognised."""
        identify: Callable[[str], str] | None = find_engine("identifier", "py3langid")(language)
        return identify

    def executor(self) -> Executor:
        """Return what works on shards: this process, or Ray's workers."""
        executor: Executor = self._build("executor", self.settings.resources.executor)
        return executor

    def _build(self, kind: str, name: str, *models: ModelFiles | None, **options: Any) -> Any:
        if models:  # whose engine brings torch
            settle_waiting(self.settings.resources.threads)
        return find_engine(kind, name)(self.settings, *models, **options)
