import csv
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspref.data.prompts import load_prompts
from crosspref.data.records import Dropped, Prompt
from crosspref.data.rows import RowError, is_blank
from crosspref.errors import DataError
from crosspref.recipe.sections import PromptSettings

REPOSITORY = Path(__file__).parents[2]
ULTRAFEEDBACK = REPOSITORY.parent / "shared" / "data" / "ultrafeedback_parallel"

TEXTS = {
    "en": {"a": "Why is the sky blue?", "b": "Name a fruit.\n", "c": 'Say "hi", then\nstop.'},
    "es": {"a": "¿Por qué es azul?", "b": "Nombra una fruta.", "c": 'Di "hola",\ny para.'},
    "th": {"a": "ทำไมฟ้าถึงสีฟ้า", "b": "ผลไม้\u2028หนึ่ง", "c": "  พูด  "},
}
WIDE = [{"id": key, **{language: TEXTS[language][key] for language in TEXTS}} for key in "abc"]
LONG = [
    {"prompt_id": key, "language": language, "instruction": TEXTS[language][key]} for key in "abc" for language in TEXTS
]


def write(path, rows):
    """Write rows in the format that the name says, and return the path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_folder(path, texts=TEXTS, suffix=".jsonl"):
    for language, by_id in texts.items():
        rows = [{"instruction": text, "instruction_id": key} for key, text in by_id.items()]
        write(path / f"{language}{suffix}", rows)
    return str(path)


def changed(language, **texts):
    """Return TEXTS with changes in one language; None takes a text out."""
    merged = {key: text for key, text in (TEXTS[language] | texts).items() if text is not None}
    return TEXTS | {language: merged}


def prompts_of(texts, languages, ids="abc"):
    return [Prompt(key, language, texts[language][key]) for language in languages for key in ids]


def load(source, languages, **settings):
    return load_prompts(PromptSettings(source=source, **settings), languages)


def error_of(source, languages=("en", "es", "th"), **settings):
    with pytest.raises(DataError) as error:
        load(str(source), languages, **settings)
    return str(error.value)


ALL = prompts_of(TEXTS, ["en", "es", "th"])


# --- formats and layouts ---


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".parquet", ".csv"])
@pytest.mark.parametrize("rows", [WIDE, LONG], ids=["wide", "long"])
def test_every_format_and_layout_gives_the_same_prompts(tmp_path, rows, suffix):
    loaded = load(write(tmp_path / f"prompts{suffix}", rows), ["en", "es", "th"])
    assert loaded.prompts == ALL
    assert loaded.dropped == []


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_folder(tmp_path, suffix):
    source = write_folder(tmp_path / "folder", suffix=suffix)
    (tmp_path / "folder" / "README.md").write_text("not a language")
    (tmp_path / "folder" / "notes.jsonl").write_text("not JSON")
    assert load(source, ["en", "es", "th"]).prompts == ALL
    assert load(source + "/", ["en", "es", "th"]).prompts == ALL


@pytest.mark.parametrize("id_column", ["prompt_id", "id", "instruction_id", "question_id"])
@pytest.mark.parametrize("text_column", ["instruction", "prompt", "text", "question"])
@pytest.mark.parametrize("language_column", ["language", "lang"])
def test_columns_are_found_by_themselves(tmp_path, id_column, text_column, language_column):
    rows = [dict(zip([id_column, language_column, text_column], row.values(), strict=True)) for row in LONG]
    assert load(write(tmp_path / "x.jsonl", rows), ["en", "es", "th"]).prompts == ALL


def test_named_columns_come_before_those_that_would_be_found(tmp_path):
    rows = [
        {"id": 1, "prompt": "no", "lang": "xx", "key": r["prompt_id"], "q": r["instruction"], "l": r["language"]}
        for r in LONG
    ]
    columns = {"id_column": "key", "text_column": "q", "language_column": "l"}
    assert load(write(tmp_path / "x.jsonl", rows), ["en", "es", "th"], **columns).prompts == ALL


@pytest.mark.parametrize("field", ["id_column", "text_column", "language_column"])
def test_a_named_column_that_is_not_there(tmp_path, field):
    text = error_of(write(tmp_path / "x.jsonl", LONG), **{field: "nope"})
    assert "x.jsonl has no column 'nope'" in text
    assert "prompt_id, language, instruction" in text


def test_english_comes_first_where_it_is_not_listed_and_else_where_it_is_listed(tmp_path):
    source = write(tmp_path / "x.jsonl", WIDE)
    assert load(source, ["th"]).prompts == prompts_of(TEXTS, ["en", "th"])
    assert load(source, []).prompts == prompts_of(TEXTS, ["en"])
    assert load(source, ["th", "en"]).prompts == prompts_of(TEXTS, ["th", "en"])


def test_rows_are_joined_by_id_in_the_order_of_english(tmp_path):
    texts = {"en": {key: TEXTS["en"][key] for key in "cab"}, "es": {key: TEXTS["es"][key] for key in "bca"}}
    loaded = load(write_folder(tmp_path / "x", texts), ["es"])
    assert loaded.prompts == prompts_of(TEXTS, ["en", "es"], "cab")


def test_indonesian_is_a_column_called_id_too(tmp_path):
    rows = [{"id": "apa kabar", "question_id": "q1", "en": "how are you"}]
    source = write(tmp_path / "x.jsonl", rows)
    assert load(source, ["id"]).prompts == [Prompt("q1", "en", "how are you"), Prompt("q1", "id", "apa kabar")]
    text = error_of(write(tmp_path / "y.jsonl", [{"id": "1", "en": "x", "es": "y"}]), ["en", "id"])
    assert "no column (besides the id column 'id') for: id" in text


def test_text_is_kept_as_it_is(tmp_path):
    texts = {"en": {"a": "  \te\u0301 é\r\n\x00 \u200b"}, "es": {"a": "\ufeffx\u2028y\u0085 "}}
    assert load(write_folder(tmp_path / "x", texts), ["es"]).prompts == prompts_of(texts, ["en", "es"], "a")


def is_seen(text):
    return not is_blank(text)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(is_seen), min_size=1, max_size=5))
def test_any_text_survives_jsonl_and_csv(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any")
    rows = [{"id": number, "en": text, "es": text[::-1] + "."} for number, text in enumerate(texts)]
    wanted = [Prompt(str(row["id"]), language, row[language]) for language in ("en", "es") for row in rows]
    for name in ("x.jsonl", "x.csv"):
        assert load(write(folder / name, rows), ["es"]).prompts == wanted


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.json"])
def test_byte_order_mark_and_windows_line_ends_are_tolerated(tmp_path, name):
    path = Path(write(tmp_path / name, [{"id": "a", "en": "Hi", "es": "Hola"}]))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert load(str(path), ["es"]).prompts == [Prompt("a", "en", "Hi"), Prompt("a", "es", "Hola")]


def test_blank_lines_are_skipped_and_counted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('\n{"id": 1, "en": "Hi", "es": "Hola"}\n  \n{"id": 2, "en": "Hi", "es": ""}\n\n')
    assert [problem[1:4] for problem in problems_of(path, ["es"])] == [(4, "es", "2")]


def test_csv_with_quoted_newlines_names_the_line_where_a_record_begins(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('id,en,es\n1,"two\nlines, ""so""",hola\n\n2,three,""\n3,"a\n\nb",adios\n4,x\n')
    assert [problem[1:4] for problem in problems_of(path, ["es"])] == [(5, "es", "2"), (9, None, None)]
    prompts = load(str(path), ["es"], on_problem="drop").prompts
    assert prompts[0] == Prompt("1", "en", 'two\nlines, "so"')
    assert prompts[2] == Prompt("3", "en", "a\n\nb")


