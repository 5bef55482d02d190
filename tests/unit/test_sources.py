"""Folders, columns and rows by language: one rule for all, and no choice without a word."""

import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import load_prompts
from crosspref.data.records import Response
from crosspref.data.rows import RowError
from crosspref.data.sources import match_languages, read_languages
from crosspref.data.tables import read_rows
from crosspref.engines import langid
from crosspref.errors import DataError, RecipeError
from crosspref.languages import crosslingual_instruction, language_name
from crosspref.recipe.files import load_settings
from crosspref.recipe.sections import PromptSettings
from crosspref.recipe.stages import SelectStage
from crosspref.suites.nlp.items import languages_of

ROW = {"id": 1, "instruction": "x", "prompt": "x", "chosen": "y", "rejected": "z"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows)) if path.suffix != ".json" else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return path


def prompts_of(folder: Path, *languages: str) -> list[tuple[str, str]]:
    loaded = load_prompts(PromptSettings(source=str(folder)), list(languages)).prompts
    return [(prompt.language, prompt.instruction) for prompt in loaded]


READERS = {
    "prompts": lambda folder: prompts_of(folder, "en"),
    "preferences": lambda folder: load_preferences(str(folder)),
    "suites": lambda folder: read_languages(str(folder), "items", None, "answers"),
    "suites with languages": lambda folder: read_languages(str(folder), "items", ["en"], "answers"),
    "nlp": lambda folder: languages_of(str(folder.parent), [folder.name]),  # type: ignore[list-item]
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("names", [("en.json", "en.jsonl"), ("EN.jsonl", "en.csv"), ("pt-br.json", "pt_BR.jsonl.gz")])
def test_two_files_of_a_language_are_named_by_every_reader(tmp_path: Path, reader: Any, names: tuple[str, str]) -> None:
    for name in {*names, "en.jsonl"}:
        write(tmp_path / "arc" / name, ROW)
    with pytest.raises(DataError) as caught:
        reader(tmp_path / "arc")
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_hidden_files_and_other_files_are_no_languages(tmp_path: Path, reader: Any) -> None:
    for name in ("en.jsonl", ".en.jsonl", "._en.jsonl", "README.md", "notes.json", "en.txt", "en.jsonl.bak"):
        write(tmp_path / "arc" / name, ROW)
    assert reader(tmp_path / "arc")


def test_two_files_in_the_folder_of_a_language(tmp_path: Path) -> None:
    def read() -> list[str]:
        return list(read_languages(str(tmp_path), "items", None, "answers"))

    write(tmp_path / "de" / "answers" / "model.jsonl", ROW)
    write(tmp_path / "de" / "answers" / "._model.jsonl", ROW)
    write(tmp_path / "fr" / "answers.json", ROW)
    assert read() == ["de", "fr"]
    write(tmp_path / "fr" / "answers.jsonl", ROW)
    with pytest.raises(DataError, match=r"two files for fr: fr/answers\.json, fr/answers\.jsonl"):
        read()
    (tmp_path / "fr" / "answers.jsonl").unlink()
    write(tmp_path / "fr.csv", ROW)
    with pytest.raises(DataError, match=r"two files for fr: fr\.csv, fr/answers\.json"):
        read()


def test_a_file_with_the_name_of_a_language_is_not_overlooked(tmp_path: Path) -> None:
    write(tmp_path / "en.jsonl", ROW)
    write(tmp_path / "Spanish.jsonl", ROW)
    with pytest.raises(DataError, match=r"Rename Spanish\.jsonl so that it begins with es"):
        read_languages(str(tmp_path), "items", None, "answers")


def test_a_row_that_names_another_language_than_its_file(tmp_path: Path) -> None:
    write(tmp_path / "en.jsonl", {**ROW, "language": "en"})
    write(tmp_path / "pt.jsonl", {**ROW, "language": "pt_BR"}, {**ROW, "id": 2, "language": "fr"})
    with pytest.raises(RowError) as caught:
        prompts_of(tmp_path, "pt")
    assert [(problem.row, problem.language) for problem in caught.value.problems] == [(2, "pt")]
    found = read_languages(str(tmp_path), "items", ["pt"], "answers")["pt"]
    assert [bool(row.broken) for row in found] == [False, True]


def test_a_row_without_a_language_among_rows_that_have_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {**ROW, "language": "es"}, ROW)
    for wanted in (None, ["es"]):
        with pytest.raises(RowError, match="names no language"):
            read_languages(str(path), "items", wanted, "answers")


# --- regions and scripts ---


def test_a_region_stands_for_its_language_where_it_is_the_only_one() -> None:
    assert match_languages("x", ["en-us", "zh-cn"], ["en", "zh"]) == {"en": "en-us", "zh": "zh-cn"}
    assert match_languages("x", ["zh", "zh-cn", "zh-tw"], ["zh"]) == {"zh": "zh"}
    assert match_languages("x", ["zh-cn", "zh-tw"], ["zh", "zh-cn"]) == {"zh": "zh-tw", "zh-cn": "zh-cn"}
    assert match_languages("x", ["pt"], ["pt-br"]) == {}
    assert match_languages("x", ["en-es", "en-us", "es-es"], ["en", "es"]) == {"en": "en-us", "es": "es-es"}
    with pytest.raises(DataError, match="zh-cn and zh-tw"):
        match_languages("x", ["zh-cn", "zh-tw"], ["zh"])


