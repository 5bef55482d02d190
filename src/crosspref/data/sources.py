"""Where files that people bring are: a file, a folder with one per language, an installed package, or the hub.

`read_source` returns parts for prompts and preferences: one for a file, one per language for a folder or a hub dataset
with a config per language. `read_languages` returns the rows of each language for a suite of evaluations.
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from crosspref.data.rows import READERS, Row, column_names, read_file, split_name, table_rows
from crosspref.errors import DataError
from crosspref.escape import listed, one_line
from crosspref.keys import without_token
from crosspref.languages import LANGUAGES, as_tag, is_language, language_name
from crosspref.paths import existing, working_directory

ID_COLUMNS = ("prompt_id", "id", "instruction_id", "question_id")
TEXT_COLUMNS = ("instruction", "prompt", "text", "question")
LANGUAGE_COLUMNS = ("language", "lang")

PACKAGE = "package:"
_HUB = "hub:"
_HUB_OPTIONS = r"(:(?P<config>[^@#]+))?(@(?P<revision>[^#]+))?(#(?P<split>.+))?"
_HUB_ID = re.compile(r"(?P<path>\w[\w.-]*/\w[\w.-]*)" + _HUB_OPTIONS)
_HUB_ID_OR_DIRECTORY = re.compile(r"(?P<path>[^:@#]+)" + _HUB_OPTIONS)


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one file or hub config, in file order; ``language`` is set where the file's name says it."""

    name: str
    language: str | None
    rows: list[Row]

    def find_column(self, candidates: Sequence[str], named: str | None = None) -> str | None:
        """Return the column that is named, or else the first candidate that is there.

        Raises:
            DataError: the named column is not there.
        """
        there = column_names(self.rows)
        if named is not None and named not in there:
            raise DataError(f"{self.name} has no column {named!r}. Columns there: {listed(there)}.")
        return named or next((column for column in candidates if column in there), None)

    def check(self) -> None:
        """Raise a DataError if there are no rows, or none that can be read."""
        if not self.rows:
            raise DataError(f"{self.name} has no rows.")
        if all(row.broken for row in self.rows):
            first = f"Row {self.rows[0].number}: {self.rows[0].broken}"
            raise DataError(f"{self.name}: none of its {len(self.rows)} rows can be read. {first}")


def name_tags(where: str, names: Iterable[str]) -> dict[str, str]:
    """Return the names that are languages, such as ``pt_BR``, by their tags.

    Raises:
        DataError: two names are one language; ``where`` says what has them, and of which kind.
    """
    by_tag: dict[str, str] = {}
    for name in names:
        tag = as_tag(name)
        if is_language(tag) and by_tag.setdefault(tag, name) != name:
            raise DataError(f"{where} for {tag}: {by_tag[tag]}, {name}. Keep one, or rename one.")
    return by_tag


def match_languages(where: str, there: Iterable[str], wanted: Sequence[str]) -> dict[str, str]:
    """Return the tag that stands for each wanted language: itself, or else the only one that narrows it.

    So ``zh`` is read from ``zh-cn``, unless there is also ``zh-tw``, or ``zh-cn`` is wanted too. What is not there is
    left out.

    Raises:
        DataError: there are several that narrow a language.
    """
    tags, found = list(there), {}
    for language in wanted:
        narrower = [tag for tag in tags if tag.startswith(f"{language}-") and tag not in wanted]
        # ``en-fr`` is not the English of France where French is wanted too, but a file or column of both.
        others = {other for other in wanted if other != language}
        narrower = [tag for tag in narrower if tag.rpartition("-")[2] not in others]
        if language in tags:
            found[language] = language
        elif len(narrower) > 1:
            raise DataError(
                f"{where} has {' and '.join(narrower)}, and which of them is meant by {language} cannot be told. Name "
                "one of them in `languages`."
            )
        elif narrower:
            found[language] = narrower[0]
    return found


