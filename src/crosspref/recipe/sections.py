"""The sections of a recipe: every setting with its default and what it does.

The sections are frozen models that validate values and never change them. ``schema`` checks that the sections fit
together.
"""

import json
import re
from datetime import date
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
)

from crosspref.errors import shown
from crosspref.languages import ENGLISH, Prefix, as_tag, is_language

Positive = Annotated[int, Field(ge=1, le=10**9)]
"""A limit on rows, steps or requests."""
Several = Annotated[int, Field(ge=1, le=100_000)]
"""What is made or held so many times."""
AtOnce = Annotated[int, Field(ge=1, le=4096)]
"""Threads, devices, processes or requests at the same time."""
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
"""No model has a longer context."""
AtLeastZero = Annotated[float, Field(ge=0, le=1e9)]
AboveZero = Annotated[float, Field(ge=1e-9, le=1e9)]
"""A factor. Beyond this range, numbers vanish or overflow in single precision."""
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
LEAST_TEMPERATURE = 1e-4
"""Logits are divided by the temperature, and must stay finite."""
Temperature = Annotated[float, Field(ge=LEAST_TEMPERATURE, le=1e4)]
Share = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""The range that numpy accepts."""


def _check_sources(value: Any) -> Any:
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(source, str) for source in listed):
        raise ValueError(f"must be a place or a list of places, but it is {shown(value)}")
    if len(set(listed)) < len(listed):
        raise ValueError(f"names a place twice: {shown(listed)}")
    return value


Sources = Annotated[str | list[str], BeforeValidator(_check_sources)]
"""Where prompts are: a file, a folder with one file per language, ``package:NAME/path``, a hub dataset id, or a list of
these."""

MOST_CHARACTERS = 10_000
"""How long a text of a setting may be."""

RewardName = Literal["crosslingual", "multilingual", "translated", "reward_model"]
"""``crosslingual``: R_c, given the parallel English instruction (Eq. 9). ``multilingual``: R_m, given the prompt in its
own language (Eq. 12). ``translated``: R_t, of the response's English translation (Eq. 13, 14). ``reward_model``: R_n,
the output of a sequence-classification model for prompt and response (section 4.2)."""

Method = Literal["dpo", "kto", "ipo", "simpo", "orpo"]
"""A direct alignment algorithm. It decides the training loss, and the formula of the reward in the trained model."""

REFERENCE_FREE: frozenset[Method] = frozenset({"simpo", "orpo"})
"""The algorithms without a reference model, in both the loss and the reward."""


RESERVED = frozenset(
    {
        *("messages", "conversation", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("chat_template", "tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length", "return_tensors"),
        *("return_dict", "return_assistant_tokens_mask", "sanitize_control_tokens", "strftime_now", "raise_exception"),
    }
)
"""Names that mean something to transformers, or that are in every chat template."""


def _checked_json(values: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if len(json.dumps(values, allow_nan=False, ensure_ascii=False).encode()) > MOST_CHARACTERS:
        raise ValueError(f"holds more than {MOST_CHARACTERS:,} characters")
    return values


Json = Annotated[dict[str, JsonValue], AfterValidator(_checked_json)]
"""Values of any kind that JSON has; infinity and NaN are none."""


def _checked_day(day: str) -> str:
    date.fromisoformat(day)
    return day


Day = Annotated[
    str,
    BeforeValidator(lambda day: day.isoformat() if type(day) is date else day),  # as YAML reads it
    AfterValidator(_checked_day),
]
"""A date as 2025-12-31."""


class Settings(BaseModel):
    """Base of all sections: frozen, strict, and closed to unknown keys.

    Contradictions between two fields are checked by a validator of the later field, not of the whole model: pydantic
    skips model validators when any field is invalid, and users would then see one fault at a time. This is why
    ``validate_default`` is on. pydantic's own messages do not repeat values: one may be a key in the wrong place.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        str_max_length=MOST_CHARACTERS,
        hide_input_in_errors=True,
    )


def _check_reference(reference: Any, default: Any, method: Method | None) -> Any:
    """Refuse a reference other than the default for a method that has no reference."""
    if method in REFERENCE_FREE and reference != default:
        raise ValueError(f"{reference!r} contradicts {method}, which has no reference")
    return reference


