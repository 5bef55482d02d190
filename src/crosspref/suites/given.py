"""Answers that exist already (``--answers``): whose they are, and which answers which item."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosspref.data.items import MODEL_COLUMNS, Item, Problems, id_of, join_answers
from crosspref.data.rows import READERS, Row, split_name
from crosspref.data.sources import first_of, match_languages, read_language, read_languages
from crosspref.errors import DataError
from crosspref.languages import as_tag, is_language
from crosspref.paths import existing
from crosspref.run.progress import Reporter

WHAT = "--answers"
CONTAINERS = ("model_outputs", "model_answer")
"""Where alpaca_eval and FastChat keep answers: if a file or a folder has such a name, everything else is left out."""


@dataclass(frozen=True, slots=True)
class Given:
    """The answers of one model: the rows of each language."""

    model: str
    rows: Mapping[str, Sequence[Row]]

    @property
    def files(self) -> list[str]:
        """The files that have them."""
        return list(dict.fromkeys(row.file.removeprefix(f"{WHAT} ") for rows in self.rows.values() for row in rows))

    def answers(self, language: str, items: Sequence[Item], problems: Problems, reporter: Reporter) -> dict[str, str]:
        """Return the answers in one language by item id; what cannot be used is counted.

        Raises:
            DataError: a file has no column with answers, or nothing that tells which item they are of.
        """
        rows = self.known(language, [item.item_id for item in items if item.named], problems, reporter)
        texts, joined = join_answers(rows, items, WHAT, problems)
        not_text = [row for item_id, row in joined.items() if item_id not in texts]
        problems[f"answers of {self.model} that are not text"] += len(not_text)
        self._say(language, "are not text", not_text, reporter)
        if rows and not texts:
            reporter.say(f"{WHAT} {language}: none of the {len(rows)} rows of {self.model} answers an item.")
        return texts

    def known(self, language: str, ids: Sequence[str], problems: Problems, reporter: Reporter) -> list[Row]:
        """Return the rows in one language without those whose id is not among ``ids``; without ids, all.

        Of what cannot be used, or is there twice, the first row is said.
        """
        rows, known = self.rows.get(language, ()), {None, *ids}
        counts = Counter(id_of(row) for row in rows)
        unknown = [row for row in rows if ids and id_of(row) not in known]
        problems[f"answers of {self.model} to unknown items"] += len(unknown)
        self._say(language, "cannot be read", [row for row in rows if row.broken], reporter)
        self._say(language, "are to items that are not known", unknown, reporter)
        repeated = [row for row in rows if id_of(row) is not None and counts[id_of(row)] > 1]
        self._say(language, "are to the same item as another", repeated, reporter)
        return [row for row in rows if not ids or id_of(row) in known]

    def _say(self, language: str, what: str, rows: Sequence[Row], reporter: Reporter) -> None:
        if rows:
            first = rows[0]
            named = first.broken or f"id {id_of(first)}"
            reporter.say(
                f"{WHAT} {language}: {len(rows)} answers of {self.model} {what}; the first is "
                f"{first.file.removeprefix(f'{WHAT} ')}, row {first.number}: {named}."
            )


def read_given(source: Path, wanted: Sequence[str] | None, name: str | None) -> list[Given]:
    """Return the answers in a file or a directory, by model.

    The path of a file in a directory may name its language and its model, in any order: ``es.json``, ``gpt/es.json``,
    ``es/model_answer/gpt.jsonl``. A row's column generator, model or model_id goes before. What has neither is an
    answer of ``name``, or has the name of the source. ``wanted`` are the languages to read; None is all that there are.

    Raises:
        DataError: there is nothing to read, two files have a model's answers in one language, or a row names no model
            where others in its file do.
    """
    by_place: dict[tuple[str, str], list[Row]] = {}
    files = _files(source)
    name = name or (source.name if source.is_dir() else split_name(source)[0])
    for file in files:
        model, tag = _named_by(file.relative_to(source)) if source.is_dir() else ("", "")
        if tag:
            tags = match_languages(f"{WHAT} {file}", [tag], [tag] if wanted is None else wanted)
            by_language = {language: read_language(file, str(file), tag) for language in tags}
        else:
            by_language = read_languages(str(file), WHAT, wanted, CONTAINERS[0])
        for language, rows in by_language.items():
            for whose, own in _by_model(rows, model or name).items():
                if (whose, language) in by_place:
                    other = by_place[whose, language][0].file.removeprefix(f"{WHAT} ")
                    raise DataError(
                        f"{WHAT}: two files have answers of {whose} in {language}: {other} and {file}. Keep one, or "
                        "give each its own name in a column generator."
                    )
                by_place[whose, language] = own
    given = [
        Given(model, {language: rows for (whose, language), rows in by_place.items() if whose == model})
        for model in dict.fromkeys(whose for whose, _ in by_place)
    ]
    if not given:
        languages = "" if wanted is None else f" in the languages of the items ({', '.join(wanted)})"
        raise DataError(f"{WHAT}: {source} has no answer{languages}.")
    return given


def _files(source: Path) -> list[Path]:
    if existing(source) is None:
        raise DataError(f"{WHAT}: there is no file or directory {source}.")
    if not source.is_dir():
        return [source]
    files = [file for file in sorted(source.rglob("*")) if file.is_file() and split_name(file)[1] in READERS]
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(source).parts)]
    inside = [file for file in files if not {*CONTAINERS}.isdisjoint(_parts(file.relative_to(source)))]
    if not files:
        raise DataError(f"{WHAT}: the directory {source} has no file of answers: {', '.join(READERS)}.")
    return inside or files


def _parts(file: Path) -> list[str]:
    return [*file.parent.parts, split_name(file)[0]]


def _named_by(file: Path) -> tuple[str, str]:
    """Return the model and the language that a path names; each is empty where it names none."""
    tags = [as_tag(part) for part in _parts(file) if is_language(as_tag(part))]
    if len(set(tags)) > 1:
        raise DataError(f"{WHAT}: {file} names two languages: {', '.join(tags)}. Rename the file or its folder.")
    others = [part for part in _parts(file) if not is_language(as_tag(part)) and part not in CONTAINERS]
    return "/".join(others), tags[0] if tags else ""


def _by_model(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    """Return the rows of each model; a broken row goes to the first, where it is counted."""
    values = [first_of(row, MODEL_COLUMNS) for row in rows]
    known = [str(value) for value in values if value is not None]
    by_model: dict[str, list[Row]] = {}
    for row, value in zip(rows, values, strict=True):
        if value is None and known and row.values:
            raise row.error(f"it does not name its model, and others do ({', '.join(MODEL_COLUMNS)})")
        whose = str(value) if value is not None else (known or [name])[0]
        by_model.setdefault(whose, []).append(row)
    return by_model
