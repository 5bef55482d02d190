"""The sections of a recipe: every setting with its default and what it does.

They are frozen models that check and never change a value. What two sections say of each other is checked in
``recipe``. Nothing here imports torch.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What numpy takes as a seed; it seeds the shuffling of pairs and the bootstrap."""

RewardName = Literal["crosslingual", "multilingual", "translated", "reward_model"]
"""``crosslingual``: R_c, given the parallel English instruction (Eq. 9). ``multilingual``: R_m, given the prompt as it
was asked (Eq. 12). ``translated``: R_t, of the response's English translation (Eq. 13, 14). ``reward_model``: R_n, what
a sequence-classification model says of prompt and response (section 4.2)."""

Method = Literal["dpo", "kto", "ipo", "simpo", "orpo"]
"""A direct alignment algorithm: it names a training loss, and the formula of the reward that such training leaves."""

REFERENCE_FREE: frozenset[Method] = frozenset({"simpo", "orpo"})
"""The algorithms that have no reference model, in the loss and in the reward."""


class Settings(BaseModel):
    """Base of all sections: frozen, strict, and closed to unknown keys.

    What contradicts is checked at the later of the two fields and not on the whole model: pydantic skips a model's
    check when any field is wrong, and then a person would meet one fault after the other. Hence ``validate_default``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


def _used(reference: Any, default: Any, method: Method | None) -> Any:
    """Refuse a reference that was chosen, by differing from the default, for a method that has none."""
    if method in REFERENCE_FREE and reference != default:
        raise ValueError(f"{reference!r} contradicts {method}, which has no reference")
    return reference


class ModelSettings(Settings):
    """The two models of Algorithm 1.

    Each is a local directory, a hub id (``owner/name`` or ``owner/name@revision``), or a file inside an installed
    package (``package:NAME/path``).
    """

    initial: str | None = Field(
        None,
        description="pi_I: the model before preference alignment, the reference of the reward. Leave it out only for a "
        "reward that has no reference (simpo, orpo).",
    )
    policy: str | None = Field(
        None, description="pi_0: the English-aligned model. Leave out to make it from pi_I with `align_english`."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with a model. Ask for it by name.")


class PromptSettings(Settings):
    """Parallel prompts: a file, a folder with one file per language, ``package:NAME/path`` or a hub dataset id."""

    source: str = Field(description="Where the parallel prompts are.")
    on_problem: Literal["stop", "drop"] = Field(
        "stop",
        description="What a missing translation, double id or empty text does: stop the run, or drop the prompt.",
    )
    limit: Positive | None = Field(None, description="Use only the first so many prompts.")
    id_column: str | None = Field(None, description="Name of the id column, if it is not found by itself.")
    text_column: str | None = Field(None, description="Name of the text column, if it is not found by itself.")
    language_column: str | None = Field(None, description="Name of the language column, if it is not found by itself.")


class SampleSettings(Settings):
    """Sampling responses (Eq. 7)."""

    engine: Literal["transformers", "vllm", "server"] = Field(
        "transformers", description="What samples; vllm and server have a section of their own."
    )
    n: Annotated[int, Field(ge=2)] = Field(10, description="Responses per prompt and language (N).")
    temperature: Annotated[float, Field(gt=0)] = Field(0.9, description="Sampling temperature.")
    top_p: Probability = Field(1.0, description="Nucleus: sample from the fewest tokens that have this probability.")
    max_prompt_tokens: Positive = Field(4096, description="A prompt of more tokens gets no responses, and is dropped.")
    max_new_tokens: Positive = Field(1024, description="A response is cut after so many tokens.")
    batch_size: Positive = Field(32, description="Responses that are sampled side by side, at most.")
    batch_tokens: Positive = Field(32768, description="Prompt and response tokens side by side; it bounds the memory.")


class TranslateSettings(Settings):
    """Translating responses, greedily: for R_t (Eq. 14), and for language imbalance driven rewarding (A.5)."""

    model: str | None = Field(
        None,
        description="Who translates: a chat model or a translation model (encoder-decoder). The policy if left out.",
    )
    codes: dict[str, str] = Field(
        {}, description="A translation model's own codes for languages, where they are not the tags: {es: spa_Latn}."
    )
    max_new_tokens: Positive = Field(1024, description="A translation is cut after so many tokens.")
    truncated: Literal["drop", "keep"] = Field("drop", description="Whether a translation that was cut is a failure.")


class RewardSettings(Settings):
    """The reward of a response, before its length penalty (Eq. 9, 12, 13, 17)."""

    engine: Literal["transformers", "server"] = Field(
        "transformers", description="What computes log-probabilities, of the policy and of its reference alike."
    )
    name: RewardName = Field("crosslingual", description="The reward to select by: R_c, R_m, R_t or R_n.")
    also: list[RewardName] = Field(
        [], description="Further rewards of the same responses, to compare with: they cost no sampling."
    )
    algorithm: Method = Field(
        "dpo",
        description="By which algorithm the policy was aligned in English. It decides the formula of R_c, R_m and R_t.",
    )
    reference: Literal["initial", "previous"] = Field(
        "initial",
        description="The reward's reference: pi_I, or the policy before the one that scores (Table 6's ablation).",
    )
    beta: Annotated[float, Field(gt=0)] = Field(
        0.1, description="The beta with which the policy was aligned; kto and orpo rewards have none."
    )
    counting: Literal["exact", "znlp"] = Field(
        "exact",
        description="Which tokens count: every response token once, or what the paper's released scripts count.",
    )
    end_of_turn: Literal["if_stopped", "never"] = Field(
        "if_stopped", description="Whether the end-of-turn token counts: only when the response really ended, or never."
    )
    reward_model: str | None = Field(None, description="The sequence-classification model of R_n.")
    batch_tokens: Positive = Field(16384, description="Prompt and response tokens side by side; it bounds the memory.")
    logits_megabytes: Positive = Field(128, description="Upper bound of the memory that float32 logits take.")

    @property
    def names(self) -> list[RewardName]:
        """Every reward to compute; the first one selects."""
        return [self.name, *self.also]

    @field_validator("also")
    @classmethod
    def _each_once(cls, also: list[RewardName], info: ValidationInfo) -> list[RewardName]:
        name = info.data.get("name")
        if len({name, *also}) <= len(also):
            raise ValueError(f"names a reward twice, or the one of reward.name ({name})")
        return also

    @field_validator("reference")
    @classmethod
    def _reference_is_used(cls, reference: str, info: ValidationInfo) -> Any:
        return _used(reference, "initial", info.data.get("algorithm"))

    @field_validator("counting")
    @classmethod
    def _was_released(cls, counting: str, info: ValidationInfo) -> str:
        if counting == "znlp":
            algorithm, names = info.data.get("algorithm"), [info.data.get("name"), *info.data.get("also", [])]
            if algorithm in REFERENCE_FREE or algorithm == "ipo":
                raise ValueError(f"znlp sums log-ratios, and contradicts algorithm {algorithm}")
            if "translated" in names:
                raise ValueError("znlp is not defined for the reward translated: take exact, or another reward")
        return counting

    @field_validator("reward_model")
    @classmethod
    def _reward_model_is_used(cls, reward_model: str | None, info: ValidationInfo) -> str | None:
        asked = "reward_model" in [info.data.get("name"), *info.data.get("also", [])]
        if asked and reward_model is None:
            raise ValueError("is missing, but the reward reward_model is asked for: name the model")
        if reward_model is not None and not asked:
            raise ValueError("names a model, but reward_model is neither reward.name nor in reward.also")
        return reward_model


class LengthPenaltySettings(Settings):
    """The penalty alpha * length (Eq. 9, 15)."""

    mode: Literal["optimal", "grid", "fixed", "none"] = Field(
        "optimal",
        description="optimal: solved exactly per language (Eq. 15). grid: the best of 0, 0.001 ... 0.999, as the "
        "paper's released scripts do. fixed: `alpha` is used. none: no penalty.",
    )
    alpha: float | None = Field(None, description="The penalty per unit of length, for mode fixed.")
    unit: Literal["characters", "tokens"] = Field("characters", description="In what length is counted.")

    @field_validator("alpha")
    @classmethod
    def _belongs_to_fixed(cls, alpha: float | None, info: ValidationInfo) -> float | None:
        mode = info.data.get("mode")
        if mode is not None and (mode == "fixed") != (alpha is not None):
            raise ValueError(f"alpha goes with mode fixed: mode is {mode!r} and alpha is {alpha!r}")
        return alpha


class SelectSettings(Settings):
    """Making pairs (Eq. 10)."""

    truncated: Literal["drop", "keep"] = Field("drop", description="What becomes of responses cut at the token limit.")
    wrong_language: Literal["drop", "keep"] = Field("keep", description="What becomes of responses in other languages.")
    degenerate: Literal["drop", "keep"] = Field(
        "drop",
        description="What becomes of empty and repeated responses, and of prompts whose best and worst response are "
        "the same. The paper's released scripts keep them.",
    )
    min_gap: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="A pair needs a reward gap above this, unless `degenerate` is keep. Left out: what 0.5 nats are "
        "worth, by which bfloat16 scores were measured to differ (dpo 0.5 beta, kto 0.5), and 0 for other rewards.",
    )


class LanguageImbalanceSettings(Settings):
    """Language Imbalance Driven Rewarding (A.5): pairs of a greedy answer and a translation, without a reward."""

    translation_prompts: list[str] = Field(
        [], description="Ids of prompts that are about translation: there the English answer is chosen as it stands."
    )


class LoraSettings(Settings):
    """Low-rank adapters (peft)."""

    rank: Positive = Field(16, description="Rank of the adapters.")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="Scale: adapters are multiplied by alpha / rank.")
    target_modules: str = Field("all-linear", description="Which modules get an adapter, as peft takes it.")
    save: Literal["merged", "adapter"] = Field(
        "merged", description="What is stored: whole weights, or the adapter, which shares its base with other models."
    )
    bits: Literal[4] | None = Field(None, description="4: the frozen weights are held in 4 bits (QLoRA, bitsandbytes).")


class TrainSettings(Settings):
    """Training on the pairs by DPO (Eq. 11), KTO (Eq. 16), IPO, SimPO or ORPO, each with an NLL term or without."""

    method: Method = Field("dpo", description="The loss; DPO+NLL is the paper's (Eq. 11).")
    reference: Literal["previous", "initial"] = Field(
        "previous", description="The training reference: the policy that training starts from, or pi_I."
    )
    precompute_reference: bool = Field(
        False, description="The reference's log-probabilities are computed before training, which then holds one model."
    )
    beta: Annotated[float, Field(gt=0)] = Field(
        0.1, description="beta of the loss; for orpo the weight of its odds-ratio term. SimPO's authors take 2 or more."
    )
    nll_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Weight of the NLL of the chosen response per token (Eq. 11); 0 switches it off."
    )
    gamma: Annotated[float, Field(ge=0)] = Field(0.5, description="SimPO's target margin between the two rewards.")
    desirable_weight: Annotated[float, Field(gt=0)] = Field(1.0, description="lambda_w of KTO (Eq. 16).")
    undesirable_weight: Annotated[float, Field(gt=0)] = Field(1.0, description="lambda_l of KTO (Eq. 16).")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-7, description="Peak learning rate of AdamW.")
    batch_size: Positive = Field(
        16, description="Pairs per optimizer step, over all processes; for kto examples, of which each pair gives two."
    )
    micro_batch_size: Positive = Field(4, description="How many of them per forward pass; it does not change the loss.")
    epochs: Positive = Field(1, description="Passes over the pairs.")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(0.03, description="Share of the steps spent warming up.")
    scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning-rate schedule.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW weight decay.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradients are clipped to this norm.")
    max_length: Positive = Field(4096, description="A pair whose prompt and response are longer (tokens) is dropped.")
    gradient_checkpointing: bool = Field(False, description="Trade speed for memory.")
    lora: LoraSettings | None = Field(None, description="Train low-rank adapters instead of all weights.")
    checkpoint_every: Positive = Field(50, description="Optimizer steps between checkpoints, for resuming.")
    save_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Number format of the trained policy's files. bfloat16 halves them, and rounds."
    )

    @field_validator("reference", "precompute_reference")
    @classmethod
    def _reference_is_used(cls, value: Any, info: ValidationInfo) -> Any:
        return _used(value, cls.model_fields[info.field_name or ""].default, info.data.get("method"))

    @field_validator("micro_batch_size")
    @classmethod
    def _divides_batch(cls, micro_batch_size: int, info: ValidationInfo) -> int:
        batch_size = info.data.get("batch_size")
        if batch_size is not None and batch_size % micro_batch_size:
            raise ValueError(
                f"micro_batch_size must divide batch_size: {batch_size} is no multiple of {micro_batch_size}"
            )
        return micro_batch_size


class AlignEnglishSettings(TrainSettings):
    """Stage 0: makes pi_0 from pi_I on English preferences, with the same trainer."""

    preferences: str = Field(description="English preference pairs: a file, ``package:NAME/path`` or a hub dataset id.")


class EvaluateSettings(Settings):
    """Measuring every policy on held-out prompts."""

    prompts: str | None = Field(None, description="Held-out parallel prompts; without them nothing is evaluated.")
    limit: Positive | None = Field(None, description="Use only the first so many held-out prompts.")
    n: Positive = Field(4, description="Responses per held-out prompt and language.")
    resamples: Positive = Field(2000, description="Bootstrap resamples of each confidence interval.")
