"""Parallel prompts: one instruction in many languages, joined by id and never by position.

`load_prompts` reads any source that ``sources`` knows, detects whether it is long (a row per language) or wide (a
column per language), and reports every problem with file, row, language and id.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from crosspref.data.records import Dropped, Prompt
from crosspref.data.rows import Problem, Row, RowError, column_names, read_id, text_problem
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
from crosspref.errors import DataError
from crosspref.languages import ENGLISH, as_tag, is_language, language_name
from crosspref.recipe.sections import PromptSettings

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

    ``tags`` then maps what rows say to the wanted languages.
    """

    id_column: str
    texts: dict[str, str]
    language_column: str
    text_column: str
    tags: dict[str, str]

    def languages(self) -> tuple[str, ...]:
        """Return the languages of a row of which nothing is known."""
        return tuple(self.texts) or (UNDETERMINED,)


@dataclass(frozen=True, slots=True)
class _Cell:
    """One prompt in one language; a text that is not usable is empty, and among the problems."""

    prompt_id: str
    language: str
    text: str
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
    source, wanted = settings.source, _with_english(languages)
    problems: list[Problem] = []
    cells = [cell for part in read_source(source, wanted) for cell in _cells(part, wanted, settings, problems)]
    index = _index(cells, wanted, problems)
    problems += _unmatched(index, wanted)
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
    text = part.find_column(TEXT_COLUMNS, settings.text_column)
    language = None if part.language else part.find_column(LANGUAGE_COLUMNS, settings.language_column)
    is_wide = not part.language and not (language and text)
    # "id" is also the tag of Indonesian: where that is wanted as a column, another id column comes first
    ids = sorted(ID_COLUMNS, key=lambda column: column == "id") if is_wide and "id" in wanted else ID_COLUMNS
    prompt_id = part.find_column(ids, settings.id_column)
    seen = f"Columns there: {', '.join(there)}"
    if prompt_id is None:
        raise DataError(
            f"{part.name} has no id column, by which translations are joined: none of {', '.join(ID_COLUMNS)}. {seen}. "
            "Name it with `prompts.id_column`."
        )
    if not is_wide:
        if text is None:
            raise DataError(
                f"{part.name} has no text column: none of {', '.join(TEXT_COLUMNS)}. {seen}. "
                "Name it with `prompts.text_column`."
            )
        if part.language or language is None:
            return _Layout(prompt_id, {part.language: text} if part.language else {}, "", text, {})
        return _Layout(prompt_id, {}, language, text, _row_tags(part, wanted, language))
    texts = name_tags(f"{part.name} has two columns", [column for column in there if column != prompt_id])
    tags = match_languages(part.name, texts, wanted)
    if not tags:
        raise DataError(
            f"{part.name} is neither long (columns id, language, instruction) nor wide (columns id, en, es, ...). "
            f"{seen}. Name them with `prompts.text_column` and `prompts.language_column`."
        )
    require_languages(part.name, f"column (besides the id column {prompt_id!r})", wanted, [*tags, *texts])
    return _Layout(prompt_id, {language: texts[tags[language]] for language in wanted}, "", "", {})


def _cells(part: Part, wanted: Sequence[str], settings: PromptSettings, problems: list[Problem]) -> Iterator[_Cell]:
    """Yield what a part has in the wanted languages; rows and texts that cannot be used are added to the problems."""
    part.check()
    layout = _layout(part, wanted, settings)
    for row in part.rows:
        if row.broken:
            problems.append(row.problem("broken row", row.broken, part.language, affects=layout.languages()))
            continue
        texts = _texts(row, layout, problems)
        value = row.values.get(layout.id_column)
        prompt_id = read_id(value)
        if texts and prompt_id is None:
            detail = f"{value!r} in the column {layout.id_column!r} is not an id (a text or a whole number)"
            language = texts[0][0] if len(texts) == 1 else None
            problems.append(row.problem("no id", detail, language, affects=tuple(dict(texts))))
        elif prompt_id is not None:
            for language, text in texts:
                cell = _Cell(prompt_id, language, text if isinstance(text, str) else "", row)
                problems += _text_problems(cell, text, wanted)
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
        return [(language, row.values.get(column)) for language, column in layout.texts.items()]
    value = row.values.get(layout.language_column)
    tag = as_tag(value) if isinstance(value, str) else ""
    if is_language(tag):
        return [(layout.tags[tag], row.values.get(layout.text_column))] if tag in layout.tags else []
    detail = f"the language is {value!r}, which is no tag"
    if tag:
        try:
            language_name(tag)
        except DataError as error:
            detail = str(error)
    prompt_id = read_id(row.values.get(layout.id_column))
    problems.append(row.problem("unknown language", detail, tag or None, prompt_id, (tag or UNDETERMINED,)))
    return []


def _text_problems(cell: _Cell, text: object, wanted: Sequence[str]) -> list[Problem]:
    is_english = cell.language == ENGLISH
    affects = wanted if is_english else [cell.language]
    if text is None:
        reason = "no English text" if is_english else "no translation"
        return [cell.problem(reason, f"there is no {language_name(cell.language)} text", affects)]
    trouble = text_problem(text)
    if trouble is None:
        return []
    reason, detail = trouble
    return [cell.problem(f"{reason} in English" if is_english else reason, detail, affects)]


def _index(cells: Iterable[_Cell], wanted: Sequence[str], problems: list[Problem]) -> _Index:
    """Return the cells by language and id; a duplicate id in one language is a problem in all languages."""
    index: _Index = {language: {} for language in wanted}
    for cell in cells:
        first = index[cell.language].setdefault(cell.prompt_id, cell)
        if first is not cell:
            # "double id" is stored in the table of dropped prompts, so that runs of older versions can be resumed.
            problems.append(cell.problem("double id", f"duplicate id: row {first.row.number} has it already", wanted))
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
        Prompt(prompt_id, language, index[language][prompt_id].text)
        for language in wanted
        for prompt_id in ids
        if (prompt_id, language) not in dropped
    ]