class AskingSettings(Settings):
    """How models are loaded and asked. Which models is said elsewhere."""

    trust_remote_code: bool = Field(False, description="Run Python code that comes with a model.")
    date: Day = Field(
        "2025-01-01", description="The date that chat templates tell a model where they ask for today's, on every day."
    )
    chat_template_kwargs: Json = Field(
        {}, description="Values for the switches of chat templates: {enable_thinking: false}."
    )

    thinking: Literal["keep", "cut"] = Field(
        "keep",
        description="What to do with the part of a generated answer in which a model thinks aloud. cut: the answer "
        "alone is scored, paired, measured and trained on.",
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _only_switches(cls, values: dict[str, JsonValue]) -> dict[str, JsonValue]:
        reserved = [name for name in values if name in RESERVED or name.endswith("_token")]
        if reserved:
            raise ValueError(f"{', '.join(reserved)}: crosspref gives this to the template itself, so leave it out")
        return values


class ModelSettings(AskingSettings):
    """The two models of Algorithm 1.

    Each is a local directory, a GGUF file, a hub id (``owner/name`` or ``owner/name@revision``), or a file inside an
    installed package (``package:NAME/path``).
    """

    initial: str | None = Field(
        None,
        description="pi_I: the model before preference alignment, and the reward's reference. Optional only for "
        "rewards without a reference (simpo, orpo).",
    )
    policy: str | None = Field(
        None, description="pi_0: the English-aligned model. Leave it out to make it from pi_I with `align_english`."
    )


class PromptSettings(Settings):
    """Parallel prompts: instructions, or conversations as chat messages, joined by id."""

    source: Sources = Field(description="Where the parallel prompts are; a list takes them from several places.")
    on_problem: Literal["stop", "drop"] = Field(
        "stop",
        description="What to do about a missing translation, duplicate id or empty text: stop, or drop the prompt.",
    )
    limit: Positive | None = Field(None, description="Use only this many prompts, from the start.")
    id_column: str | None = Field(None, description="Name of the id column, if it is not detected.")
    text_column: str | None = Field(None, description="Name of the text column, if it is not detected.")
    language_column: str | None = Field(None, description="Name of the language column, if it is not detected.")

    @property
    def sources(self) -> list[str]:
        """The places that ``source`` names."""
        return [self.source] if isinstance(self.source, str) else self.source


class SampleSettings(Settings):
    """Sampling responses (Eq. 7)."""

    engine: Literal["transformers", "vllm", "server"] = Field(
        "transformers", description="The library that samples. vllm and server have their own sections."
    )
    n: Annotated[int, Field(ge=2, le=100_000)] = Field(10, description="Responses per prompt and language (N).")
    temperature: Temperature = Field(0.9, description="Sampling temperature.")
    top_p: Share = Field(1.0, description="Nucleus sampling: the fewest tokens with this total probability.")
    max_prompt_tokens: Tokens = Field(4096, description="Prompts with more tokens are dropped.")
    max_new_tokens: Tokens = Field(1024, description="Responses are cut at this many tokens.")
    batch_size: Several = Field(32, description="Maximum number of responses sampled in parallel.")
    batch_tokens: Positive = Field(32768, description="Maximum tokens (prompt and response) in a batch.")


class TranslateSettings(Settings):
    """Translating responses greedily, for R_t (Eq. 14) and for Language Imbalance Driven Rewarding (A.5)."""

    model: str | None = Field(
        None,
        description="The translator: a chat model or an encoder-decoder translation model. Default: the policy.",
    )
    codes: dict[str, str] = Field(
        {}, description="The translation model's language codes where they differ from the tags: {es: spa_Latn}."
    )
    max_new_tokens: Tokens = Field(1024, description="Translations are cut at this many tokens.")
    truncated: Literal["drop", "keep"] = Field("drop", description="drop: a translation that was cut counts as failed.")


class RewardSettings(Settings):
    """The reward of a response before the length penalty (Eq. 9, 12, 13, 17)."""

    engine: Literal["transformers", "server"] = Field(
        "transformers", description="What computes the log-probabilities, both the policy's and the reference's."
    )
    name: RewardName = Field("crosslingual", description="The reward that selects the pairs: R_c, R_m, R_t or R_n.")
    also: list[RewardName] = Field(
        [], description="More rewards to compute for the same responses, for comparison only."
    )
    algorithm: Method = Field(
        "dpo",
        description="The algorithm that aligned the policy in English. It decides the formula of R_c, R_m and R_t.",
    )
    reference: Literal["initial", "previous"] = Field(
        "initial",
        description="The reward's reference: pi_I, or the policy before the scoring one (the ablation of Table 6).",
    )
    beta: AboveZero = Field(
        0.1, description="The beta that the policy was aligned with. Rewards of kto and orpo have no beta."
    )
    counting: Literal["exact", "znlp"] = Field(
        "exact",
        description="Which tokens count. exact: every response token once. znlp: as in the released scripts.",
    )
    end_of_turn: Literal["if_stopped", "never"] = Field(
        "if_stopped", description="When the end-of-turn token counts: if the response ended by itself, or never."
    )
    prefix: Prefix = Field(
        None,
        description="P(l) of R_c: a text, in which {language} stands for the language's name, or one per language: "
        "{es: ..., fr: ...}. Default: the paper's text.",
    )
    reward_model: str | None = Field(None, description="The sequence-classification model of R_n.")
    batch_tokens: Positive = Field(16384, description="Maximum tokens (prompt and response) in a batch.")
    logits_megabytes: Positive = Field(128, description="Maximum memory for float32 logits.")

    @property
    def names(self) -> list[RewardName]:
        """All rewards to compute. The first one selects the pairs."""
        return [self.name, *self.also]

    @field_validator("also")
    @classmethod
    def _each_once(cls, also: list[RewardName], info: ValidationInfo) -> list[RewardName]:
        name = info.data.get("name")
        if len({name, *also}) <= len(also):
            raise ValueError(f"lists a reward twice, or repeats reward.name ({name})")
        return also

    @field_validator("reference")
    @classmethod
    def _reference_is_used(cls, reference: str, info: ValidationInfo) -> Any:
        return _check_reference(reference, "initial", info.data.get("algorithm"))

    @field_validator("counting")
    @classmethod
    def _counting_fits_the_reward(cls, counting: str, info: ValidationInfo) -> str:
        if counting == "znlp":
            if info.data.get("engine") == "server":
                raise ValueError("znlp is computed in this process, and contradicts engine server")
            algorithm, names = info.data.get("algorithm"), [info.data.get("name"), *info.data.get("also", [])]
            if algorithm in REFERENCE_FREE or algorithm == "ipo":
                raise ValueError(f"znlp sums log-ratios, and contradicts algorithm {algorithm}")
            if "translated" in names:
                raise ValueError("znlp is not defined for the reward translated: use exact, or another reward")
        return counting

    @field_validator("prefix", mode="before")
    @classmethod
    def _prefix_is_text_by_known_languages(cls, prefix: Any) -> Any:
        if prefix is None or isinstance(prefix, str):
            return prefix
        if not isinstance(prefix, dict) or not all(isinstance(text, str) for text in prefix.values()):
            raise ValueError(f"must be a text, or one per language, but it is {shown(prefix)}")
        for language in prefix:
            if not is_language(as_tag(str(language))):
                raise ValueError(f"gives a text for {shown(language)}, which is no known language")
            if as_tag(str(language)) == ENGLISH:
                raise ValueError("gives a text for en, but English instructions have no prefix")
        return {as_tag(language): text for language, text in prefix.items()}

    @field_validator("reward_model")
    @classmethod
    def _reward_model_is_used(cls, reward_model: str | None, info: ValidationInfo) -> str | None:
        is_used = "reward_model" in [info.data.get("name"), *info.data.get("also", [])]
        if is_used and reward_model is None:
            raise ValueError("is missing, but the recipe uses the reward reward_model: name the model")
        if reward_model is not None and not is_used:
            raise ValueError("names a model, but reward_model is neither reward.name nor in reward.also")
        return reward_model


class LengthPenaltySettings(Settings):
    """The length penalty, alpha * length (Eq. 9, 15)."""

    mode: Literal["optimal", "grid", "fixed", "none"] = Field(
        "optimal",
        description="optimal: solved exactly per language (Eq. 15). grid: the best of 0, 0.001 ... 0.999, as in the "
        "paper's released scripts. fixed: `alpha`. none: no penalty.",
    )
    alpha: Number | None = Field(None, description="Penalty per unit of length, for mode fixed.")
    unit: Literal["characters", "tokens"] = Field("characters", description="The unit of length.")

    @field_validator("alpha")
    @classmethod
    def _belongs_to_fixed(cls, alpha: float | None, info: ValidationInfo) -> float | None:
        mode = info.data.get("mode")
        if mode is not None and (mode == "fixed") != (alpha is not None):
            raise ValueError(f"alpha must be given with mode fixed only: mode is {mode!r} and alpha is {alpha!r}")
        return alpha


class SelectSettings(Settings):
    """Selecting pairs (Eq. 10)."""

    truncated: Literal["drop", "keep"] = Field("drop", description="What to do with responses cut at the token limit.")
    wrong_language: Literal["drop", "keep"] = Field("keep", description="What to do with responses in other languages.")
    degenerate: Literal["drop", "keep"] = Field(
        "drop",
        description="What to do with empty and repeated responses, and with prompts whose best and worst responses are "
        "the same. The paper's released scripts keep them.",
    )
    min_gap: AtLeastZero | None = Field(
        None,
        description="A pair needs a reward gap above this, unless `degenerate` is keep. Default: the reward of 0.5 "
        "nats (dpo: 0.5 beta, kto: 0.5), about the noise of bfloat16, and 0 for other algorithms. `crosspref audit` "
        "measures the noise of a run.",
    )
    upper_bound: Number | None = Field(
        None,
        description="Only responses with a penalised reward below this can be chosen; any can be rejected. Default: no "
        "bound. It is the paper's released scripts' `upper_bound` (with preset znlp, in nats).",
    )


class LanguageImbalanceSettings(Settings):
    """Language Imbalance Driven Rewarding (A.5): pairs of a greedy answer and a translation, without a reward."""

    translation_prompts: list[str] = Field(
        [], description="Ids of prompts that ask for a translation: their English answer is chosen untranslated."
    )


class LoraSettings(Settings):
    """Low-rank adapters (peft)."""

    rank: Several = Field(16, description="Rank of the adapters.")
    alpha: AboveZero = Field(32.0, description="Scale: the adapter is multiplied by alpha / rank.")
    target_modules: str | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear",
        description="The modules that get an adapter: names as [q_proj, v_proj], a regular expression of whole names, "
        "or all-linear.",
    )
    save: Literal["merged", "adapter"] = Field(
        "merged", description="What to store: merged weights, or the adapter alone, which shares its base's weights."
    )
    bits: Literal[4] | None = Field(None, description="4: hold the frozen weights in 4 bits (QLoRA, bitsandbytes).")

    @field_validator("target_modules")
    @classmethod
    def _is_an_expression(cls, target_modules: str | list[str]) -> str | list[str]:
        try:
            re.compile(target_modules if isinstance(target_modules, str) else "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{shown(target_modules)} is no regular expression: {error}") from error
        return target_modules