@pytest.mark.parametrize("layout", ["folder", "wide", "long"])
def test_regions_in_every_layout(tmp_path: Path, layout: str) -> None:
    texts = {"en": "Hi", "zh-CN": "你好", "es_419": "Hola"}
    source = tmp_path / "x.jsonl"
    if layout == "folder":
        for name, text in texts.items():
            write(tmp_path / f"{name}.jsonl", {"id": 1, "instruction": text})
        source = tmp_path
    elif layout == "wide":
        write(source, {"id": 1, **texts})
    else:
        write(source, *({"id": 1, "language": name, "instruction": text} for name, text in texts.items()))
    assert prompts_of(source, "zh", "es-419") == [("en", "Hi"), ("zh", "你好"), ("es-419", "Hola")]
    assert prompts_of(source, "zh-cn", "es") == [("en", "Hi"), ("zh-cn", "你好"), ("es", "Hola")]


@pytest.mark.parametrize(
    ("tag", "name"),
    [("zh-cn", "Simplified Chinese"), ("zh-hans-cn", "Simplified Chinese"), ("zh-tw", "Traditional Chinese"),
     ("es-419", "Latin American Spanish"), ("es-ar", "Spanish"), ("sr-latn", "Serbian"), ("en-us", "American English")],
)  # fmt: skip
def test_every_region_has_a_name_in_the_instruction(tag: str, name: str) -> None:
    assert language_name(tag) == name
    assert f"using only {name}," in crosslingual_instruction("Why?", tag)


@pytest.mark.parametrize("tag", ["zh-zz", "pt-rb", "xx-us", "es-", "-es", "es-latin", "en-us-x"])
def test_other_additions_are_no_regions(tag: str) -> None:
    with pytest.raises(DataError):
        language_name(tag)


def settings_with(*languages: str) -> SelectStage:
    return load_settings(SelectStage, None, [f"languages=[{', '.join(languages)}]", "prompts.source=x"])


def test_languages_of_a_recipe_may_be_spelt_as_elsewhere() -> None:
    assert settings_with("en", "zh", "zh-CN", "pt_BR").languages == ["en", "zh", "zh-cn", "pt-br"]
    with pytest.raises(RecipeError, match="'zh-cn' and 'zh-hans' are both Simplified Chinese"):
        settings_with("en", "zh-cn", "zh-Hans")
    with pytest.raises(RecipeError, match="more than once"):
        settings_with("en", "ES", "es")


@pytest.mark.parametrize("kind", [pa.uuid(), pa.binary(16), pa.binary()])
def test_ids_of_tables_are_read_as_those_of_prompts(tmp_path: Path, kind: pa.DataType) -> None:
    number = uuid.uuid4()
    storage = pa.array([number.bytes], kind.storage_type if kind == pa.uuid() else kind)
    ids = pa.ExtensionArray.from_storage(kind, storage) if kind == pa.uuid() else storage
    pq.write_table(pa.table({"prompt_id": ids, "language": ["es"], "text": ["x"]}), tmp_path / "x.parquet")
    assert [row.prompt_id for row in read_rows(tmp_path / "x.parquet", Response)] == [str(number)]
    pq.write_table(pa.table({"id": ids, "en": ["x"]}), tmp_path / "p.parquet")
    loaded = load_prompts(PromptSettings(source=str(tmp_path / "p.parquet")), ["en"])
    assert [prompt.prompt_id for prompt in loaded.prompts] == [str(number)]


def test_tables_have_languages_in_the_spelling_of_recipes(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"prompt_id": "a", "language": "zh-CN", "text": "你好"})
    assert [row.language for row in read_rows(path, Response)] == ["zh-cn"]


# --- identification ---

BOKMAL = "Hun liker ikke å stå opp tidlig, men i dag må hun rekke bussen til jobben."
NYNORSK = "Eg veit ikkje kva ho heiter, men ho bur i Bergen og er ei god venninne av meg."
TAGALOG = "Naglalaro ang mga bata sa labas ng bahay habang nagluluto ang kanilang nanay."


@pytest.mark.parametrize(
    ("language", "text", "is_right"),
    [("nb", BOKMAL, True), ("no", BOKMAL, True), ("no", NYNORSK, True), ("nn", NYNORSK, True), ("nn", BOKMAL, False),
     ("nb", TAGALOG, False), ("fil", TAGALOG, True), ("tl", TAGALOG, True), ("fil", BOKMAL, False),
     ("zh-hant", "香港人大部分都講廣東話，他們喜歡吃東西。", True),
     ("zh", "佢哋鍾意食嘢，香港嘅人大部分都係講廣東話嘅。", True), ("yue", "今天天气很好，我们去公园散步吧。", False)],
)  # fmt: skip
def test_the_names_of_a_language_are_one(language: str, text: str, is_right: bool) -> None:
    identify = langid.identifier(language)
    assert identify is not None
    assert (identify(text) == language.partition("-")[0]) is is_right


def test_what_cannot_be_identified() -> None:
    assert langid.identifier("bo") is None
    assert langid.identifier("ceb") is None
