"""The settings of ``crosspref evaluate --suite``, from one YAML file and ``--set``."""

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationInfo, field_validator

from crosspref.keys import without_what_looks_like_a_key
from crosspref.recipe.sections import (
    LEAST_TEMPERATURE,
    AboveZero,
    AskingSettings,
    AtLeastZero,
    ConnectionSettings,
    Json,
    Positive,
    RaySettings,
    ResourceSettings,
    Seed,
    ServerSettings,
    Settings,
    Several,
    Share,
    Tokens,
    VllmSettings,
)
from crosspref.suites.nlp.tasks import TaskName

_CREDENTIALS = {"api_key", "apikey", "api-key", "authorization", "headers", "extra_headers", "token", "password"}
"""Fields by which people try to send a key."""


def _is_greedy_or_warm(temperature: float) -> float:
    if 0 < temperature < LEAST_TEMPERATURE:
        raise ValueError(f"must be 0, for greedy answers, or at least {LEAST_TEMPERATURE}, but it is {temperature}")
    return temperature


class JudgeSettings(ConnectionSettings):
    """The judge: a model on any OpenAI-compatible server."""

    model: str | None = Field(None, description="The judge's name on its server, preferably a dated one.")
    protocol: Literal["auto", "logprobs", "text"] = Field(
        "auto",
        description="logprobs: read the verdict from the log-probabilities of the two labels. text: read it from the "
        "text. auto: logprobs, if the first answer has them.",
    )
    temperature: AtLeastZero | None = Field(None, description="Temperature. Default: the suite's.")
    max_tokens: Tokens | None = Field(None, description="Maximum tokens of a verdict. Default: the suite's.")
    top_logprobs: Annotated[int, Field(ge=2, le=20)] = Field(5, description="Number of tokens with log-probabilities.")
    request: Json = Field(
        {},
        description="Fields to add to each request, or to replace; null removes a field: {max_tokens: null, "
        "max_completion_tokens: 4000, reasoning_effort: low}. They are stored with the verdicts.",
    )
    price_in: AtLeastZero | None = Field(None, description="Price per million input tokens.")
    price_out: AtLeastZero | None = Field(None, description="Price per million output tokens.")
    budget: AboveZero | None = Field(
        None,
        description="Maximum cost of all verdicts of this judge in the file of verdicts, including earlier ones, in "
        "the currency of the prices. Judging stops before exceeding it.",
    )

    @field_validator("request")
    @classmethod
    def _leaves_the_question(cls, request: dict[str, JsonValue]) -> dict[str, JsonValue]:
        taken = sorted(request.keys() & {"messages", "model", "n", "stream"})
        if taken:
            raise ValueError(f"cannot set {', '.join(taken)}, because reading the answers depends on them")
        said = json.dumps(request)
        if _CREDENTIALS & {name.lower() for name in request} or without_what_looks_like_a_key(said) != said:
            raise ValueError("holds what may be a key, and is stored with every verdict: use judge.key_variable")
        return request

    @field_validator("budget")
    @classmethod
    def _has_prices(cls, budget: float | None, info: ValidationInfo) -> float | None:
        if budget is not None and None in (info.data.get("price_in"), info.data.get("price_out")):
            raise ValueError("needs both judge.price_in and judge.price_out")
        return budget

    def transport(self) -> ServerSettings:
        """Return the settings of the judge's server."""
        return ServerSettings(protocol="chat", **self.model_dump(include=set(ConnectionSettings.model_fields)))


class AnswerSettings(AskingSettings):
    """How the evaluated models answer: one answer per prompt, with the paper's decoding."""

    engine: Literal["transformers", "vllm", "server"] = Field(
        "transformers", description="The library that samples. vllm and server have their own sections."
    )
    temperature: Annotated[float, Field(ge=0, le=1e4), AfterValidator(_is_greedy_or_warm)] = Field(
        0.6, description="Sampling temperature. 0 is greedy."
    )
    top_p: Share = Field(0.9, description="Nucleus sampling: the fewest tokens with this total probability.")
    max_prompt_tokens: Tokens = Field(4096, description="Prompts with more tokens get no answer, and are counted.")
    max_new_tokens: Tokens = Field(2048, description="Answers are cut at this many tokens.")
    batch_size: Several = Field(32, description="Maximum number of answers sampled in parallel.")
    batch_tokens: Positive = Field(32768, description="Maximum tokens (prompt and answer) in a batch.")


