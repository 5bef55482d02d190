"""Parallel prompts: one instruction in many languages, joined by id and never by position.

`load_prompts` reads any source that ``sources`` knows, detects whether it is long (a row per language), wide (a column
per language) or has structs ({"en": ..., "es": ...}), and reports every problem with file, row, language and id. What
stands for an instruction is a text, or a conversation as chat messages.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from crosspref.data.messages import MessagesError, read_instruction
from crosspref.data.records import Dropped, Instruction, Prompt, as_messages
from crosspref.data.rows import Problem, Row, RowError, column_names
from crosspref.data.sources import (
    ID_COLUMNS,
    LANGUAGE_COLUMNS,
    TEXT_COLUMNS,
    Part,
    match_languages,
    name_tags,
    read_source,
    require_languages,
)
from crosspref.errors import DataError, shown
from crosspref.escape import listed
from crosspref.languages import ENGLISH, as_tag, language_name
from crosspref.recipe.sections import PromptSettings

_PROMPT_COLUMNS = (*TEXT_COLUMNS, "messages")
UNDETERMINED = "und"
"""ISO 639-2's tag for an unknown language, which a broken row of a long file has."""


@dataclass(frozen=True, slots=True)
class LoadedPrompts:
    """The usable prompts, language by language in English file order, and what was left out.

    ``dropped`` covers the whole source, each prompt and language once; a row without a readable id stands there with
    ``file:row`` in the place of the id.
    """

    prompts: list[Prompt]
    dropped: list[Dropped]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which column is what: ``texts`` maps languages to text columns, and is empty where a row names its language.

    ``tags`` then maps what rows say to the wanted languages. With a ``struct_column``, its keys are meant. Without an
    ``id_column``, the number of a row is its id.
    """

    id_column: str | None
    texts: dict[str, str]
    struct_column: str | None = None
    language_column: str = ""
    text_column: str = ""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Cell:
    """One prompt in one language; one that is not usable is an empty text, and among the problems."""

    prompt_id: str
    language: str
    instruction: Instruction
    row: Row

    def problem(self, reason: str, detail: str, affects: Sequence[str]) -> Problem:
        return self.row.problem(reason, detail, self.language, self.prompt_id, tuple(affects))


_Index = dict[str, dict[str, _Cell]]  # by language and prompt id, in file order


def load_prompts(settings: PromptSettings, languages: Sequence[str]) -> LoadedPrompts:
    """Load the prompts of a recipe's section in English and the given languages.

    English comes first if it is not listed, since the reward is computed with it. With ``limit``, only the first so
    many ids in English file order are taken, and of those only ids that are usable in every language.

    Raises:
        DataError: a language is unknown or wholly missing, or there is no id column.
        RowError: nothing usable is left or, with ``on_problem="stop"``, any prompt has a problem.
    """
    source, wanted = ", ".join(settings.sources), _with_english(languages)
    problems: list[Problem] = []
    parts = [part for one in settings.sources for part in read_source(one, wanted)]
    cells = [cell for part in parts for cell in _cells(part, wanted, settings, problems)]
    index = _index(cells, wanted, problems)
    problems += [*_unmatched(index, wanted), *_misaligned(index, wanted)]
    if problems and settings.on_problem == "stop":
        advice = "Correct the rows, or leave the affected prompts out with `prompts.on_problem: drop`."
        raise RowError.of(f"the prompts of {source}", problems, advice)
    dropped = _dropped(problems)
    prompts = _usable(index, wanted, settings.limit, dropped)
    used = {prompt.language for prompt in prompts}
    empty = [language for language in wanted if language not in used]
    if empty:
        what = f"no prompt of {source} can be used in {', '.join(empty)}: the prompts"
        raise RowError.of(what, problems, "Correct the rows; dropping them leaves nothing.")
    return LoadedPrompts(prompts, list(dropped.values()))


def _with_english(languages: Sequence[str]) -> list[str]:
    for language in languages:
        language_name(language)
    repeated = sorted({language for language in languages if list(languages).count(language) > 1})
    if repeated:
        raise DataError(f"languages listed more than once: {', '.join(repeated)}.")
    return list(languages) if ENGLISH in languages else [ENGLISH, *languages]


def _layout(part: Part, wanted: Sequence[str], settings: PromptSettings) -> _Layout:
    """Find out which column is what; the names that the person gave come first."""
    there = column_names(part.rows)
    text = part.find_column(_PROMPT_COLUMNS, settings.text_column)
    language = None if part.language else part.find_column(LANGUAGE_COLUMNS, settings.language_column)
    texts_there = [row.values.get(text) for row in part.rows] if language and text else []
    is_long = bool(part.language or (language and text and not _struct_keys(texts_there)))
    # "id" is also the tag of Indonesian: where that is wanted as a column, another id column comes first
    ids = ID_COLUMNS if is_long or "id" not in wanted else sorted(ID_COLUMNS, key=lambda column: column == "id")
    prompt_id = part.find_column(ids, settings.id_column)
    struct, tags = None, dict[str, str]()
    if not is_long:
        texts = name_tags(f"{part.name} has two columns", [column for column in there if column != prompt_id])
        tags = match_languages(part.name, texts, wanted)
    if not is_long and not tags:
        struct, keys = _find_struct(part, settings.text_column, text)
        texts = name_tags(f"{part.name} has two keys", keys)
        tags = match_languages(part.name, texts, wanted)
    seen = f"Columns there: {listed(there)}"
    if prompt_id is None and struct is None:
        raise DataError(
            f"{part.name} has no id column, by which translations are joined: none of {', '.join(ID_COLUMNS)}. {seen}. "
            "Name it with `prompts.id_column`."
        )
    if is_long:
        if text is None:
            raise DataError(
                f"{part.name} has no text column: none of {', '.join(_PROMPT_COLUMNS)}. {seen}. "
                "Name it with `prompts.text_column`."
            )
        if part.language:
            return _Layout(prompt_id, {part.language: text})
        tags = _row_tags(part, wanted, language or "")
        return _Layout(prompt_id, {}, language_column=language or "", text_column=text, tags=tags)
    if not tags:
        raise DataError(
            f"{part.name} is neither long (columns id, language, instruction) nor wide (columns id, en, es, ...). "
            f"{seen}. Name them with `prompts.text_column` and `prompts.language_column`."
        )
    what = f"column (besides the id column {prompt_id!r})" if struct is None else f"key in the column {struct!r}"
    require_languages(part.name, what, wanted, [*tags, *texts])
    return _Layout(prompt_id, {tag: texts[tags[tag]] for tag in wanted}, struct)


def _find_struct(part: Part, named: str | None, text: str | None) -> tuple[str | None, list[str]]:
    """Return the column whose structs hold the translations, and their keys; the text column comes first."""
    values: dict[str, list[object]] = {}
    for row in part.rows:  # in one pass, since each row of JSON may have columns of its own
        for column, value in row.values.items():
            if named in (None, column):
                values.setdefault(column, []).append(value)
    found = {column: keys for column, each in values.items() if (keys := _struct_keys(each))}
    if len(found) > 1 and text not in found:
        raise DataError(
            f"{part.name} has several columns of translations: {listed(found)}. Choose by `prompts.text_column`."
        )
    struct = text if text in found else next(iter(found), None)
    return struct, found.get(struct or "", [])


def _struct_keys(values: Sequence[object]) -> list[str]:
    """Return the keys of a column's structs that have an English text, or nothing if it holds something else."""
    values = [value for value in values if value is not None]
    structs = [value for value in values if isinstance(value, dict)]
    if not structs or len(structs) < len(values):
        return []
    keys = list(dict.fromkeys(key for struct in structs for key in struct))
    english = [key for key in keys if as_tag(key).partition("-")[0] == ENGLISH]
    return keys if any(isinstance(struct.get(key), str | list) for struct in structs for key in english) else []


