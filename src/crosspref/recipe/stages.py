"""The sections that a stage takes when it runs alone, on files: those of a recipe that it reads, and no others."""

from pydantic import Field, field_validator

from crosspref.recipe.schema import require_known_languages, require_scoring_protocol
from crosspref.recipe.sections import (
    EvaluateSettings,
    LengthPenaltySettings,
    PromptSettings,
    ResourceSettings,
    RewardSettings,
    SampleSettings,
    Seed,
    SelectSettings,
    ServerSettings,
    Settings,
    TrainSettings,
    TranslateSettings,
    VllmSettings,
)


class StageModels(Settings):
    """Options name the models; this says how they are loaded."""

    trust_remote_code: bool = Field(False, description="Run Python code that comes with a model. Ask for it by name.")


class StageSettings(Settings):
    """What every stage takes."""

    models: StageModels = Field(StageModels(), description="How models are loaded.")
    languages: list[str] = Field(description="Language tags, for example [en, es, fr].", min_length=1)
    seed: Seed = Field(42, description="All random numbers derive from it.")
    resources: ResourceSettings = Field(ResourceSettings(), description="Where and how it runs.")

    _known_languages = field_validator("languages")(require_known_languages)


class SampleStage(StageSettings):
    """``crosspref sample``."""

    prompts: PromptSettings = Field(description="The prompts.")
    sample: SampleSettings = Field(SampleSettings(), description="Eq. 7.")
    vllm: VllmSettings = Field(VllmSettings(), description="vLLM, for sample.engine vllm.")
    server: ServerSettings = Field(ServerSettings(), description="A model server, for sample.engine server.")


class TranslateStage(StageSettings):
    """``crosspref translate``."""

    sample: SampleSettings = Field(SampleSettings(), description="How many translations are made side by side.")
    translate: TranslateSettings = Field(TranslateSettings(), description="Eq. 14.")


class SelectStage(StageSettings):
    """``crosspref select``."""

    prompts: PromptSettings = Field(description="The prompts.")
    reward: RewardSettings = Field(RewardSettings(), description="Eq. 8, 9, 12, 13.")
    length_penalty: LengthPenaltySettings = Field(LengthPenaltySettings(), description="Eq. 15.")
    select: SelectSettings = Field(SelectSettings(), description="Eq. 10.")


class ScoreStage(SelectStage):
    """``crosspref score``; how pairs are made counts for its option ``--compare`` alone."""

    server: ServerSettings = Field(ServerSettings(), description="A model server, for reward.engine server.")

    _can_score = field_validator("server")(require_scoring_protocol)


class TrainStage(StageSettings):
    """``crosspref train``."""

    train: TrainSettings = Field(TrainSettings(), description="Eq. 11, 16.")


class EvaluateStage(StageSettings):
    """``crosspref evaluate`` on files."""

    reward: RewardSettings = Field(RewardSettings(), description="By which algorithm the scores were made.")
    evaluate: EvaluateSettings = Field(EvaluateSettings(), description="What is measured.")