def require_languages(where: str, what: str, wanted: Sequence[str], there: Sequence[str]) -> None:
    """Raise a DataError for languages that a source does not have at all; ``what`` is what holds one language."""
    missing = [language for language in wanted if language not in there]
    if missing:
        raise DataError(
            f"{where} has no {what} for: {', '.join(missing)}. Languages found there: "
            f"{listed(dict.fromkeys(there))}. Add what is missing, or take the language out of `languages` (English is "
            "always needed: the reward is computed with it)."
        )


def inside_package(name: str) -> Path:
    """Return where a file or folder of an installed package lies, named ``package:NAME/path``.

    The package is not imported: that would run its code, and may need libraries that the file does not.

    Raises:
        LookupError: the name is not of that form, or the package or the file is not there; says what to do.
    """
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier() or not inside or inside.startswith("/") or ".." in inside.split("/"):
        raise LookupError(f"{name!r} must be {PACKAGE}NAME/path/inside, with a path that stays inside the package.")
    spec = importlib.util.find_spec(package)
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    folders = [folder for folder in places if folder.is_dir()]  # a package inside a zip has none
    if not folders:
        raise LookupError(
            f"{name!r} is in the package {package!r}, which is not installed. Install it (pip's name of it may differ, "
            f"for example {package.replace('_', '-')})."
        )
    for folder in folders:
        if existing(folder / inside) is not None:
            return folder / inside
    there = sorted(entry.name for entry in folders[0].iterdir() if not entry.name.startswith(("_", ".")))
    raise LookupError(f"{name!r}: the package is installed, but has no {inside!r}. It has: {listed(there)}.")


def read_source(source: str, languages: Sequence[str]) -> list[Part]:
    """Return the rows of a file, a folder, ``package:NAME/path``, or ``owner/name[:config][@revision][#split]``.

    Of a folder, and of a hub dataset with a config per language, only the wanted languages are read, in their order.
    ``hub:`` in front of an id or a local directory has it loaded as a hub dataset in any case.

    Raises:
        DataError: the source or a wanted language's file is not there, or a whole file cannot be read.
    """
    place = place_of(source)
    if place is not None:
        return _local_parts(place, source, languages)
    named = _HUB_ID_OR_DIRECTORY if source.startswith(_HUB) else _HUB_ID
    return _hub_parts(named.fullmatch(source.removeprefix(_HUB)), source, languages)


def place_of(source: str) -> Path | None:
    """Return the file or folder that a source names, or None for a hub dataset. Nothing is read.

    Raises:
        DataError: the source is not there.
    """
    if source.startswith(PACKAGE):
        try:
            return inside_package(source)
        except LookupError as error:
            raise DataError(error.args[0]) from error
    if source.startswith(_HUB):
        return None
    if not source.strip():
        raise DataError("the source is empty: give a file, a folder, package:NAME/path or a hub dataset id.")
    place, path = existing(source), Path(source)
    if place is not None:
        return place
    if not _HUB_ID.fullmatch(source) or split_name(path)[1] in READERS or existing(path.parts[0]) is not None:
        raise DataError(
            f"{source!r} was taken for a path, and there is no such file or folder (looked in "
            f"{working_directory()}). A hub dataset is written owner/name, or {_HUB}owner/name where that looks like a "
            "path."
        )
    return None


def _local_parts(place: Path, source: str, languages: Sequence[str]) -> list[Part]:
    if not place.is_dir():
        return [Part(source, None, read_file(place, source))]
    files = language_files(place, source)
    if not files:
        names = sorted(item.name for item in place.iterdir() if item.is_file())
        raise DataError(
            f"the folder {source} has no file named after a language, such as en.jsonl. Files there: "
            f"{listed(names)}. A directory that is laid out as a hub dataset is read with {_HUB}{source}."
        )
    tags = match_languages(f"the folder {source}", files, languages)
    require_languages(f"the folder {source}", "file {language}.jsonl (.parquet, .csv)", languages, [*tags, *files])
    parts = []
    for language in languages:
        tag = tags[language]
        name = f"{source.rstrip('/')}/{files[tag].name}"
        parts.append(Part(name, language, read_language(files[tag], name, tag)))
    return parts