def _cells(part: Part, wanted: Sequence[str], settings: PromptSettings, problems: list[Problem]) -> Iterator[_Cell]:
    """Yield what a part has in the wanted languages; rows and texts that cannot be used are added to the problems."""
    part.check()
    layout = _layout(part, wanted, settings)
    for row in part.rows:
        if row.broken:
            affected = tuple(layout.texts) or (UNDETERMINED,)
            problems.append(row.problem("broken row", row.broken, part.language, affects=affected))
            continue
        texts = _texts(row, layout, problems)
        prompt_id = row.id_in(layout.id_column)
        if texts and prompt_id is None:
            value = row.values.get(layout.id_column or "")
            detail = f"{shown(value)} in the column {layout.id_column!r} is not an id (a text or a whole number)"
            language = texts[0][0] if len(texts) == 1 else None
            problems.append(row.problem("no id", detail, language, affects=tuple(dict(texts))))
        elif prompt_id is not None:
            for language, value in texts:
                instruction, trouble = _read_instruction(value, language)
                cell = _Cell(prompt_id, language, instruction, row)
                if trouble is not None:
                    problems.append(cell.problem(*trouble, wanted if language == ENGLISH else [language]))
                yield cell


def _row_tags(part: Part, wanted: Sequence[str], language_column: str) -> dict[str, str]:
    values = [row.values.get(language_column) for row in part.rows]
    there = list(dict.fromkeys(as_tag(value) for value in values if isinstance(value, str)))
    tags = match_languages(part.name, there, wanted)
    require_languages(part.name, f"row (column {language_column!r})", wanted, [*tags, *there])
    return {tag: language for language, tag in tags.items()}


