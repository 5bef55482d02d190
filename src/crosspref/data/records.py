"""The rows of crosspref's tables, their Arrow schemas, and the keys that join them.

Every table is Parquet and is joined by key, never by position. Log-probabilities and rewards are in nats.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields
from types import UnionType
from typing import Any, Literal, get_args

import pyarrow as pa

SCHEMA_VERSION = 2
"""Part of every fingerprint: raise it when the meaning of a stored column changes."""

FinishReason = Literal["stop", "length"]
"""``stop``: the model ended its turn. ``length``: it was cut at the token limit."""

Message = dict[str, str]
"""One chat message, ``{"role": ..., "content": ...}``."""

Instruction = str | list[Message]
"""What a model is asked: a text of the user alone, or a conversation: an optional system message and turns, of which
the last is the user's."""


_COLUMN_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int32(),
    bool: pa.bool_(),
    float: pa.float64(),
    FinishReason: pa.string(),
    list[int]: pa.list_(pa.int32()),
    list[Message]: pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
}


@functools.cache
def schema_of(kind: type) -> pa.Schema:
    """Return the Arrow schema of a kind of rows: a column per field, in order; what may be None is its other type."""

    def column(field: Field[Any]) -> tuple[str, pa.DataType]:
        if field.name == "seed":  # 63 bits
            return field.name, pa.int64()
        stored = [part for part in get_args(field.type) if part is not type(None)]
        return field.name, _COLUMN_TYPES[stored[0] if isinstance(field.type, UnionType) else field.type]

    return pa.schema([column(field) for field in fields(kind)])


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a user asks in one language. Rows with the same ``prompt_id`` are translations of each other."""

    prompt_id: str
    language: str
    instruction: Instruction


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled answer (Eq. 7).

    ``token_ids`` are the ids as sampled, the end-of-turn token included when ``finish_reason`` is ``stop``. They are
    None for answers that were made elsewhere as text. ``thinking_tokens`` is how many tokens of thinking were cut in
    front of the answer; None if there were none.
    """

    prompt_id: str
    language: str
    sample: int
    text: str
    token_ids: list[int] | None
    finish_reason: FinishReason
    seed: int | None
    thinking_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Translation:
    """One translation of a response into ``target`` (Eq. 14, and section A.5).

    ``failure`` says why it cannot be used, and is None where it can. ``token_ids`` are the policy's, as generated; they
    are None where another model translated, or where the text is not what was generated to the letter.
    """

    prompt_id: str
    language: str
    sample: int
    target: str
    text: str
    token_ids: list[int] | None
    finish_reason: FinishReason
    failure: str | None


@dataclass(frozen=True, slots=True)
class Score:
    """One reward of one response, before the length penalty (Eq. 9, 12, 13 with alpha = 0).

    ``policy_logprob`` and ``reference_logprob`` are summed over tokens, in nats: of the response, or for the reward
    ``translated`` of its translation. They are None where the reward has no such model. ``tokens`` and ``characters``
    (Unicode code points; without the blanks around the text where ``reward.counting`` is znlp) are |y| of the response
    itself; ``tokens`` is None where it is not known. ``implicit_reward`` is in the unit of its formula in
    ``maths.reward``, or what the reward model says; it is None where the response has no reward, since its translation
    failed.
    """

    prompt_id: str
    language: str
    sample: int
    reward: str
    policy_logprob: float | None
    reference_logprob: float | None
    tokens: int | None
    characters: int
    implicit_reward: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference (Eq. 10) in TRL's conversational format.

    ``chosen_reward`` and ``rejected_reward`` are penalised: ``implicit_reward - alpha * length``. The token ids are the
    sampled ones, so that training sees exactly what was scored; they are None for answers that came as text.
    ``chosen_ended`` and ``rejected_ended`` are False for such an answer that was cut, so that no end of turn follows
    it, and else None.
    ``reference_chosen_logprob`` and ``reference_rejected_logprob`` are the training reference's, summed over tokens, in
    nats; None where they have not been computed beforehand.
    """

    prompt_id: str
    language: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    chosen_sample: int | None = None
    rejected_sample: int | None = None
    chosen_token_ids: list[int] | None = None
    rejected_token_ids: list[int] | None = None
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    alpha: float | None = None
    reference_chosen_logprob: float | None = None
    reference_rejected_logprob: float | None = None
    chosen_ended: bool | None = None
    rejected_ended: bool | None = None

    @classmethod
    def of(cls, instruction: Instruction, chosen: Response, rejected: Response) -> "Pair":
        """Return the pair of two responses to one instruction, without rewards."""
        return cls(
            chosen.prompt_id,
            chosen.language,
            as_messages(instruction),
            [{"role": "assistant", "content": chosen.text}],
            [{"role": "assistant", "content": rejected.text}],
            chosen.sample,
            rejected.sample,
            chosen.token_ids,
            rejected.token_ids,
            chosen_ended=ended(chosen),
            rejected_ended=ended(rejected),
        )


def ended(answer: Response | Translation) -> bool | None:
    """Return False for an answer that came as text and was cut, else None: token ids have their own end of turn."""
    return False if answer.token_ids is None and answer.finish_reason == "length" else None


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


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two rewards of the same responses agree in one language.

    ``tau`` is Kendall's tau-b between the rewards before their length penalty, within each prompt, averaged over
    ``prompts`` prompts, with its 95% bootstrap interval over them; nan where no prompt has two different rewards. The
    shares are over the ``pairs`` prompts for which both rewards make a pair: the same chosen response, the same
    rejected one, both the same, and the two exchanged.
    """

    iteration: int
    language: str
    reward: str
    other: str
    tau: float
    low: float
    high: float
    prompts: int
    same_chosen: float
    same_rejected: float
    same_pair: float
    swapped: float
    pairs: int


