"""The settings of ``crosspref evaluate --suite``: one YAML file, and ``--set``. Nothing here imports torch."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator

from crosspref.recipe.sections import (
    AtLeastZero,
    Positive,
    RaySettings,
    ResourceSettings,
    Seed,
    ServerSettings,
    Settings,
    Share,
    VllmSettings,
    checked_address,
)
from crosspref.suites.nlp.tasks import TaskName


class JudgeSettings(Settings):
    """Who judges: a model behind any server that speaks OpenAI's protocol."""

    model: str | None = Field(None, description="The judge's name on its server, best one with a date in it.")
    url: str = Field("http://localhost:8000/v1", description="The server's address, with its version.")
    key_variable: str = Field("OPENAI_API_KEY", description="The environment variable that holds the server's key.")
    protocol: Literal["auto", "logprobs", "text"] = Field(
        "auto",
        description="logprobs: a choice is read from the log-probabilities of its two labels. text: from what is "
        "answered. auto: logprobs where the server gives them, which the first answer tells.",
    )
    temperature: AtLeastZero | None = Field(None, description="Temperature; what the suite says if left out.")
    max_tokens: Positive | None = Field(None, description="An answer's most tokens; what the suite says if left out.")
    top_logprobs: Annotated[int, Field(ge=2, le=20)] = Field(5, description="Log-probabilities of how many tokens.")
    request: dict[str, JsonValue] = Field(
        {},
        description="Fields that each request gets, too, in the place of others of that name; null takes one away: "
        "{max_tokens: null, max_completion_tokens: 4000, reasoning_effort: low}. They stand in the file of verdicts.",
    )
    price_in: AtLeastZero | None = Field(None, description="Price of a million tokens that the judge reads.")
    price_out: AtLeastZero | None = Field(None, description="Price of a million tokens that the judge writes.")
    budget: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="The most that all verdicts of this judge in the file of verdicts may cost, those from before "
        "included, in the money of the prices. Judging stops before it is exceeded.",
    )
    concurrency: Positive = Field(32, description="Questions at a time, at most.")
    requests_per_minute: Positive | None = Field(None, description="Requests per minute, at most.")
    timeout: Annotated[float, Field(gt=0)] = Field(600.0, description="Seconds until an answer is given up.")
    retries: Annotated[int, Field(ge=0)] = Field(
        6, description="How often a question is repeated after 429, 5xx, a lost connection or half an answer."
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        return checked_address(url)

    @field_validator("request")
    @classmethod
    def _leaves_the_question(cls, request: dict[str, JsonValue]) -> dict[str, JsonValue]:
        taken = sorted(request.keys() & {"messages", "model", "n", "stream"})
        if taken:
            raise ValueError(f"cannot hold {', '.join(taken)}, on which the reading of answers depends")
        return request

    @field_validator("budget")
    @classmethod
    def _has_prices(cls, budget: float | None, info: ValidationInfo) -> float | None:
        if budget is not None and None in (info.data.get("price_in"), info.data.get("price_out")):
            raise ValueError("needs judge.price_in and judge.price_out, which are not both given")
        return budget

    def transport(self) -> ServerSettings:
        """Return how to talk to the judge's server."""
        return ServerSettings(
            url=self.url,
            protocol="chat",
            key_variable=self.key_variable,
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            timeout=self.timeout,
            retries=self.retries,
        )


class AnswerSettings(Settings):
    """How the measured models answer: one answer to each prompt, by the paper's decoding."""

    engine: Literal["transformers", "vllm", "server"] = Field(
        "transformers", description="What answers; vllm and server have a section of their own."
    )
    temperature: AtLeastZero = Field(0.6, description="Sampling temperature; 0 takes the likeliest token.")
    top_p: Share = Field(0.9, description="Nucleus: sample from the fewest tokens that have this probability.")
    max_prompt_tokens: Positive = Field(4096, description="A prompt of more tokens gets no answer, and is counted.")
    max_new_tokens: Positive = Field(2048, description="An answer is cut after so many tokens.")
    batch_size: Positive = Field(32, description="Answers that are sampled side by side, at most.")
    batch_tokens: Positive = Field(32768, description="Prompt and answer tokens side by side; it bounds the memory.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with a model. Ask for it by name.")


class XAlpacaSettings(Settings):
    """X-AlpacaEval: answers against those of a baseline, by a judge."""

    items: str | None = Field(
        None,
        description="The instructions (columns id and instruction): a directory with a file per language, such as "
        "es.json, or a file with a column language.",
    )
    baseline: str | None = Field(
        None, description="The baseline's answers, likewise, in alpaca_eval's format of outputs (instruction, output)."
    )
    gamed: str | None = Field(
        None, description="alpaca_eval's table of gamed rows (df_gamed.csv), without which LC is LC-noreg."
    )
    difficulty: str | None = Field(
        None,
        description="The items' difficulty: columns instruction_difficulty, and id, or index (the item's place in its "
        "file, from 0). Taken from the gamed table if left out; without either there is no LC.",
    )
    paper_compat: bool = Field(
        False, description="Join the difficulty by position among what was judged, as the paper did, and not by item."
    )
    prompt: str | None = Field(
        None,
        description="A prompt of your own, such as alpaca_eval's: a text with {instruction}, {output_1} and "
        "{output_2}, and the labels m and M.",
    )
    limit: Positive | None = Field(None, description="Use only the first so many items of each language.")


class MtBenchSettings(Settings):
    """Multilingual MT-Bench: two turns, graded from 1 to 10 by a judge; each category has its temperature."""

    questions: str | None = Field(
        None,
        description="The questions in FastChat's format (question_id, category, turns, and reference where there is "
        "one): a directory with a file per language (es.jsonl, or es/question.jsonl), or a file with a column "
        "language.",
    )
    references: str | None = Field(
        None,
        description="Reference answers in FastChat's format (question_id, choices), likewise (es.jsonl, or the one "
        "file in es/reference_answer). They go before the questions' own column reference.",
    )
    without_reference: Literal["leave_out", "judge"] = Field(
        "leave_out",
        description="What becomes of math, reasoning and coding where a reference answer is missing: leave_out does "
        "not judge these turns, judge grades them by the prompt without reference; both are counted.",
    )


class RewardAccuracySettings(Settings):
    """Reward accuracy: how often a judge prefers what a reward has chosen (section 4.2, Table 1)."""

    pairs: Positive = Field(100, description="Pairs per language that are drawn for each reward and iteration.")
    prompt: str | None = Field(
        None,
        description="A prompt of your own: a text with {instruction}, {output_1}, {output_2} and, where wanted, "
        "{language}, whose answers end with a line answer1, answer2 or tie.",
    )
    reward_model: str | None = Field(
        None, description="A sequence-classification model that judges, too: the answer that it rates higher wins."
    )
    votes: str | None = Field(
        None, description="Votes of people (columns id, choice: a, b or tie, and annotator), such as the filled sheet."
    )


class NlpSettings(Settings):
    """Multilingual NLP tasks through lm-evaluation-harness."""

    tasks: Annotated[list[TaskName], Field(min_length=1)] = Field(
        ["arc", "hellaswag", "mmlu", "truthfulqa"], description="Which tasks."
    )
    data: str | None = Field(
        None,
        description="A directory with files of the items, such as arc/es.jsonl, and of MMLU's five examples, such as "
        "mmlu_examples/es.jsonl. If left out, the harness fetches its data sets from the hub.",
    )
    limit: Positive | None = Field(
        None, description="Use only the first so many items of each task, of English MMLU of each subject."
    )
    batch_size: Positive = Field(16, description="Choices that are computed side by side; it bounds the memory.")


class EvaluationSettings(Settings):
    """What ``crosspref evaluate --suite`` can be told."""

    models: list[str] | None = Field(
        None, description="Which models of a run are measured: [pi_I, pi_0, pi_1 ...]. All that there are if left out."
    )
    seed: Seed = Field(42, description="All random numbers derive from it.")
    resamples: Positive = Field(2000, description="Bootstrap resamples of each confidence interval.")
    judge: JudgeSettings = Field(JudgeSettings(), description="Who judges.")
    answers: AnswerSettings = Field(AnswerSettings(), description="How the measured models answer.")
    xalpaca: XAlpacaSettings = Field(XAlpacaSettings(), description="The suite xalpaca.")
    mtbench: MtBenchSettings = Field(MtBenchSettings(), description="The suite mtbench.")
    reward_accuracy: RewardAccuracySettings = Field(RewardAccuracySettings(), description="The suite reward_accuracy.")
    nlp: NlpSettings = Field(NlpSettings(), description="The suite nlp.")
    resources: ResourceSettings = Field(ResourceSettings(), description="Where and how the measured models run.")
    vllm: VllmSettings = Field(VllmSettings(), description="vLLM, for answers.engine vllm.")
    server: ServerSettings = Field(ServerSettings(), description="A model server, for answers.engine server.")
    ray: RaySettings = Field(RaySettings(), description="Ray, for resources.executor ray.")