class XAlpacaSettings(Settings):
    """X-AlpacaEval: a judge compares answers with those of a baseline."""

    items: str | None = Field(
        None,
        description="The instructions (columns instruction and, if there are ids, id): a directory with one file per "
        "language, such as es.json, or one file with a column language.",
    )
    baseline: str | None = Field(
        None, description="The baseline's answers, in the same layout and alpaca_eval's format (instruction, output)."
    )
    gamed: str | None = Field(
        None, description="alpaca_eval's table of gamed rows (df_gamed.csv). Without it, LC is LC-noreg."
    )
    difficulty: str | None = Field(
        None,
        description="The items' difficulty: columns instruction_difficulty, and id or index (the item's position in "
        "its file, from 0). Default: the gamed table's. Without either there is no LC.",
    )
    paper_compat: bool = Field(
        False, description="Join difficulties by position among the judged items, as in the paper, and not by item."
    )
    prompt: str | None = Field(
        None,
        description="Your own prompt, such as alpaca_eval's: a text with {instruction}, {output_1} and {output_2}, and "
        "the labels m and M.",
    )
    limit: Positive | None = Field(None, description="Use only this many items per language, from the start.")


class MtBenchSettings(Settings):
    """Multilingual MT-Bench: a judge grades two turns from 1 to 10. Each category has its own temperature."""

    questions: str | None = Field(
        None,
        description="The questions in FastChat's format (question_id, category, turns and optionally reference): a "
        "directory with one file per language (es.jsonl, or es/question.jsonl), or one file with a column language.",
    )
    references: str | None = Field(
        None,
        description="Reference answers in FastChat's format (question_id, choices), in the same layout (es.jsonl, or "
        "the file in es/reference_answer). They have priority over the questions' column reference.",
    )
    without_reference: Literal["leave_out", "judge"] = Field(
        "leave_out",
        description="What to do in math, reasoning and coding if a reference answer is missing. leave_out: do not "
        "judge these turns. judge: grade them with the prompt without a reference. Both are counted.",
    )


class RewardAccuracySettings(Settings):
    """Reward accuracy: how often a judge prefers the answer that a reward chose (section 4.2, Table 1)."""

    pairs: Several = Field(100, description="Pairs to sample per reward, iteration and language.")
    prompt: str | None = Field(
        None,
        description="Your own prompt: a text with {instruction}, {output_1}, {output_2} and optionally {language}. "
        "Its answers must end with a line answer1, answer2 or tie.",
    )
    reward_model: str | None = Field(
        None, description="A sequence-classification model as another judge: the answer with the higher score wins."
    )
    votes: str | None = Field(
        None, description="Votes of people (columns id, choice: a, b or tie, and annotator), such as a completed sheet."
    )


class NlpSettings(Settings):
    """Multilingual NLP tasks through lm-evaluation-harness."""

    tasks: Annotated[list[TaskName], Field(min_length=1)] = Field(
        ["arc", "hellaswag", "mmlu", "truthfulqa"], description="The tasks."
    )
    data: str | None = Field(
        None,
        description="A directory with the items, such as arc/es.jsonl, and MMLU's five examples, such as "
        "mmlu_examples/es.jsonl. Default: the harness downloads its data sets from the hub.",
    )
    limit: Positive | None = Field(
        None, description="Use only this many items per task (in English MMLU: per subject), from the start."
    )
    batch_size: Several = Field(16, description="Choices per batch.")


class EvaluationSettings(Settings):
    """All settings of ``crosspref evaluate --suite``."""

    models: list[str] | None = Field(
        None, description="Models of a run to evaluate: [pi_I, pi_0, pi_1 ...]. Default: all."
    )
    seed: Seed = Field(42, description="Seed of all random numbers.")
    resamples: Several = Field(2000, description="Bootstrap resamples per confidence interval.")
    judge: JudgeSettings = Field(JudgeSettings(), description="The judge.")
    answers: AnswerSettings = Field(AnswerSettings(), description="How the evaluated models answer.")
    xalpaca: XAlpacaSettings = Field(XAlpacaSettings(), description="The suite xalpaca.")
    mtbench: MtBenchSettings = Field(MtBenchSettings(), description="The suite mtbench.")
    reward_accuracy: RewardAccuracySettings = Field(RewardAccuracySettings(), description="The suite reward_accuracy.")
    nlp: NlpSettings = Field(NlpSettings(), description="The suite nlp.")
    resources: ResourceSettings = Field(ResourceSettings(), description="Where and how the evaluated models run.")
    vllm: VllmSettings = Field(VllmSettings(), description="vLLM, for `answers.engine: vllm`.")
    server: ServerSettings = Field(ServerSettings(), description="A model server, for `answers.engine: server`.")
    ray: RaySettings = Field(RaySettings(), description="Ray, for `resources.executor: ray`.")