class TrainSettings(Settings):
    """Training on the pairs by DPO (Eq. 11), KTO (Eq. 16), IPO, SimPO or ORPO, with or without an NLL term."""

    method: Method = Field("dpo", description="The loss; DPO+NLL is the paper's (Eq. 11).")
    reference: Literal["previous", "initial"] = Field(
        "previous", description="The training reference: the policy that training starts from, or pi_I."
    )
    precompute_reference: bool = Field(
        False, description="Compute the reference's log-probabilities first, so that training holds only one model."
    )
    beta: AboveZero = Field(
        0.1, description="beta of the loss. For orpo: weight of the odds-ratio term. SimPO's authors use 2 or more."
    )
    nll_weight: AtLeastZero = Field(
        1.0, description="Weight of the chosen response's NLL per token (Eq. 11). 0 switches it off."
    )
    gamma: AtLeastZero = Field(0.5, description="SimPO's target margin between the two rewards.")
    desirable_weight: AboveZero = Field(1.0, description="lambda_w of KTO (Eq. 16).")
    undesirable_weight: AboveZero = Field(1.0, description="lambda_l of KTO (Eq. 16).")
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(5e-7, description="Peak learning rate of AdamW.")
    batch_size: Several = Field(
        16, description="Pairs per optimizer step, over all processes. For kto: examples; each pair gives two."
    )
    micro_batch_size: Several = Field(4, description="Pairs (or examples) per forward pass. Does not change the loss.")
    epochs: Several = Field(1, description="Passes over the pairs.")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(0.03, description="Share of the steps used for warm-up.")
    scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning-rate schedule.")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(0.0, description="AdamW weight decay.")
    max_grad_norm: AboveZero = Field(1.0, description="Gradients are clipped to this norm.")
    max_length: Tokens = Field(4096, description="Pairs with a longer prompt plus response (tokens) are dropped.")
    gradient_checkpointing: bool = Field(False, description="Save memory at the cost of speed.")
    lora: LoraSettings | None = Field(None, description="Train low-rank adapters instead of all weights.")
    checkpoint_every: Positive = Field(50, description="Optimizer steps between checkpoints.")
    save_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Number format of the stored policy. bfloat16 halves its size, but rounds."
    )

    @field_validator("reference", "precompute_reference")
    @classmethod
    def _reference_is_used(cls, value: Any, info: ValidationInfo) -> Any:
        return _check_reference(value, cls.model_fields[info.field_name or ""].default, info.data.get("method"))

    @field_validator("precompute_reference")
    @classmethod
    def _pairs_can_carry_the_reference(cls, precompute_reference: bool, info: ValidationInfo) -> bool:
        if precompute_reference and info.data.get("method") == "kto":
            raise ValueError("cannot be used with kto, which estimates z from responses to other prompts")
        return precompute_reference

    @field_validator("micro_batch_size")
    @classmethod
    def _divides_batch(cls, micro_batch_size: int, info: ValidationInfo) -> int:
        batch_size = info.data.get("batch_size")
        if batch_size is not None and batch_size % micro_batch_size:
            raise ValueError(
                f"micro_batch_size must divide batch_size: {batch_size} is not a multiple of {micro_batch_size}"
            )
        return micro_batch_size


