"""A recipe: all settings of one run of Algorithm 1, and the rules between its sections.

Only the models, the languages and the prompts are required. ``sections`` has the settings, and ``files`` reads recipes
from YAML.
"""

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from crosspref.errors import DataError
from crosspref.languages import ENGLISH, LANGUAGES, as_tag, is_language, language_name
from crosspref.recipe.sections import (
    REFERENCE_FREE,
    AlignEnglishSettings,
    EvaluateSettings,
    LanguageImbalanceSettings,
    LengthPenaltySettings,
    ModelSettings,
    PromptSettings,
    RaySettings,
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


def _check_languages(languages: list[str]) -> list[str]:
    """Return the languages in the spelling of tags; refuse unknown and repeated ones."""
    languages = [as_tag(language) for language in languages]
    faults, named = [], dict[str, str]()
    for language in dict.fromkeys(languages):
        try:
            name = language_name(language)
        except DataError as error:
            faults.append(str(error))
        else:
            other = named.setdefault(name, language)
            if other != language:
                faults.append(f"{other!r} and {language!r} are both {name} in the instruction; list one")
        if languages.count(language) > 1:
            faults.append(f"{language!r} is listed more than once")
    if not all(map(is_language, languages)):
        faults.append(f"known languages: {', '.join(sorted(LANGUAGES))}")
    if faults:
        raise ValueError("; ".join(faults))
    return languages


Languages = Annotated[list[str], Field(min_length=1, max_length=1000), AfterValidator(_check_languages)]


def require_scoring_protocol(server: ServerSettings, info: ValidationInfo) -> ServerSettings:
    """Refuse a protocol that cannot score where the server has to; a validator."""
    reward = info.data.get("reward")
    if reward is not None and reward.engine == "server" and server.protocol == "chat":
        raise ValueError(
            "protocol chat returns no log-probabilities of given token ids, and contradicts reward.engine server"
        )
    return server


class Recipe(Settings):
    """One run of Algorithm 1."""

    models: ModelSettings = Field(description="The models.")
    languages: Languages = Field(description="Tags of the languages to align, for example [en, es, fr].")
    prompts: PromptSettings = Field(description="The training prompts.")
    iterations: Annotated[int, Field(ge=0, le=1000)] = Field(
        2, description="Iterations of sample, score, select and train (T). With 0, only make and evaluate pi_0."
    )
    seed: Seed = Field(42, description="Seed of all random numbers.")
    align_english: AlignEnglishSettings | None = Field(None, description="Stage 0: make pi_0, if there is none.")
    language_imbalance: LanguageImbalanceSettings | None = Field(
        None,
        description="Make pairs by Language Imbalance Driven Rewarding (A.5) instead of a reward: {} is enough.",
    )
    sample: SampleSettings = Field(SampleSettings(), description="Sampling responses (Eq. 7).")
    translate: TranslateSettings = Field(TranslateSettings(), description="Translating responses (Eq. 14, A.5).")
    reward: RewardSettings = Field(RewardSettings(), description="The reward (Eq. 8, 9, 12, 13).")
    length_penalty: LengthPenaltySettings = Field(LengthPenaltySettings(), description="The length penalty (Eq. 15).")
    select: SelectSettings = Field(SelectSettings(), description="Selecting pairs (Eq. 10).")
    train: TrainSettings = Field(TrainSettings(), description="Training (Eq. 11, 16).")
    evaluate: EvaluateSettings = Field(EvaluateSettings(), description="Evaluating on held-out prompts.")
    resources: ResourceSettings = Field(ResourceSettings(), description="Where and how the run is executed.")
    vllm: VllmSettings = Field(VllmSettings(), description="vLLM, for `sample.engine: vllm`.")
    server: ServerSettings = Field(ServerSettings(), description="A model server, for the engine `server`.")
    ray: RaySettings = Field(RaySettings(), description="Ray, for `resources.executor: ray`.")

    @property
    def held_out(self) -> PromptSettings | None:
        """How the held-out prompts are read: as the training prompts are, but from ``evaluate.prompts``."""
        if self.evaluate.prompts is None:
            return None
        return self.prompts.model_copy(update={"source": self.evaluate.prompts, "limit": self.evaluate.limit})

    @property
    def model_names(self) -> dict[str, str]:
        """The models that a run reads, by role."""
        names = {"initial": self.models.initial, "policy": self.models.policy}
        if self.needs_translations:
            names["translator"] = self.translate.model
        if "reward_model" in self.reward.names:
            names["reward model"] = self.reward.reward_model
        return {role: name for role, name in names.items() if name is not None}

    @property
    def needs_translations(self) -> bool:
        """Whether the responses are translated, for R_t or for language imbalance."""
        return self.language_imbalance is not None or "translated" in self.reward.names

    @property
    def has_implicit_reward(self) -> bool:
        """Whether the models have an implicit reward. Without pi_I, only reference-free algorithms do."""
        return self.models.initial is not None or self.reward.algorithm in REFERENCE_FREE

    @field_validator("align_english")
    @classmethod
    def _one_way_to_pi_0(
        cls, align_english: AlignEnglishSettings | None, info: ValidationInfo
    ) -> AlignEnglishSettings | None:
        models = info.data.get("models")
        if models is not None and models.policy is None and align_english is None:
            raise ValueError(
                "there is no English-aligned model: set models.policy (pi_0), or align_english.preferences to make one"
            )
        if models is not None and models.initial is None and align_english is not None:
            raise ValueError("makes pi_0 from pi_I: set models.initial")
        if models is not None and models.policy is not None and align_english is not None:
            raise ValueError("models.policy and align_english contradict each other: set only one of them")
        return align_english

    @field_validator("reward")
    @classmethod
    def _reward_fits_the_models(cls, reward: RewardSettings, info: ValidationInfo) -> RewardSettings:
        models, stage_0 = info.data.get("models"), info.data.get("align_english")
        if models is None or "align_english" not in info.data:
            return reward
        algorithm = reward.algorithm
        is_needed = info.data.get("language_imbalance") is None  # language imbalance makes pairs without a reward
        if is_needed and algorithm not in REFERENCE_FREE and models.initial is None:
            raise ValueError(
                f"algorithm {algorithm} compares the policy with the model it was aligned from: set models.initial"
            )
        if stage_0 is not None and stage_0.method != algorithm:
            raise ValueError(
                f"algorithm {algorithm} contradicts align_english.method {stage_0.method}: make them equal"
            )
        if stage_0 is None and algorithm in REFERENCE_FREE and models.initial is not None:
            raise ValueError(
                f"algorithm {algorithm} has no reference, and contradicts models.initial: leave models.initial out, or "
                "name the algorithm that aligned the policy from it"
            )
        return reward

    @field_validator("resources")
    @classmethod
    def _shards_hold_whole_batches(cls, resources: ResourceSettings, info: ValidationInfo) -> ResourceSettings:
        reward = info.data.get("reward")
        if reward is not None and reward.counting == "znlp" and resources.shard_prompts % 3:
            raise ValueError(
                "shard_prompts must be a multiple of 3 with reward.counting znlp, which scores batches of 3 prompts, "
                f"but it is {resources.shard_prompts}"
            )
        return resources

    @field_validator("language_imbalance")
    @classmethod
    def _has_a_language_to_translate(
        cls, settings: LanguageImbalanceSettings | None, info: ValidationInfo
    ) -> LanguageImbalanceSettings | None:
        languages = info.data.get("languages", [])
        if settings is not None and (ENGLISH not in languages or len(languages) < 2):
            raise ValueError(f"needs {ENGLISH} and at least one other language, but languages is {languages}")
        return settings

    @field_validator("train")
    @classmethod
    def _training_reference_is_given(cls, train: TrainSettings, info: ValidationInfo) -> TrainSettings:
        models = info.data.get("models")
        if models is not None and models.initial is None and train.reference == "initial":
            raise ValueError("reference initial is pi_I: set models.initial")
        stage_0 = info.data.get("align_english")
        before, lora = stage_0.lora if stage_0 else None, train.lora
        if before and lora and before.save == lora.save == "adapter":
            differing = [
                name for name in ("rank", "alpha", "target_modules") if getattr(before, name) != getattr(lora, name)
            ]
            if differing:
                raise ValueError(
                    f"lora.save adapter continues to train pi_0's adapter, but align_english.lora has a different "
                    f"{' and '.join(differing)}: make them equal, or save one of the two merged"
                )
        return train

    _can_score = field_validator("server")(require_scoring_protocol)

    @field_validator("server")
    @classmethod
    def _tells_lengths(cls, server: ServerSettings, info: ValidationInfo) -> ServerSettings:
        sample, reward, penalty = (info.data.get(name) for name in ("sample", "reward", "length_penalty"))
        if sample is None or reward is None or penalty is None or info.data.get("language_imbalance") is not None:
            return server
        others = [name for name in reward.names if name in ("translated", "reward_model")]
        if others and sample.engine == "server" and server.protocol == "chat" and penalty.unit == "tokens":
            raise ValueError(
                f"protocol chat returns no token ids, and the reward {others[0]} does not count the tokens of a "
                "response: set length_penalty.unit to characters"
            )
        return server