def _texts(row: Row, layout: _Layout, problems: list[Problem]) -> list[tuple[str, object]]:
    """Return the wanted languages of a row with the values that should be their texts."""
    if layout.texts:
        values = row.values if layout.struct_column is None else row.values.get(layout.struct_column)
        texts = values if isinstance(values, dict) else {}
        return [(language, texts.get(column)) for language, column in layout.texts.items()]
    value = row.values.get(layout.language_column)
    tag = as_tag(value) if isinstance(value, str) else ""
    try:
        language_name(tag)
    except DataError as error:
        detail = str(error) if tag else f"the language is {shown(value)}, which is no tag"
        prompt_id = row.id_in(layout.id_column)
        problems.append(row.problem("unknown language", detail, tag or None, prompt_id, (tag or UNDETERMINED,)))
        return []
    return [(layout.tags[tag], row.values.get(layout.text_column))] if tag in layout.tags else []


def _read_instruction(value: object, language: str) -> tuple[Instruction, tuple[str, str] | None]:
    """Return a text or a conversation, or else an empty text with reason and detail of what is wrong."""
    if value is None:
        reason = "no English text" if language == ENGLISH else "no translation"
        return "", (reason, f"there is no {language_name(language)} text")
    try:
        return read_instruction(value), None
    except MessagesError as error:
        return "", (f"{error.reason} in English" if language == ENGLISH else error.reason, str(error))


def _index(cells: Iterable[_Cell], wanted: Sequence[str], problems: list[Problem]) -> _Index:
    """Return the cells by language and id; a duplicate id in one language is a problem in all languages."""
    index: _Index = {language: {} for language in wanted}
    for cell in cells:
        first = index[cell.language].setdefault(cell.prompt_id, cell)
        if first is not cell:
            # "double id" is stored in the table of dropped prompts, so that runs of older versions can be resumed.
            file = "" if first.row.file == cell.row.file else f"{first.row.file}, "
            detail = f"duplicate id: {file}row {first.row.number} has it already"
            problems.append(cell.problem("double id", detail, wanted))
    return index


def _unmatched(index: _Index, wanted: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for each id that lacks a translation, and for each id that is not in English."""
    for prompt_id, english in index[ENGLISH].items():
        for language in wanted:
            if prompt_id not in index[language]:
                detail = f"no {language_name(language)} text has the id of this English one"
                yield english.row.problem("no translation", detail, language, prompt_id, (language,))
    known = set(index[ENGLISH])
    for language in wanted:
        for prompt_id, cell in index[language].items():
            if prompt_id not in known:
                known.add(prompt_id)
                yield cell.problem("no English text", "no English text has this id", wanted)


def _misaligned(index: _Index, wanted: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for each conversation that has other turns than the English one."""
    for language in wanted:
        for prompt_id, cell in index[language].items():
            english = index[ENGLISH].get(prompt_id)
            if english is None or not english.instruction or not cell.instruction:
                continue  # which is a problem already
            roles, expected = (
                ", ".join(message["role"] for message in as_messages(each.instruction)) for each in (cell, english)
            )
            if roles != expected:
                detail = f"its messages are of {roles}, but the English ones of {expected}"
                yield cell.problem("other turns than in English", detail, [language])


def _dropped(problems: Iterable[Problem]) -> dict[tuple[str, str], Dropped]:
    """Return what the problems make unusable, by prompt id and language; the first reason counts."""
    dropped: dict[tuple[str, str], Dropped] = {}
    for problem in problems:
        prompt_id = problem.prompt_id if problem.prompt_id is not None else f"{problem.file}:{problem.row}"
        for language in problem.affects:
            dropped.setdefault((prompt_id, language), Dropped(prompt_id, language, "prompts", problem.reason))
    return dropped


def _usable(
    index: _Index, wanted: Sequence[str], limit: int | None, dropped: dict[tuple[str, str], Dropped]
) -> list[Prompt]:
    """Return the prompts without a problem; ids that ``limit`` passes over are added to the dropped."""
    ids = list(index[ENGLISH])
    if limit is not None:
        whole = [prompt_id for prompt_id in ids if not any((prompt_id, language) in dropped for language in wanted)]
        taken = whole[:limit]
        end = ids.index(taken[-1]) if len(taken) == limit else len(ids)
        passed_over = set(ids[:end]) - set(taken)
        for key in product([prompt_id for prompt_id in ids if prompt_id in passed_over], wanted):
            dropped.setdefault(key, Dropped(*key, "prompts", "not usable in every language"))
        ids = taken
    return [
        Prompt(prompt_id, language, index[language][prompt_id].instruction)
        for language in wanted
        for prompt_id in ids
        if (prompt_id, language) not in dropped
    ]