class AlignEnglishSettings(TrainSettings):
    """Stage 0: train pi_0 from pi_I on English preferences, with the same trainer."""

    preferences: str = Field(description="English preference pairs: a file, `package:NAME/path` or a hub dataset id.")


class EvaluateSettings(Settings):
    """Evaluating every policy on held-out prompts."""

    prompts: Sources | None = Field(
        None, description="Held-out parallel prompts, from one place or a list. Without them, nothing is evaluated."
    )
    limit: Positive | None = Field(None, description="Use only this many held-out prompts, from the start.")
    n: Several = Field(4, description="Responses per held-out prompt and language.")
    resamples: Several = Field(2000, description="Bootstrap resamples per confidence interval.")


class ResourceSettings(Settings):
    """Where and how a run is executed. These settings change results by rounding at most."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format for sampling, scoring and training. auto: bfloat16 where it is fast."
    )
    threads: AtOnce | None = Field(None, description="CPU threads for torch. Default: all cores.")
    shard_prompts: Positive = Field(64, description="Prompts per shard, the unit of work and of distribution.")
    process_per_phase: bool = Field(True, description="Run each phase in its own process, which frees its memory.")
    executor: Literal["local", "ray"] = Field(
        "local", description="local: work on this machine. ray: distribute the shards over Ray workers (section `ray`)."
    )
    launch: str | None = Field(
        None,
        description="Command that starts training on several devices: accelerate launch --config_file FILE, or "
        "torchrun --nproc-per-node 8. Default: train in one process.",
    )

    @field_validator("launch")
    @classmethod
    def _phases_are_processes(cls, launch: str | None, info: ValidationInfo) -> str | None:
        if launch is not None and not launch.strip():
            raise ValueError("must be a command, or be left out")
        if launch is not None and info.data.get("process_per_phase") is False:
            raise ValueError("starts training in separate processes, and contradicts process_per_phase: false")
        return launch


class VllmSettings(Settings):
    """vLLM in this process, for `sample.engine: vllm`. These settings change results by rounding at most.

    One vLLM holds one copy of the model. For several copies use Ray workers (`resources.executor: ray`).
    """

    tensor_parallel: AtOnce = Field(1, description="GPUs that share one copy of the model.")
    memory: Share = Field(
        0.9, description="Share of a GPU's memory that vLLM may use. On a CPU its cache takes 4 GiB instead."
    )
    max_sequences: Several = Field(256, description="Maximum number of responses sampled in parallel.")


def _checked_address(url: str) -> str:
    """Return a server's address. Raises ValueError if it is none, or may hold a key; no message repeats it then."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or the brackets of an address of IPv6 do not fit
        is_address = False
    if not is_address or not url.isprintable() or set(url) & set(" \\"):
        raise ValueError("is not a server's address, such as http://localhost:8000/v1")
    if parts.password is not None or parts.username is not None:
        raise ValueError("the address contains a user or password, but is stored with the run: use key_variable")
    if set(url) & set("?#"):
        raise ValueError(
            "the address has a part after ? or #, which may hold a key, but is stored with the run: leave it out, and "
            "use key_variable for a key"
        )
    return url