LATER = ("thinking_tokens", "chosen_ended", "rejected_ended")
"""Columns that came later, and that most tables have no use for."""


def to_table(rows: Sequence[Any], kind: type) -> pa.Table:
    """Return rows of one kind as an Arrow table with that kind's schema.

    Prompts of which any is a conversation are all stored as chat messages. A column of LATER that holds nothing is
    left out.
    """
    schema = schema_of(kind)
    columns = [[getattr(row, name) for row in rows] for name in schema.names]
    if kind is Prompt and any(isinstance(row.instruction, list) for row in rows):
        place = schema.get_field_index("instruction")
        columns[place] = [as_messages(instruction) for instruction in columns[place]]
        schema = schema.set(place, pa.field("instruction", _COLUMN_TYPES[list[Message]]))
    arrays = [pa.array(column, type=type_) for column, type_ in zip(columns, schema.types, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=schema)
    return table.drop_columns([name for name in LATER if name in schema.names and table[name].null_count == len(table)])


def from_table(table: pa.Table, kind: type) -> list[Any]:
    """Return the rows of an Arrow table as objects of one kind; columns of other names are left out.

    A column that is newer than the table, and has a default, may be missing.

    Raises:
        KeyError: another column is missing.
        ValueError: one has values of another type (as a pyarrow.ArrowException), or lacks values that must be there.
    """
    needed = [field for field in fields(kind) if field.default is MISSING or field.name in table.column_names]
    names = [field.name for field in needed]
    columns = [_values(table.column(field.name), field, kind) for field in needed]
    if kind is Prompt:
        place = names.index("instruction")
        columns[place] = [as_instruction(value) for value in columns[place]]
    return [kind(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray, field: Field[Any], kind: type) -> list[Any]:
    """Return the values of one column, or raise what ``from_table`` does."""
    if column.null_count and type(None) not in get_args(field.type):
        raise ValueError(f"the column {field.name!r} has empty values")
    if (kind, field.name) != (Prompt, "instruction"):  # which is a text, or messages
        column = column.cast(schema_of(kind).field(field.name).type)
    values: list[Any] = column.to_pylist()
    return values


def as_messages(instruction: Instruction) -> list[Message]:
    """Return an instruction as chat messages; a text is one of the user's."""
    return [{"role": "user", "content": instruction}] if isinstance(instruction, str) else instruction


def as_instruction(instruction: Instruction) -> Instruction:
    """Return chat messages as an instruction, which is a text if there is only a message of the user."""
    messages = as_messages(instruction)
    return messages[0]["content"] if [message["role"] for message in messages] == ["user"] else messages


def as_text(instruction: Instruction) -> str:
    """Return an instruction as people read it: a conversation with the role before each message."""
    if isinstance(instruction, str):
        return instruction
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in instruction)


def derive_seed(seed: int, iteration: int, prompt_id: str, language: str, sample: int) -> int:
    """Return the 63-bit seed of one response: a hash of what identifies it, so no batch or shard can change it."""
    identity = "\x1f".join([str(seed), str(iteration), prompt_id, language, str(sample)])
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8]) >> 1
