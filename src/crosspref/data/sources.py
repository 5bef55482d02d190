"""Where prompts and preferences come from: files, folders, installed packages and hub datasets.

`read_source` returns parts: one for a file, one per language for a folder or a hub dataset with a config per language.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from crosspref.data.packages import PREFIX, inside_package
from crosspref.data.rows import READERS, BrokenRow, Row, read_file
from crosspref.errors import DataError
from crosspref.languages import LANGUAGES

_HUB = "hub:"
_HUB_OPTIONS = r"(:(?P<config>[^@#]+))?(@(?P<revision>[^#]+))?(#(?P<split>.+))?"
_HUB_ID = re.compile(r"(?P<path>\w[\w.-]*/\w[\w.-]*)" + _HUB_OPTIONS)
_HUB_ID_OR_DIRECTORY = re.compile(r"(?P<path>[^:@#]+)" + _HUB_OPTIONS)


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one file or hub config, in file order; ``language`` is set where the file's name says it."""

    name: str
    language: str | None
    rows: list[Row | BrokenRow]

    def columns(self) -> list[str]:
        """Return the names of all columns that any row has, in the order of their first appearance."""
        return list(dict.fromkeys(column for row in self.rows if isinstance(row, Row) for column in row.values))

    def find_column(self, candidates: Sequence[str], named: str | None = None) -> str | None:
        """Return the column that is named, or else the first candidate that is there.

        Raises:
            DataError: the named column is not there.
        """
        there = self.columns()
        if named is not None and named not in there:
            raise DataError(f"{self.name} has no column {named!r}. Columns there: {', '.join(there)}.")
        return named or next((column for column in candidates if column in there), None)

    def check(self) -> None:
        """Raise a DataError if there are no rows, or none that can be read."""
        broken = [row for row in self.rows if isinstance(row, BrokenRow)]
        if len(broken) < len(self.rows):
            return
        if not broken:
            raise DataError(f"{self.name} has no rows.")
        first = f"Row {broken[0].number}: {broken[0].reason}"
        raise DataError(f"{self.name}: none of its {len(broken)} rows can be read. {first}")


def as_tag(name: str) -> str:
    """Return a file's, column's or config's name in the spelling of language tags: ``pt_BR`` becomes ``pt-br``."""
    return name.strip().lower().replace("_", "-")


def missing_languages(where: str, what: str, missing: Sequence[str], there: Sequence[str]) -> DataError:
    """Return the error for languages that a source does not have at all; ``what`` is what holds one language."""
    found = ", ".join(there) or "none"
    return DataError(
        f"{where} has no {what} for: {', '.join(missing)}. Languages found there: {found}. Add what is missing, or "
        "take the language out of `languages` (English is always needed: the reward is computed with it)."
    )


def read_source(source: str, languages: Sequence[str]) -> list[Part]:
    """Return the rows of a file, a folder, ``package:NAME/path``, or ``owner/name[:config][@revision][#split]``.

    Of a folder, and of a hub dataset with a config per language, only the wanted languages are read, in their order.
    ``hub:`` in front of an id or a local directory has it loaded as a hub dataset in any case.

    Raises:
        DataError: the source or a wanted language's file is not there, or a whole file cannot be read.
    """
    if source.startswith(PREFIX):
        try:
            return _local_parts(inside_package(source), source, languages)
        except LookupError as error:
            raise DataError(error.args[0]) from error
    if source.startswith(_HUB):
        return _hub_parts(_HUB_ID_OR_DIRECTORY.fullmatch(source.removeprefix(_HUB)), source, languages)
    if not source.strip():
        raise DataError("the source is empty: give a file, a folder, package:NAME/path or a hub dataset id.")
    path = Path(source).expanduser()
    if path.exists():
        return _local_parts(path, source, languages)
    match = _HUB_ID.fullmatch(source)
    if match is None or path.suffix.lower() in READERS or Path(path.parts[0]).is_dir():
        raise DataError(
            f"{source!r} was taken for a path, and there is no such file or folder (looked in {Path.cwd()}). A hub "
            f"dataset is written owner/name, or {_HUB}owner/name where that looks like a path."
        )
    return _hub_parts(match, source, languages)


def _local_parts(place: Path, source: str, languages: Sequence[str]) -> list[Part]:
    if not place.is_dir():
        return [Part(source, None, read_file(place, source))]
    files = sorted((item for item in place.iterdir() if item.is_file()), key=lambda item: item.name)
    found: dict[str, Path] = {}
    for file in files:
        tag = as_tag(PurePath(file.name).stem)
        if PurePath(file.name).suffix.lower() not in READERS or tag not in LANGUAGES:
            continue
        if tag in found:
            raise DataError(f"the folder {source} has two files for {tag}: {found[tag].name}, {file.name}. Keep one.")
        found[tag] = file
    if not found:
        there = ", ".join(file.name for file in files[:20]) or "none"
        raise DataError(
            f"the folder {source} has no file named after a language, such as en.jsonl. Files there: {there}. "
            f"A directory that is laid out as a hub dataset is read with {_HUB}{source}."
        )
    missing = [language for language in languages if language not in found]
    if missing:
        raise missing_languages(f"the folder {source}", "file {language}.jsonl (.parquet, .csv)", missing, list(found))
    names = {tag: f"{source.rstrip('/')}/{found[tag].name}" for tag in languages}
    return [Part(names[tag], tag, read_file(found[tag], names[tag])) for tag in languages]


def _hub_parts(match: re.Match[str] | None, source: str, languages: Sequence[str]) -> list[Part]:
    """Load a hub dataset: one part per language where its configs are languages, else one part."""
    if match is None:
        raise DataError(f"{source!r} must be {_HUB}owner/name[:config][@revision][#split].")
    path, config, revision, split = match["path"], match["config"], match["revision"], match["split"] or "train"
    import datasets  # here and not above, since it takes seconds and only this needs it

    def load(name: str | None, language: str | None) -> Part:
        dataset = datasets.load_dataset(path, name, split=split, revision=revision)
        shown = f"{path}:{name}#{split}" if name else f"{path}#{split}"
        batches = dataset.with_format("arrow").iter(batch_size=1000)
        values = (row for batch in batches for row in batch.to_pylist())
        return Part(shown, language, [Row(shown, number, row) for number, row in enumerate(values, start=1)])

    try:
        configs = [] if config else datasets.get_dataset_config_names(path, revision=revision)
        found = {as_tag(name): name for name in configs if as_tag(name) in LANGUAGES}
        if not found:
            return [load(config, None)]
        missing = [language for language in languages if language not in found]
        if missing:
            raise missing_languages(f"the hub dataset {path}", "config", missing, list(found))
        return [load(found[language], language) for language in languages]
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise DataError(
            f"{source!r} was taken for a hub dataset, and it cannot be loaded: {error}{cause}\n"
            "If it is a path, begin it with ./ and check its spelling; if it is private, log in with `hf auth login`."
        ) from error