Address = Annotated[str, AfterValidator(_checked_address)]

_VARIABLE = re.compile("[A-Z_][A-Z0-9_]{0,63}")


def _checked_variable(name: str) -> str:
    """Return the name of an environment variable; a key in its place would be stored, so no message repeats it."""
    if not _VARIABLE.fullmatch(name):
        raise ValueError(
            "is not the name of an environment variable in capitals, such as OPENAI_API_KEY. The key itself is never "
            "a setting: put it into that variable"
        )
    return name


class ConnectionSettings(Settings):
    """How an OpenAI-compatible server is reached."""

    url: Address = Field("http://localhost:8000/v1", description="The server's address, including the API version.")
    key_variable: Annotated[str, AfterValidator(_checked_variable)] = Field(
        "OPENAI_API_KEY", description="Environment variable that holds the server's key; its name is in capitals."
    )
    concurrency: AtOnce = Field(32, description="Maximum number of simultaneous requests.")
    requests_per_minute: Positive | None = Field(None, description="Maximum number of requests per minute.")
    timeout: Annotated[float, Field(ge=1e-3, le=1e6)] = Field(600.0, description="Seconds to wait for a whole answer.")
    retries: Annotated[int, Field(ge=0, le=1000)] = Field(
        6,
        description="Retries, with increasing delays, after 429, 5xx, a lost connection or an incomplete answer.",
    )