def test_csv_takes_texts_of_any_length_and_leaves_the_modules_limit_alone(tmp_path):
    long_text = "x" * 300_000
    limit = csv.field_size_limit()
    source = write(tmp_path / "x.csv", [{"id": 1, "en": long_text}])
    assert load(source, []).prompts[0].instruction == long_text
    assert csv.field_size_limit() == limit


# --- where a source can be ---


def test_package(tmp_path, monkeypatch):
    package = tmp_path / "some_prompts_pkg"
    write_folder(package / "data" / "folder")
    write(package / "data" / "prompts.jsonl", WIDE)
    (package / "__init__.py").write_text("raise RuntimeError('a data package must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for inside in ("data/prompts.jsonl", "data/folder"):
        assert load(f"package:some_prompts_pkg/{inside}", ["es", "th"]).prompts == ALL
    write_folder(package / "data" / "folder", changed("es", b=" "))
    assert "package:some_prompts_pkg/data/folder/es.jsonl, row 2" in error_of("package:some_prompts_pkg/data/folder")
    text = error_of("package:some_prompts_pkg/data/nothing.jsonl")
    assert "the package is installed, but has no 'data/nothing.jsonl'" in text


PATHS = "./nothing ../nothing /no/such/place/nothing ~/no-such-place/nothing nothing nothing.jsonl some/nothing.csv "
PATHS += "a/b/c here/nothing some/folder/ some\\windows"


@pytest.mark.parametrize("source", PATHS.split())
def test_what_looks_like_a_path_is_not_taken_for_a_hub_id(tmp_path, monkeypatch, source):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    text = error_of(source)
    assert f"{source!r} was taken for a path" in text
    assert "no such file or folder" in text


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """Return the library with its cache in tmp_path; nothing that it loads comes from a network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def make_hub_dataset(path):
    """Make a directory that is laid out as a hub dataset: a config per language, a wide one, a long test split."""
    configs = {
        language: [{"instruction": text, "instruction_id": key} for key, text in texts.items()]
        for language, texts in TEXTS.items()
    }
    lines = ["---", "configs:"]
    for config, rows in {**configs, "wide": WIDE, "long": LONG}.items():
        write(path / config / "rows.jsonl", rows)
        split = "test" if config == "long" else "train"
        lines += [f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}/*.jsonl"]
    (path / "README.md").write_text("\n".join([*lines, "---", ""]))


def test_hub_dataset(tmp_path, monkeypatch, datasets):
    make_hub_dataset(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    for source in ("hub:owner/name", "hub:owner/name:wide", "hub:owner/name:long#test", f"hub:{tmp_path}/owner/name"):
        assert load(source, ["es", "th"]).prompts == ALL, source
    assert "the hub dataset owner/name has no config for: sw. Languages found there: en, es, th" in error_of(
        "hub:owner/name", ["sw"]
    )
    assert "test" in error_of("hub:owner/name:wide#test")
    assert "wide" in error_of("hub:owner/name:nope")
    text = error_of("owner/name")  # there is a directory of this name, so it is a folder
    assert "the folder owner/name has no file named after a language" in text
    assert "hub:owner/name" in text


@pytest.mark.parametrize(("name", "rows"), [("train-00000-of-00001.parquet", WIDE), ("train.csv", LONG)])
def test_hub_dataset_without_configs(tmp_path, datasets, name, rows):
    write(tmp_path / "owner" / "plain" / "data" / name, rows)
    assert load(f"hub:{tmp_path}/owner/plain", ["es", "th"]).prompts == ALL


def test_hub_dataset_with_a_broken_file_says_what_is_broken(tmp_path, datasets):
    path = tmp_path / "owner" / "broken" / "train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"id": 1\n')
    assert "JSON parse error" in error_of(f"hub:{path.parent}")


def test_hub_id_reaches_the_library_with_config_revision_and_split(monkeypatch, datasets):
    calls = []

    def load_dataset(path, name, **settings):
        calls.append((path, name, settings))
        return datasets.Dataset.from_list([*WIDE, {"id": "d", "en": "x", "es": " ", "th": "y"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda path, revision: ["default"])
    text = error_of("some-owner/name.1:conf ig@v1.0/x#test[:10%]")
    assert "some-owner/name.1:conf ig#test[:10%], row 4, language es, id 'd'" in text
    loaded = load("some-owner/name.1", ["es", "th"], on_problem="drop")
    assert [prompt for prompt in loaded.prompts if prompt.prompt_id != "d"] == ALL
    assert calls == [
        ("some-owner/name.1", "conf ig", {"split": "test[:10%]", "revision": "v1.0/x"}),
        ("some-owner/name.1", None, {"split": "train", "revision": None}),
    ]


def test_hub_dataset_that_cannot_be_loaded_says_for_what_it_was_taken(monkeypatch, datasets):
    def fail(path, revision):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "get_dataset_config_names", fail)
    text = error_of("nobody/nothing")
    assert "'nobody/nothing' was taken for a hub dataset" in text
    assert "Couldn't reach the Hub" in text
    assert "./" in text


# --- problems that stop in any mode ---


def rows_at(name, *rows):
    return lambda folder: write(folder / name, list(rows))


def text_at(name, content):
    def make(folder):
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name

    return make


def folder_of(**extra):
    """Return what writes the folder of TEXTS with further files, or without one where the rows are None."""

    def make(folder):
        write_folder(folder)
        for name, rows in extra.items():
            path = folder / name.replace("_", ".")
            path.unlink() if rows is None else write(path, rows)
        return folder

    return make


FAULTS = {  # what writes the source, the languages, and what the error says
    "unknown language": (rows_at("x.jsonl", *WIDE), ["en", "spanish"], "'spanish': did you mean es"),
    "language listed twice": (rows_at("x.jsonl", *WIDE), ["es", "en", "es"], "more than once: es"),
    "languages missing, wide": (rows_at("x.jsonl", *WIDE), ["es", "sw", "bn"], "for: sw, bn. .*: en, es, th"),
    "languages missing, long": (rows_at("x.jsonl", *LONG), ["es", "sw", "bn"], "for: sw, bn. .*: en, es, th"),
    "language file missing": (folder_of(), ["es", "sw"], "no file {language}.jsonl .* for: sw. .*: en, es, th"),
    "English file missing": (folder_of(en_jsonl=None), ["es"], "for: en. Languages found there: es, th"),
    "English column missing": (rows_at("x.csv", {"id": 1, "es": "x"}), ["es"], "for: en. .* there: es"),
    "no language file": (lambda folder: Path(write(folder / "a.jsonl", WIDE)).parent, ["es"], "there: a.jsonl"),
    "two files of a language": (folder_of(ES_csv=WIDE), ["es"], "two files for es: ES.csv, es.jsonl"),
    "two columns": (rows_at("x.jsonl", {"id": 1, "en": "", "es": "", "ES": ""}), ["es"], "two columns for es: es, ES"),
    "no id column": (rows_at("x.csv", {"en": "x", "es": "y"}), ["es"], "no id column.*: en, es. .*id_column"),
    "no text column": (folder_of(es_jsonl=[{"id": 1, "texto": ""}]), ["es"], "es.jsonl has no text .*: id, texto"),
    "neither long nor wide": (rows_at("x.jsonl", {"id": 1, "text": "x"}), ["es"], "neither long.*: id, text"),
    "no lines": (text_at("x.jsonl", ""), ["es"], "x.jsonl has no rows"),
    "no header": (text_at("x.csv", ""), ["es"], "x.csv has no rows"),
    "a header alone": (text_at("x.csv", "id,en,es\n"), ["es"], "x.csv has no rows"),
    "a column twice": (text_at("x.csv", "id,en,en\n1,2,3\n"), ["es"], "row 1: .* more than once: en"),
    "broken header": (text_at("x.csv", b"id,en,\xf1\n1,2,3\n"), ["es"], "row 1: .*0xF1 at byte offset 6 "),
    "no readable row": (text_at("x.jsonl", "not\nJSON\n"), ["es"], "none of its 2 rows .*Row 1: .*not valid"),
    "UTF-16": (text_at("x.jsonl", "[]".encode("utf-16")), ["es"], "UTF-16.*iconv -f UTF-16 -t UTF-8 x.jsonl"),
    "no list": (text_at("x.json", '{"id": 1}'), ["es"], "a JSON list of objects, not dict"),
    "lines in JSON": (text_at("x.json", "{}\n{}"), ["es"], "name it .jsonl"),
    "JSON in Latin-1": (text_at("x.json", b'[\n{"id": "\xe9"}]'), ["es"], "row 2: not UTF-8: .*0xE9 .*offset 10"),
    "no Parquet": (text_at("x.parquet", "version https://"), ["es"], "cannot be read as Parquet"),
}


@pytest.mark.parametrize("mode", ["stop", "drop"])
@pytest.mark.parametrize(("make", "languages", "said"), FAULTS.values(), ids=FAULTS)
def test_what_is_an_error_in_any_mode(tmp_path, mode, make, languages, said):
    source = str(make(tmp_path))
    with pytest.raises(DataError, match=f"(?s){said}"):
        load(source, languages, on_problem=mode)


@pytest.mark.parametrize("mode", ["stop", "drop"])
def test_nothing_is_left(tmp_path, mode):
    source = write_folder(tmp_path / "f", TEXTS | {"es": {"a": "", "b": " ", "x": "y"}})
    text = error_of(source, on_problem=mode)
    assert "es.jsonl, row 2, language es, id 'b': the text is only white space" in text
    assert ("no prompt of" in text) == (mode == "drop")


def test_empty_source():
    assert "the source is empty" in error_of("")


# --- problems of single rows: what the error names in stop mode, what is dropped in drop mode ---


def problems_of(source, languages=("en", "es", "th")):
    """Return file, row, language, id and detail of what stop mode reports."""
    with pytest.raises(RowError) as error:
        load(str(source), languages)
    return [(one.file, one.row, one.language, one.prompt_id, one.detail) for one in error.value.problems]


def check(source, at, dropped, detail=""):
    """Check what the error names first, and that drop mode leaves out just that."""
    first = problems_of(source)[0]
    assert first[:4] == at
    assert detail in first[4]
    loaded = load(str(source), ["en", "es", "th"], on_problem="drop")
    assert loaded.dropped == [Dropped(key, language, "prompts", reason) for key, language, reason in dropped]
    gone = {(key, language) for key, language, _ in dropped}
    assert loaded.prompts == [prompt for prompt in ALL if (prompt.prompt_id, prompt.language) not in gone]


def append(path, line):
    with Path(path).open("ab") as file:
        file.write(line if isinstance(line, bytes) else line.encode())


def in_all(key, reason):
    return [(key, language, reason) for language in TEXTS]


@pytest.mark.parametrize(
    ("value", "detail", "reason"),
    [
        ("", "empty", "empty text"),
        (" \t\n\u3000", "only white space", "empty text"),
        (12, "int, not text: 12", "not text"),
        (["x"], "list, not text: ['x']", "not text"),
        ("half \ud83d", "half of a surrogate pair", "broken text"),
        (None, "no {} text", "no {}"),
    ],
)
class TestBadText:
    def test_translation_in_a_folder(self, tmp_path, value, detail, reason):
        source = write_folder(tmp_path / "f")
        rows = [{"id": key, "text": value if key == "b" else text} for key, text in TEXTS["es"].items()]
        (tmp_path / "f" / "es.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dropped = [("b", "es", reason.format("translation"))]
        check(source, (f"{source}/es.jsonl", 2, "es", "b"), dropped, detail.format("Spanish"))

    def test_english_in_a_wide_file(self, tmp_path, value, detail, reason):
        source = tmp_path / "x.jsonl"
        source.write_text("".join(json.dumps(row | ({"en": value} if row["id"] == "b" else {})) + "\n" for row in WIDE))
        reason = "no English text" if value is None else f"{reason} in English"
        check(source, (str(source), 2, "en", "b"), in_all("b", reason), detail.format("English"))


def test_missing_translation(tmp_path):
    gone = [("b", "es", "no translation")]
    folder = write_folder(tmp_path / "f", changed("es", b=None))
    check(folder, (f"{folder}/en.jsonl", 2, "es", "b"), gone)
    long = write(tmp_path / "long.jsonl", [row for row in LONG if (row["prompt_id"], row["language"]) != ("b", "es")])
    check(long, (long, 4, "es", "b"), gone)
    absent = write(tmp_path / "x.jsonl", [WIDE[0], {key: WIDE[1][key] for key in ("id", "en", "th")}, WIDE[2]])
    check(absent, (absent, 2, "es", "b"), gone)
    null = write(tmp_path / "x.parquet", [WIDE[0], WIDE[1] | {"es": None}, WIDE[2]])
    check(null, (null, 2, "es", "b"), gone)


def test_translation_without_english(tmp_path):
    source = write_folder(tmp_path / "f", TEXTS | {key: TEXTS[key] | {"z": "solo"} for key in ("es", "th")})
    check(source, (f"{source}/es.jsonl", 4, "es", "z"), in_all("z", "no English text"))


@pytest.mark.parametrize("language", ["en", "th"])
def test_duplicate_id(tmp_path, language):
    source = write_folder(tmp_path / "f")
    append(f"{source}/{language}.jsonl", '{"instruction": "again", "instruction_id": "b"}\n')
    check(source, (f"{source}/{language}.jsonl", 4, language, "b"), in_all("b", "double id"), "row 2")


def test_a_number_and_the_same_text_are_one_id(tmp_path):
    source = write(tmp_path / "x.jsonl", [{"id": 1, "en": "x"}, {"id": "1", "en": "y"}, {"id": 2, "en": "z"}])
    assert [problem[:4] for problem in problems_of(source, [])] == [(source, 2, "en", "1")]
    assert load(source, [], on_problem="drop").prompts == [Prompt("2", "en", "z")]


@pytest.mark.parametrize("value", [None, "", "  ", True, 1e300, [1]])
def test_no_id(tmp_path, value):
    source = write(tmp_path / "x.jsonl", [*WIDE, WIDE[0] | {"id": value}])
    check(source, (source, 4, None, None), in_all(f"{source}:4", "no id"), f"{value!r} in the column 'id'")


def test_no_id_in_a_folder(tmp_path):
    source = write_folder(tmp_path / "f")
    append(f"{source}/es.jsonl", '{"instruction": "again"}\n')
    check(source, (f"{source}/es.jsonl", 4, "es", None), [(f"{source}/es.jsonl:4", "es", "no id")])


@pytest.mark.parametrize(
    ("tag", "detail", "language"),
    [("esp", "did you mean", "esp"), ("", "''", "und"), (None, "None", "und"), (3, "3", "und")],
)
def test_unknown_language_in_a_long_file(tmp_path, tag, detail, language):
    source = write(tmp_path / "x.jsonl", [*LONG, {"prompt_id": "b", "language": tag, "instruction": "x"}])
    at = (source, 10, "esp" if tag == "esp" else None, "b")
    check(source, at, [("b", language, "unknown language")], detail)


def test_languages_that_are_not_wanted_are_not_checked(tmp_path):
    rows = [*LONG, {"prompt_id": "a", "language": "de", "instruction": ""}, {"language": "fr", "instruction": "x"}]
    sources = [write(tmp_path / "x.jsonl", rows), write(tmp_path / "y.csv", [row | {"de": ""} for row in WIDE])]
    for source in [*sources, write_folder(tmp_path / "f", TEXTS | {"de": {"a": "", "z": "x"}})]:
        assert load(source, ["es", "th"]).prompts == ALL


@pytest.mark.parametrize(
    ("name", "row", "line", "detail"),
    [
        ("x.jsonl", 4, '{"id": "d", "en": "x"', "not valid JSON: "),
        ("x.jsonl", 4, '["d", "x"]', "a JSON object, not list"),
        ("x.jsonl", 4, b'{"id": "d", "en": "Espa\xf1a"}', "not UTF-8: byte 0xF1 at byte offset "),
        ("x.csv", 8, "d,x,y", "3 fields, but the header has 4"),
        ("x.csv", 8, "d,x,y,z,", "5 fields, but the header has 4"),
        ("x.csv", 8, 'd,x,y,"z"z', "not valid CSV: "),
        ("x.csv", 8, 'd,x,y,"z', "not valid CSV: "),
    ],
)
def test_broken_row_of_a_wide_file(tmp_path, name, row, line, detail):
    source = write(tmp_path / name, WIDE)
    append(source, line)
    append(source, "\n")
    check(source, (source, row, None, None), in_all(f"{source}:{row}", "broken row"), detail)


def test_broken_line_of_a_folder_loses_its_translation(tmp_path):
    source = write_folder(tmp_path / "f")
    path = tmp_path / "f" / "es.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:-1], *lines[2:]]))
    check(source, (str(path), 2, "es", None), [(f"{path}:2", "es", "broken row"), ("b", "es", "no translation")])
    assert len(problems_of(source)) == 2


def test_broken_line_of_a_long_file_is_of_no_known_language(tmp_path):
    source = write(tmp_path / "x.jsonl", LONG)
    append(source, "{\n")
    check(source, (source, 10, None, None), [(f"{source}:10", "und", "broken row")])


def test_wrong_encoding_names_line_and_byte_offset(tmp_path):
    start = b"\xef\xbb\xbfid,en,es\n1,x,y\n"
    source = tmp_path / "x.csv"
    source.write_bytes(start + '2,"a\nb",año\n3,u,v\n'.encode("latin-1"))
    [problem] = problems_of(source, ["es"])
    assert problem[1] == 3
    offset = len(start) + len(b'2,"a\nb",a')
    assert f"byte 0xF1 at byte offset {offset} of the file" in problem[4]
    assert "iconv -f WINDOWS-1252 -t UTF-8" in problem[4]
    loaded = load(str(source), ["es"], on_problem="drop")
    assert [prompt.instruction for prompt in loaded.prompts] == ["x", "u", "y", "v"]


def test_csv_continues_after_a_broken_record(tmp_path):
    (tmp_path / "x.csv").write_text('id,en\n1,"x"x\n2,y\n')
    assert load(str(tmp_path / "x.csv"), [], on_problem="drop").prompts == [Prompt("2", "en", "y")]


def test_all_problems_come_in_one_error_of_at_most_twenty_lines(tmp_path):
    texts = {"en": {str(n): "x" for n in range(40)}, "es": {str(n): "" for n in range(15)} | {"15": "y"}}
    with pytest.raises(RowError) as error:
        load(write_folder(tmp_path / "f", texts), ["es"])
    empty = [problem.prompt_id for problem in error.value.problems if problem.reason == "empty text"]
    missing = [problem.prompt_id for problem in error.value.problems if problem.reason == "no translation"]
    assert (empty, missing) == ([str(n) for n in range(15)], [str(n) for n in range(16, 40)])
    first, *lines, more, advice = str(error.value).splitlines()
    assert "39 problems" in first
    assert [line.strip() for line in lines] == [str(problem) for problem in error.value.problems[:20]]
    assert "19 more" in more
    assert "prompts.on_problem: drop" in advice


# --- limit ---


def many(tmp_path):
    """Six ids; b lacks es, d is empty in th, f has no problem."""
    texts = {language: {key: f"{language} {key}" for key in "fabcde"} for language in TEXTS}
    del texts["es"]["b"]
    texts["th"]["d"] = ""
    return texts, write_folder(tmp_path / "f", texts)


def test_limit_takes_the_first_ids_of_english(tmp_path):
    source = write(tmp_path / "x.jsonl", WIDE)
    assert load(source, ["es", "th"], limit=2).prompts == prompts_of(TEXTS, TEXTS, "ab")
    assert load(source, ["es", "th"], limit=99).prompts == ALL


def test_limit_with_drop_takes_only_ids_that_every_language_has(tmp_path):
    texts, source = many(tmp_path)
    loaded = load(source, ["es", "th"], on_problem="drop", limit=3)
    assert loaded.prompts == prompts_of(texts, TEXTS, "fac")
    passed = "not usable in every language"
    assert {(row.prompt_id, row.language): row.reason for row in loaded.dropped} == {
        ("b", "es"): "no translation",
        ("b", "en"): passed,
        ("b", "th"): passed,
        ("d", "th"): "empty text",
    }
    more = load(source, ["es", "th"], on_problem="drop", limit=5)
    assert more.prompts == prompts_of(texts, TEXTS, "face")
    assert {row.language for row in more.dropped if row.prompt_id == "d"} == {"en", "es", "th"}


def test_limit_above_what_is_usable_accounts_for_every_id_to_the_end(tmp_path):
    source = write_folder(tmp_path / "f", changed("th", c=""))
    loaded = load(source, ["es", "th"], on_problem="drop", limit=3)
    assert loaded.prompts == prompts_of(TEXTS, TEXTS, "ab")
    assert {(row.prompt_id, row.language) for row in loaded.dropped} == {("c", language) for language in TEXTS}


def test_limit_where_no_id_is_usable_in_every_language(tmp_path):
    source = write_folder(tmp_path / "f", {"en": {"a": "x", "b": "y"}, "es": {"a": "x"}, "th": {"b": "y"}})
    assert "no prompt of" in error_of(source, on_problem="drop", limit=1)


def test_without_limit_drop_keeps_the_other_languages_of_a_prompt(tmp_path):
    texts, source = many(tmp_path)
    prompts = load(source, ["es", "th"], on_problem="drop").prompts
    assert prompts == prompts_of(texts, ["en"], "fabcde") + prompts_of(texts, ["es"], "facde") + prompts_of(
        texts, ["th"], "fabce"
    )


def test_limit_does_not_hide_problems_from_stop(tmp_path):
    _, source = many(tmp_path)
    with pytest.raises(RowError) as error:
        load(source, ["en", "es", "th"], limit=1)
    assert len(error.value.problems) == 2


# --- the whole ---


def test_3000_prompts_in_nine_languages_take_well_under_five_seconds(tmp_path):
    languages = ["en", "es", "fr", "de", "ru", "bn", "sw", "th", "zh"]
    texts = {language: {f"{n:064x}": f"{language} {n} ключ " * 20 for n in range(3000)} for language in languages}
    long = [{"id": key, "lang": tag, "text": text} for tag in languages for key, text in texts[tag].items()]
    wide = [{"id": key, **{tag: texts[tag][key] for tag in languages}} for key in texts["en"]]
    sources = [
        write_folder(tmp_path / "f", texts),
        write(tmp_path / "l.csv", long),
        write(tmp_path / "w.parquet", wide),
    ]
    for source in sources:
        start = time.process_time()
        loaded = load(source, languages)
        seconds = time.process_time() - start
        assert len(loaded.prompts) == 27_000
        assert seconds < 3, f"{source} took {seconds:.1f} s"


@pytest.mark.skipif(not ULTRAFEEDBACK.is_dir(), reason="the shared folder with ultrafeedback_parallel is not here")
def test_ultrafeedback_parallel():
    languages = ["en", "es", "fr", "de", "ru", "bn", "sw", "th", "zh"]
    loaded = load(str(ULTRAFEEDBACK), languages)
    assert len(loaded.prompts) == 9 * 1000
    first = json.loads((ULTRAFEEDBACK / "en.jsonl").open(encoding="utf-8").readline())
    assert loaded.prompts[0] == Prompt(first["instruction_id"], "en", first["instruction"])
    assert [p.prompt_id for p in loaded.prompts[:1000]] == [p.prompt_id for p in loaded.prompts[8000:]]
    assert load(str(ULTRAFEEDBACK), ["th"], limit=50).prompts[50].language == "th"
