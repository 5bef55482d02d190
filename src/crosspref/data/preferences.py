"""English preference pairs for stage 0, from the same kinds of source as the prompts.

A row has ``chosen`` and ``rejected`` and, unless these hold the whole dialogue, ``prompt``. Each is a string or a list
of chat messages. The answer is the last message; what comes before it is the prompt.
"""

from crosspref.data.prompts import ID_COLUMNS
from crosspref.data.records import Message, Pair
from crosspref.data.rows import BrokenRow, Problem, Row, describe_problems, read_id, text_problem
from crosspref.data.sources import Part, read_source
from crosspref.errors import DataError
from crosspref.languages import ENGLISH


class _UnusableError(Exception):
    """A row cannot be used, with reason and detail as in `Problem`; it never leaves this module."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def load_preferences(source: str) -> list[Pair]:
    """Return the English preference pairs of a source, in file order.

    A row's id is in one of the id columns of the prompts or, where there is no such column, it is the row number.

    Raises:
        DataError: the source cannot be read, a column is missing, or any row has a problem; the message lists them.
    """
    pairs, problems = read_preferences(source)
    if problems:
        how = "Mend these rows, or take them out of the file."
        raise DataError(describe_problems(f"the preferences of {source}", problems, how))
    return pairs


def read_preferences(source: str) -> tuple[list[Pair], list[Problem]]:
    """Return the usable pairs of a source, in file order, and what is wrong with the other rows.

    Raises:
        DataError: the source cannot be read, or a column is missing.
    """
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for part in read_source(source, [ENGLISH]):
        part.check()
        there = part.columns()
        missing = [column for column in ("chosen", "rejected") if column not in there]
        if missing:
            raise DataError(f"{part.name} has no column {' and '.join(missing)}. Columns there: {', '.join(there)}.")
        _read_part(part, pairs, problems)
    return pairs, problems


def _read_part(part: Part, pairs: list[Pair], problems: list[Problem]) -> None:
    id_column = part.find_column(ID_COLUMNS)
    seen: dict[str, int] = {}
    for row in part.rows:
        prompt_id = None
        try:
            if isinstance(row, BrokenRow):
                raise _UnusableError("broken row", row.reason)
            value = row.number if id_column is None else row.values.get(id_column)
            prompt_id = read_id(value)
            if prompt_id is None:
                raise _UnusableError("no id", f"{value!r} in the column {id_column!r} is not an id")
            _refuse_double(seen, f"id {prompt_id}", row.number, "id")
            pair = _pair(row, prompt_id)
            _refuse_double(seen, f"pair {pair.prompt} {pair.chosen} {pair.rejected}", row.number, "pair")
            pairs.append(pair)
        except _UnusableError as error:
            at = (row.file, row.number, None, prompt_id)
            problems.append(Problem(*at, error.reason, error.detail, (ENGLISH,)))


def _refuse_double(seen: dict[str, int], key: str, number: int, what: str) -> None:
    first = seen.setdefault(key, number)
    if first != number:
        raise _UnusableError(f"double {what}", f"the {what} is double: row {first} has it already")


def _pair(row: Row, prompt_id: str) -> Pair:
    chosen_head, chosen = _answer(row, "chosen")
    rejected_head, rejected = _answer(row, "rejected")
    if chosen_head != rejected_head:
        raise _UnusableError("two dialogues", "chosen and rejected differ before their last message")
    if chosen["content"] == rejected["content"]:
        raise _UnusableError("equal answers", "chosen and rejected are equal")
    return Pair(
        prompt_id=prompt_id,
        language=ENGLISH,
        prompt=_prompt(row, chosen_head),
        chosen=[chosen],
        rejected=[rejected],
        chosen_sample=None,
        rejected_sample=None,
        chosen_token_ids=None,
        rejected_token_ids=None,
        chosen_reward=None,
        rejected_reward=None,
        alpha=None,
    )


def _answer(row: Row, column: str) -> tuple[list[Message], Message]:
    """Return the messages before the answer, if the column holds a dialogue, and the answer."""
    *head, answer = _messages(row, column, "assistant")
    if answer["role"] != "assistant":
        raise _UnusableError("no answer", f"{column} ends with a message of {answer['role']!r}, not of 'assistant'")
    return head, answer


def _prompt(row: Row, head: list[Message]) -> list[Message]:
    """Return the prompt: the column, or what chosen and rejected begin with. Where there are both, they must agree."""
    value = row.values.get("prompt")
    if value is None and not head:
        raise _UnusableError("no text", "there is no prompt, and chosen and rejected are answers alone")
    prompt = head if value is None else _messages(row, "prompt", "user")
    if head and prompt != head:
        if isinstance(value, list) or not any(message in head for message in prompt):
            raise _UnusableError("two prompts", "the prompt is not what chosen and rejected begin with")
        prompt = head  # a string is one message of the dialogue; the head has them all
    if prompt[-1]["role"] == "assistant":
        raise _UnusableError("no prompt", "the prompt ends with a message of 'assistant'")
    return prompt


def _messages(row: Row, column: str, role: str) -> list[Message]:
    """Return a column as chat messages: a string is one message of the given role; other keys are left out."""
    value = row.values.get(column)
    if not isinstance(value, list):
        _check_text(column, value)
        return [{"role": role, "content": str(value)}]
    if not value:
        raise _UnusableError("empty text", f"{column} has no messages")
    messages = []
    for number, message in enumerate(value, start=1):
        where = f"{column}, message {number}"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _UnusableError("not a message", f'{where} is not {{"role": ..., "content": ...}}')
        content = message.get("content")
        if not (message["role"] == "system" and content == ""):  # which is a way to switch off a template's own
            _check_text(where, content)
        messages.append({"role": message["role"], "content": str(content)})
    return messages


def _check_text(where: str, value: object) -> None:
    trouble = text_problem(value)
    if trouble is not None:
        raise _UnusableError(trouble[0], f"{where}: {trouble[1]}")