class ServerSettings(ConnectionSettings):
    """An OpenAI-compatible server, for `sample.engine: server` and `reward.engine: server`.

    The models of a run are called pi_I, pi_0, pi_1 ... unless `names` says otherwise.
    """

    urls: dict[str, Address] = Field({}, description="Addresses of models on other servers: {pi_I: http://...}.")
    names: dict[str, str] = Field({}, description="Names under which models are served: {pi_0: my/model}.")
    protocol: Literal["tokens", "chat"] = Field(
        "tokens",
        description="tokens: exchange token ids (vLLM). chat: exchange messages and text, which every server supports; "
        "cannot score.",
    )


class RaySettings(Settings):
    """Ray, for `resources.executor: ray`."""

    address: str | None = Field(
        None,
        description="The cluster: HOST:PORT, or auto for the cluster that this machine belongs to. Default: "
        "RAY_ADDRESS if set, else a new cluster on this machine.",
    )
    workers: AtOnce = Field(2, description="Workers for sampling and scoring; each holds the model.")
    cpus_per_worker: Annotated[float, Field(gt=0, le=4096)] = Field(
        1.0, description="CPUs that Ray reserves for each worker."
    )
    gpus_per_worker: Annotated[float, Field(ge=0, le=4096)] = Field(
        0.0, description="GPUs that Ray reserves for each worker."
    )
