"""The rows of crosspref's tables, their Arrow schemas, and the keys that join them.

Every table is Parquet and is joined by key, never by position. Log-probabilities and rewards are in nats.
"""

import hashlib
from dataclasses import dataclass, fields
from typing import Any, Literal

import pyarrow as pa

SCHEMA_VERSION = 1
"""Part of every fingerprint: raise it when the meaning of a stored column changes."""

FinishReason = Literal["stop", "length"]
"""``stop``: the model ended its turn. ``length``: it was cut at the token limit."""

Message = dict[str, str]
"""One chat message, ``{"role": ..., "content": ...}``."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One instruction in one language. Rows with the same ``prompt_id`` are translations of each other."""

    prompt_id: str
    language: str
    instruction: str


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled answer (Eq. 7).

    ``token_ids`` are the ids as sampled, the end-of-turn token included when ``finish_reason`` is ``stop``. They are
    None for answers that were made elsewhere as text.
    """

    prompt_id: str
    language: str
    sample: int
    text: str
    token_ids: list[int] | None
    finish_reason: FinishReason
    seed: int | None


@dataclass(frozen=True, slots=True)
class Score:
    """The reward of one response, before the length penalty (Eq. 9 with alpha = 0).

    ``policy_logprob`` and ``reference_logprob`` are summed over the response's tokens, in nats; ``tokens`` is how many
    were summed, ``characters`` the number of Unicode code points of the text.
    """

    prompt_id: str
    language: str
    sample: int
    reward: str
    policy_logprob: float
    reference_logprob: float
    tokens: int
    characters: int
    implicit_reward: float


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference (Eq. 10) in TRL's conversational format.

    ``chosen_reward`` and ``rejected_reward`` are penalised: ``implicit_reward - alpha * length``. The token ids are the
    sampled ones, so that training sees exactly what was scored; they are None for pairs made elsewhere.
    """

    prompt_id: str
    language: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    chosen_sample: int | None
    rejected_sample: int | None
    chosen_token_ids: list[int] | None
    rejected_token_ids: list[int] | None
    chosen_reward: float | None
    rejected_reward: float | None
    alpha: float | None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A prompt that a stage could not use, and why."""

    prompt_id: str
    language: str
    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of an evaluation with its 95% bootstrap interval, which covers the choice of prompts and nothing else.

    ``n`` counts the values that were averaged, ``prompts`` the clusters that were resampled.
    """

    iteration: int
    language: str
    measure: str
    mean: float
    low: float
    high: float
    n: int
    prompts: int


_KEY = [("prompt_id", pa.string()), ("language", pa.string())]
_IDS = pa.list_(pa.int32())
_CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

SCHEMAS: dict[type, pa.Schema] = {
    Prompt: pa.schema([*_KEY, ("instruction", pa.string())]),
    Response: pa.schema(
        [
            *_KEY,
            ("sample", pa.int32()),
            ("text", pa.string()),
            ("token_ids", _IDS),
            ("finish_reason", pa.string()),
            ("seed", pa.int64()),
        ]
    ),
    Score: pa.schema(
        [
            *_KEY,
            ("sample", pa.int32()),
            ("reward", pa.string()),
            ("policy_logprob", pa.float64()),
            ("reference_logprob", pa.float64()),
            ("tokens", pa.int32()),
            ("characters", pa.int32()),
            ("implicit_reward", pa.float64()),
        ]
    ),
    Pair: pa.schema(
        [
            *_KEY,
            ("prompt", _CHAT),
            ("chosen", _CHAT),
            ("rejected", _CHAT),
            ("chosen_sample", pa.int32()),
            ("rejected_sample", pa.int32()),
            ("chosen_token_ids", _IDS),
            ("rejected_token_ids", _IDS),
            ("chosen_reward", pa.float64()),
            ("rejected_reward", pa.float64()),
            ("alpha", pa.float64()),
        ]
    ),
    Dropped: pa.schema([*_KEY, ("stage", pa.string()), ("reason", pa.string())]),
    Measure: pa.schema(
        [
            ("iteration", pa.int32()),
            ("language", pa.string()),
            ("measure", pa.string()),
            ("mean", pa.float64()),
            ("low", pa.float64()),
            ("high", pa.float64()),
            ("n", pa.int32()),
            ("prompts", pa.int32()),
        ]
    ),
}


def to_table(rows: list[Any], kind: type) -> pa.Table:
    """Return rows of one kind as an Arrow table with that kind's schema."""
    names = [field.name for field in fields(kind)]
    columns = [[getattr(row, name) for row in rows] for name in names]
    return pa.Table.from_arrays(
        [pa.array(column, type=SCHEMAS[kind].field(name).type) for name, column in zip(names, columns, strict=True)],
        schema=SCHEMAS[kind],
    )


def from_table(table: pa.Table, kind: type) -> list[Any]:
    """Return the rows of an Arrow table as objects of one kind; columns of other names are left out."""
    names = [field.name for field in fields(kind)]
    columns = [table.column(name).to_pylist() for name in names]
    return [kind(*values) for values in zip(*columns, strict=True)]


def derive_seed(seed: int, iteration: int, prompt_id: str, language: str, sample: int) -> int:
    """Return the 63-bit seed of one response: a hash of what identifies it, so no batch or shard can change it."""
    identity = "\x1f".join([str(seed), str(iteration), prompt_id, language, str(sample)])
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8]) >> 1