def language_files(folder: Path, name: str, inside: str | None = None) -> dict[str, Path]:
    """Return the file of each language in a folder: ``es.json`` or, with ``inside``, also ``es/INSIDE.json``.

    ``name`` is what messages call the folder. In place of ``es/INSIDE.json`` there may be one file in ``es/INSIDE``.

    Raises:
        DataError: a language has two files.
    """
    files: dict[str, tuple[str, Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and inside is not None:
            within = _files_inside(entry, inside)
            files |= {str(file.relative_to(folder)): (as_tag(entry.name), file) for file in within}
    files |= {file.name: (as_tag(split_name(file)[0]), file) for file in _data_files(folder)}
    by_tag: dict[str, str] = {}
    for shown, (tag, _) in sorted(files.items()):
        if is_language(tag) and by_tag.setdefault(tag, shown) != shown:
            raise DataError(f"the folder {name} has two files for {tag}: {by_tag[tag]}, {shown}. Keep one.")
    return {tag: files[shown][1] for tag, shown in by_tag.items()}


def all_language_files(folder: Path, name: str, inside: str | None = None) -> dict[str, Path]:
    """Return what `language_files` does, where nobody said which languages there should be.

    Raises:
        DataError: a language has two files, or a file has a language's name and not its tag: it would not be missed.
    """
    tags = {english.lower(): tag for tag, english in LANGUAGES.items()}
    for file in _data_files(folder):
        stem = split_name(file)[0].strip().lower()
        if stem in tags:
            raise DataError(
                f"the folder {name} has a file for each language, which must be named after the language's tag. Rename "
                f"{file.name} so that it begins with {tags[stem]}, or put it elsewhere."
            )
    return language_files(folder, name, inside)


def _files_inside(folder: Path, inside: str) -> list[Path]:
    """Return ``INSIDE.json`` in a folder, and the files in its folder ``INSIDE``."""
    files = [file for file in _data_files(folder) if split_name(file)[0] == inside]
    return files + (_data_files(folder / inside) if (folder / inside).is_dir() else [])


def _data_files(folder: Path) -> list[Path]:
    """Return the files with rows in a folder, without hidden ones, which editors and archives leave."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return [file for file in files if split_name(file)[1] in READERS]


def read_language(file: Path, name: str, language: str) -> list[Row]:
    """Return the rows of the file of one language; those that say that they are in another one are broken."""
    return list(_of_language(read_file(file, name), language))


def _of_language(rows: Iterable[Row], language: str) -> Iterator[Row]:
    for row in rows:
        other = other_language(row, language)
        fault = f"its language is {other}, and the file is named after {language}"
        yield Row(row.file, row.number, {}, fault) if other else row


def other_language(row: Row, language: str) -> str | None:
    """Return the tag of the language that a row says it is in, if that is neither the given one nor a part of it."""
    tag = _named_language(row) or language
    is_same = f"{tag}-".startswith(f"{language}-") or f"{language}-".startswith(f"{tag}-")
    return tag if is_language(tag) and not is_same else None


def _named_language(row: Row) -> str | None:
    value = first_of(row, LANGUAGE_COLUMNS)
    return as_tag(value) if isinstance(value, str) else None


def _hub_parts(match: re.Match[str] | None, source: str, languages: Sequence[str]) -> list[Part]:
    """Load a hub dataset: one part per language where its configs are languages, else one part."""
    if match is None:
        raise DataError(f"{source!r} must be {_HUB}owner/name[:config][@revision][#split].")
    path, config, revision, split = match["path"], match["config"], match["revision"], match["split"] or "train"
    import datasets  # here and not above, since it takes seconds and only this needs it

    def load(name: str | None, language: str | None) -> Part:
        dataset = datasets.load_dataset(path, name, split=split, revision=revision)
        shown = f"{path}:{name}#{split}" if name else f"{path}#{split}"
        rows = table_rows(dataset.with_format("arrow")[:], shown)
        return Part(shown, language, list(rows if language is None else _of_language(rows, as_tag(name or ""))))

    try:
        configs = [] if config else datasets.get_dataset_config_names(path, revision=revision)
        by_tag = name_tags(f"the hub dataset {path} has two configs", configs)
        if not by_tag:
            return [load(config, None)]
        tags = match_languages(f"the hub dataset {path}", by_tag, languages)
        require_languages(f"the hub dataset {path}", "config", languages, [*tags, *by_tag])
        return [load(by_tag[tags[language]], language) for language in languages]
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cause = f" ({one_line(without_token(error.__cause__))})" if error.__cause__ else ""
        said = one_line(without_token(error)) + cause
        raise DataError(
            f"{source!r} was taken for a hub dataset, and it cannot be loaded: {said}\n"
            "If it is a path, begin it with ./ and check its spelling; if it is private, log in with `hf auth login`."
        ) from None


def read_languages(source: str, what: str, wanted: Sequence[str] | None, inside: str) -> dict[str, list[Row]]:
    """Return the rows of each language: of ``DIR/es.json``, of ``DIR/es/INSIDE.json``, or by a file's column language.

    ``what`` is the setting that names the source. A file without such a column is taken for the one language that is
    asked for; of a broken row the rows around it tell the language. In a directory without languages the file is
    ``DIR/INSIDE.json``, or the only one in ``DIR/INSIDE``.

    Raises:
        DataError: there is nothing to read, or a file cannot be read.
    """
    path = existing(source)
    if path is None:
        raise DataError(f"{what}: there is no file or directory {source}.")
    if path.is_dir():
        files = (all_language_files if wanted is None else language_files)(path, source, inside)
        tags = match_languages(f"{what}: the directory {source}", files, list(files) if wanted is None else wanted)
        if files:
            return {language: read_language(files[tag], str(files[tag]), tag) for language, tag in tags.items()}
        within = _files_inside(path, inside)
        if len(within) != 1:
            there = ", ".join(sorted(entry.name for entry in path.iterdir())[:20]) or "nothing"
            raise DataError(
                f"{what}: the directory {source} has no file of a language, such as es.json or es/{inside}.json, and "
                f"{len(within) or 'no'} files {inside}.json or {inside}/NAME.json. It has: {there}. Name one file."
            )
        path = within[0]
    rows = _by_column(read_file(path, f"{what} {path}"), wanted)
    tags = match_languages(f"{what} {source}", rows, list(rows) if wanted is None else wanted)
    return {language: rows[tag] for language, tag in tags.items()}


def _by_column(rows: Sequence[Row], wanted: Sequence[str] | None) -> dict[str, list[Row]]:
    by_language: dict[str, list[Row]] = {}
    tags = [_named_language(row) for row in rows]
    last_before = accumulate(tags, _last_given)
    first_after = reversed([*accumulate(reversed(tags), _last_given)])
    for row, tag, before, after in zip(rows, tags, last_before, first_after, strict=True):
        # A broken row is counted in the language that it stands in: items are found by their place there.
        language = tag or (None if row.values else _language_around(row, before, after))
        if language is not None:
            try:
                language_name(language)
            except DataError as error:
                raise row.error(str(error)) from None
            by_language.setdefault(language, []).append(row)
        elif wanted is not None and len(wanted) == 1 and not any(tags):
            by_language.setdefault(wanted[0], []).append(row)
        elif row.values:
            raise row.error(
                "it names no language",
                "Add a column language, give a directory with a file per language, or choose one with --languages.",
            )
    return by_language


def _last_given(before: str | None, tag: str | None) -> str | None:
    return tag or before


def _language_around(row: Row, before: str | None, after: str | None) -> str | None:
    """Return the language of a broken row, which is that of the rows before and after it."""
    if before and after and before != after:
        raise row.error(
            f"it is broken, and its language cannot be told: it is {before} before it and {after} after it",
            "Correct the row or remove it, or give a directory with a file per language.",
        )
    return before or after


def first_of(row: Row, columns: Sequence[str]) -> object:
    """Return the value of the first of some columns that has one."""
    return next((row.values[column] for column in columns if row.values.get(column) is not None), None)
