"""English preference pairs for stage 0, from the same kinds of source as the prompts.

A row has ``chosen`` and ``rejected`` and, unless these hold the whole dialogue, ``prompt``. Each is a string or a list
of chat messages. The answer is the last message; what comes before it is the prompt.
"""

from crosspref.data.messages import MessagesError, read_messages
from crosspref.data.records import Message, Pair
from crosspref.data.rows import Problem, Row, RowError, column_names, text_problem
from crosspref.data.sources import ID_COLUMNS, other_language, read_source
from crosspref.errors import DataError, shown
from crosspref.escape import listed
from crosspref.languages import ENGLISH


class _UnusableError(Exception):
    """A row cannot be used; the message says why. It never leaves this module."""


def load_preferences(source: str) -> list[Pair]:
    """Return the English preference pairs of a source, in file order.

    A row's id is in one of the id columns of the prompts or, where there is no such column, it is the row number. Rows
    that say that they are in another language are left out.

    Raises:
        DataError: the source cannot be read, or a column is missing.
        RowError: any row has a problem.
    """
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for part in read_source(source, [ENGLISH]):
        part.check()
        there = column_names(part.rows)
        missing = [column for column in ("chosen", "rejected") if column not in there]
        if missing:
            raise DataError(f"{part.name} has no column {' and '.join(missing)}. Columns there: {listed(there)}.")
        id_column = part.find_column(ID_COLUMNS)
        seen: dict[str, int] = {}
        english = [row for row in part.rows if not other_language(row, ENGLISH)]
        if not english:
            raise DataError(f"{part.name} has no row in English: all of them say that they are in other languages.")
        for row in english:
            try:
                pairs.append(_read_pair(row, id_column, seen))
            except _UnusableError as error:
                prompt_id = None if row.broken else row.id_in(id_column)
                problems.append(row.problem("unusable", str(error), None, prompt_id))
    if problems:
        raise RowError.of(f"the preferences of {source}", problems, "Correct these rows, or remove them from the file.")
    return pairs


def _read_pair(row: Row, id_column: str | None, seen: dict[str, int]) -> Pair:
    """Return the pair of a row; ``seen`` has the row of each id and pair so far."""
    if row.broken:
        raise _UnusableError(row.broken)
    prompt_id = row.id_in(id_column)
    if prompt_id is None:
        raise _UnusableError(f"{shown(row.values.get(id_column or ''))} in the column {id_column!r} is not an id")
    _refuse_duplicate(seen, f"id {prompt_id}", row.number)
    chosen_head, chosen = _answer(row, "chosen")
    rejected_head, rejected = _answer(row, "rejected")
    if chosen_head != rejected_head:
        raise _UnusableError("chosen and rejected differ before their last message")
    if chosen["content"] == rejected["content"]:
        raise _UnusableError("chosen and rejected are equal")
    pair = Pair(prompt_id, ENGLISH, _prompt(row, chosen_head), [chosen], [rejected])
    _refuse_duplicate(seen, f"pair {pair.prompt} {pair.chosen} {pair.rejected}", row.number)
    return pair


def _refuse_duplicate(seen: dict[str, int], key: str, number: int) -> None:
    first = seen.setdefault(key, number)
    if first != number:
        raise _UnusableError(f"duplicate {key.partition(' ')[0]}: row {first} has it already")


def _answer(row: Row, column: str) -> tuple[list[Message], Message]:
    """Return the messages before the answer, if the column holds a dialogue, and the answer."""
    *head, answer = _messages(row, column, "assistant")
    if answer["role"] != "assistant":
        raise _UnusableError(f"{column} ends with a message of {shown(answer['role'])}, not of 'assistant'")
    return head, answer


def _prompt(row: Row, head: list[Message]) -> list[Message]:
    """Return the prompt: the column, or what chosen and rejected begin with. Where there are both, they must agree."""
    value = row.values.get("prompt")
    if value is None and not head:
        raise _UnusableError("there is no prompt, and chosen and rejected are answers alone")
    prompt = head if value is None else _messages(row, "prompt", "user")
    if head and prompt != head:
        if isinstance(value, list) or not any(message in head for message in prompt):
            raise _UnusableError("the prompt is not what chosen and rejected begin with")
        prompt = head  # a string is one message of the dialogue; the head has them all
    if prompt[-1]["role"] == "assistant":
        raise _UnusableError("the prompt ends with a message of 'assistant'")
    return prompt


def _messages(row: Row, column: str, role: str) -> list[Message]:
    """Return a column as chat messages: a string is one message of the given role; other keys are left out."""
    value = row.values.get(column)
    if not isinstance(value, list):
        trouble = text_problem(value)
        if trouble is not None:
            raise _UnusableError(f"{column}: {trouble[1]}")
        return [{"role": role, "content": str(value)}]
    try:
        return read_messages(value)
    except MessagesError as error:
        raise _UnusableError(f"{column}, {error}") from error
