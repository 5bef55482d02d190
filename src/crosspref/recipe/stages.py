"""The settings of a stage that runs alone on files: only those sections of a recipe that the stage reads."""

from pydantic import Field, field_validator

from crosspref.recipe.schema import Languages, require_scoring_protocol
from crosspref.recipe.sections import (
    AskingSettings,
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


class StageSettings(Settings):
    """The settings that all stages have."""

    models: AskingSettings = Field(AskingSettings(), description="How models are loaded and asked.")
    languages: Languages = Field(description="Language tags, for example [en, es, fr].")
    seed: Seed = Field(42, description="Seed of all random numbers.")
    resources: ResourceSettings = Field(ResourceSettings(), description="Where and how the stage is executed.")


class SampleStage(StageSettings):
    """``crosspref sample``."""

    prompts: PromptSettings = Field(description="The prompts.")
    sample: SampleSettings = Field(SampleSettings(), description="Sampling responses (Eq. 7).")
    vllm: VllmSettings = Field(VllmSettings(), description="vLLM, for `sample.engine: vllm`.")
    server: ServerSettings = Field(ServerSettings(), description="A model server, for `sample.engine: server`.")


class TranslateStage(StageSettings):
    """``crosspref translate``."""

    sample: SampleSettings = Field(SampleSettings(), description="The batch size of translations.")
    translate: TranslateSettings = Field(TranslateSettings(), description="Translating responses (Eq. 14).")


class SelectStage(StageSettings):
    """``crosspref select``."""

    prompts: PromptSettings = Field(description="The prompts.")
    reward: RewardSettings = Field(RewardSettings(), description="The reward (Eq. 8, 9, 12, 13).")
    length_penalty: LengthPenaltySettings = Field(LengthPenaltySettings(), description="The length penalty (Eq. 15).")
    select: SelectSettings = Field(SelectSettings(), description="Selecting pairs (Eq. 10).")


class ScoreStage(SelectStage):
    """``crosspref score``. Only its option ``--compare`` selects pairs."""

    server: ServerSettings = Field(ServerSettings(), description="A model server, for `reward.engine: server`.")

    _can_score = field_validator("server")(require_scoring_protocol)


class TrainStage(StageSettings):
    """``crosspref train``."""

    train: TrainSettings = Field(TrainSettings(), description="Training (Eq. 11, 16).")


class EvaluateStage(StageSettings):
    """``crosspref evaluate`` on files."""

    reward: RewardSettings = Field(RewardSettings(), description="The algorithm of the scores.")
    evaluate: EvaluateSettings = Field(EvaluateSettings(), description="Evaluating on files.")
