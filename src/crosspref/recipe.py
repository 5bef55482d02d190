"""Every setting of a run, as frozen models that check and never change a value.

Everything but the models, the languages and the prompts has a default. ``recipe_file`` reads a recipe from YAML.
Nothing here imports torch.
"""

import difflib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from crosspref.languages import LANGUAGES

Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What numpy takes as a seed; it seeds the shuffling of pairs and the bootstrap."""


class Settings(BaseModel):
    """Base of all sections: frozen, strict, and closed to unknown keys.

    What contradicts is checked at the later of the two fields and not on the whole model: pydantic skips a model's
    check when any field is wrong, and then a person would meet one fault after the other. Hence ``validate_default``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class ModelSettings(Settings):
    """The two models of Algorithm 1.

    Each is a local directory, a hub id (``owner/name`` or ``owner/name@revision``), or a file inside an installed
    package (``package:NAME/path``).
    """

    initial: str = Field(description="pi_I: the model before preference alignment, the reference of the reward.")
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

    n: Annotated[int, Field(ge=2)] = Field(10, description="Responses per prompt and language (N).")
    temperature: Annotated[float, Field(gt=0)] = Field(0.9, description="Sampling temperature.")
    top_p: Probability = Field(
        1.0, description="Nucleus: sample from the smallest set of tokens with this probability."
    )
    max_prompt_tokens: Positive = Field(4096, description="A prompt of more tokens gets no responses, and is dropped.")
    max_new_tokens: Positive = Field(1024, description="A response is cut after so many tokens.")
    batch_size: Positive = Field(32, description="Responses that are sampled side by side, at most.")
    batch_tokens: Positive = Field(
        32768, description="Prompt and response tokens that are sampled side by side, at most; it bounds the memory."
    )


class RewardSettings(Settings):
    """The implicit cross-lingual reward (Eq. 8, 9)."""

    beta: Annotated[float, Field(gt=0)] = Field(0.1, description="beta of Eq. 9.")
    end_of_turn: Literal["if_stopped", "never"] = Field(
        "if_stopped", description="Whether the end-of-turn token counts: only when the response really ended, or never."
    )
    batch_tokens: Positive = Field(
        16384, description="Prompt and response tokens that are scored side by side, at most; it bounds the memory."
    )
    logits_megabytes: Positive = Field(128, description="Upper bound of the memory that float32 logits take.")


class LengthPenaltySettings(Settings):
    """The penalty alpha * length (Eq. 9, 15)."""

    mode: Literal["optimal", "fixed", "none"] = Field(
        "optimal",
        description="optimal: solved exactly per language (Eq. 15). fixed: `alpha` is used. none: no penalty.",
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
    """Making pairs (Eq. 10). Empty and repeated responses never take part."""

    truncated: Literal["drop", "keep"] = Field(
        "drop", description="What happens to responses that were cut at the token limit."
    )
    wrong_language: Literal["drop", "keep"] = Field(
        "keep", description="What happens to responses that are identified as another language than the prompt's."
    )
    min_gap: Annotated[float, Field(ge=0)] = Field(
        0.05,
        description="A pair needs a reward gap above this. Default: beta 0.1 times the 0.5 nats by which bfloat16 "
        "scores were measured to differ from float32 ones.",
    )


class LoraSettings(Settings):
    """Low-rank adapters (peft). They are merged into the weights at the end of each training."""

    rank: Positive = Field(16, description="Rank of the adapters.")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="Scale: adapters are multiplied by alpha / rank.")
    target_modules: str = Field("all-linear", description="Which modules get an adapter, as peft takes it.")


class TrainSettings(Settings):
    """DPO with a length-normalised NLL term (Eq. 11), through TRL."""

    beta: Annotated[float, Field(gt=0)] = Field(0.1, description="beta of Eq. 11.")
    nll_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="Weight of the NLL term of Eq. 11.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-7, description="Peak learning rate of AdamW.")
    batch_size: Positive = Field(16, description="Pairs per optimizer step, over all processes.")
    micro_batch_size: Positive = Field(4, description="Pairs per forward pass; it does not change the loss.")
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
    """Stage 0: makes pi_0 from pi_I by DPO on English preferences, with the same trainer."""

    preferences: str = Field(description="English preference pairs: a file, ``package:NAME/path`` or a hub dataset id.")


class EvaluateSettings(Settings):
    """Measuring every policy on held-out prompts."""

    prompts: str | None = Field(None, description="Held-out parallel prompts; without them nothing is evaluated.")
    n: Positive = Field(4, description="Responses per held-out prompt and language.")
    resamples: Positive = Field(2000, description="Bootstrap resamples of each confidence interval.")


class ResourceSettings(Settings):
    """Where and how things run. These settings change no result beyond rounding."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of sampling, scoring and training. auto: bfloat16 where it is fast."
    )
    threads: Positive | None = Field(None, description="CPU threads of torch; all cores if left out.")
    shard_prompts: Positive = Field(64, description="Prompts per shard, the unit of work and of resuming.")
    process_per_phase: bool = Field(
        True, description="Run each phase in a process of its own, so that all its memory is given back."
    )


class Recipe(Settings):
    """One run of Algorithm 1."""

    models: ModelSettings = Field(description="The models.")
    languages: list[str] = Field(description="Language tags to align, for example [en, es, fr].", min_length=1)
    prompts: PromptSettings = Field(description="The training prompts.")
    iterations: Positive = Field(2, description="Iterations of sample, score, select, train (T).")
    seed: Seed = Field(42, description="All random numbers derive from it.")
    align_english: AlignEnglishSettings | None = Field(None, description="Stage 0, where no pi_0 is given.")
    sample: SampleSettings = Field(SampleSettings(), description="Eq. 7.")
    reward: RewardSettings = Field(RewardSettings(), description="Eq. 8, 9.")
    length_penalty: LengthPenaltySettings = Field(LengthPenaltySettings(), description="Eq. 15.")
    select: SelectSettings = Field(SelectSettings(), description="Eq. 10.")
    train: TrainSettings = Field(TrainSettings(), description="Eq. 11.")
    evaluate: EvaluateSettings = Field(EvaluateSettings(), description="What is measured.")
    resources: ResourceSettings = Field(ResourceSettings(), description="Where and how it runs.")

    @field_validator("languages")
    @classmethod
    def _known_languages(cls, languages: list[str]) -> list[str]:
        faults = []
        for language in dict.fromkeys(languages):
            if language not in LANGUAGES:
                near = difflib.get_close_matches(language, LANGUAGES, n=3, cutoff=0.5)
                hint = f" (did you mean {', '.join(near)}?)" if near else ""
                faults.append(f"unknown language {language!r}{hint}")
            if languages.count(language) > 1:
                faults.append(f"{language!r} is listed more than once")
        if any(language not in LANGUAGES for language in languages):
            faults.append(f"known are {', '.join(sorted(LANGUAGES))}")
        if faults:
            raise ValueError("; ".join(faults))
        return languages

    @field_validator("align_english")
    @classmethod
    def _one_way_to_pi_0(
        cls, align_english: AlignEnglishSettings | None, info: ValidationInfo
    ) -> AlignEnglishSettings | None:
        models = info.data.get("models")
        if models is not None and models.policy is None and align_english is None:
            raise ValueError(
                "there is no English-aligned model: give models.policy (pi_0), or align_english.preferences to make one"
            )
        if models is not None and models.policy is not None and align_english is not None:
            raise ValueError("models.policy and align_english contradict each other: give one of them")
        return align_english
