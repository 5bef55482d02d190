"""Every file that comes from outside goes through one gate: what is no file, has no end, or is a trap, is one error."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosspref.data import rows
from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import load_prompts
from crosspref.data.records import Response, Score
from crosspref.data.rows import read_file
from crosspref.data.sources import read_languages, read_source
from crosspref.data.tables import read_rows
from crosspref.errors import CrossprefError, DataError, FileError, ModelError, RecipeError, RunError
from crosspref.models.files import read_json
from crosspref.models.locate import locate_model
from crosspref.paths import read_text, require_file, working_directory
from crosspref.recipe.files import load_recipe, load_settings, parse_yaml, stage_settings
from crosspref.recipe.sections import PromptSettings
from crosspref.recipe.stages import TrainStage
from crosspref.reports.comparison import compare_runs
from crosspref.run.layout import open_run
from crosspref.run.progress import Reporter
from crosspref.run.verdicts import VerdictLog
from crosspref.suites.given import read_given
from crosspref.suites.judge.questions import Template
from crosspref.suites.leaderboard import leaderboard
from crosspref.suites.reward_accuracy.judges import Votes
from crosspref.suites.settings import EvaluationSettings
from crosspref.suites.work import find_target
from crosspref.suites.xalpaca.files import read_controls

Reader = Callable[[Path], Any]

PROMPT = Template((("user", "{instruction} {output_1} {output_2}"),))


def controls(path: Path) -> Any:
    return read_controls(EvaluationSettings(xalpaca={"gamed": str(path)}).xalpaca)


READERS: dict[str, tuple[str, Reader, type[CrossprefError]]] = {
    "recipe": ("yaml", load_recipe, RecipeError),
    "settings": ("yaml", lambda path: load_settings(EvaluationSettings, path, []), RecipeError),
    "prompts in JSONL": ("jsonl", lambda path: read_source(str(path), ["en"]), DataError),
    "prompts in JSON": ("json", lambda path: read_source(str(path), ["en"]), DataError),
    "prompts in CSV": ("csv", lambda path: read_source(str(path), ["en"]), DataError),
    "prompts in Parquet": ("parquet", lambda path: read_source(str(path), ["en"]), DataError),
    "preferences": ("jsonl.gz", lambda path: load_preferences(str(path)), DataError),
    "items": ("json", lambda path: read_languages(str(path), "xalpaca.items", ["en"], "x"), DataError),
    "a table in Parquet": ("parquet", lambda path: read_rows(path, Response), DataError),
    "a table in JSONL": ("jsonl", lambda path: read_rows(path, Score), DataError),
    "answers": ("jsonl", lambda path: read_given(path, ["en"], None), DataError),
    "votes": ("csv", lambda path: Votes(str(path)), DataError),
    "the gamed table": ("csv", controls, DataError),
    "verdicts": ("jsonl", lambda path: VerdictLog.open(path, writable=False), DataError),
    "a judge's prompt": ("txt", lambda path: Template.read(str(path), "xalpaca.prompt", PROMPT), RecipeError),
    "a model": ("gguf", lambda path: locate_model(str(path)), ModelError),
}
"""Who reads files that people name: the ending of the name, the function, and its error."""


def said(read: Callable[[], object]) -> str:
    """Return what an error says that is crosspref's; any other one is a fault."""
    try:
        read()
    except CrossprefError as error:
        return str(error)
    return ""


EACH = pytest.mark.parametrize("reader", READERS)


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Nothing here may take long, or wait for somebody who never writes."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may have about 100 characters
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


@EACH
@pytest.mark.parametrize("make", [make_pipe, make_device, make_socket, Path.mkdir], ids=lambda make: make.__name__)
def test_what_is_no_file_is_not_waited_for(reader: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    ending, read, kind = READERS[reader]
    path = tmp_path / f"x.{ending}"
    make(path)
    with pytest.raises(kind) as caught:
        read(path)
    assert str(path) in str(caught.value)


IMPOSSIBLE = ["x" * 5000, "~nobody-of-this-name/x", "a\0b", "loop", "file/x", "none"]


@EACH
@pytest.mark.parametrize("name", IMPOSSIBLE, ids=["long", "user", "zero", "loop", "file", "none"])
def test_names_that_no_file_has(reader: str, name: str, tmp_path: Path) -> None:
    ending, read, kind = READERS[reader]
    (tmp_path / f"loop.{ending}").symlink_to(f"loop.{ending}")
    (tmp_path / "file").write_text("")
    with pytest.raises(kind):
        read(tmp_path / f"{name}.{ending}")


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_names_that_no_run_has(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file").write_text("")
    for read in (open_run, lambda path: compare_runs([path]), lambda path: leaderboard([path])):
        with pytest.raises(RunError):
            read(name)
    with pytest.raises(RecipeError):  # it may be a model, whose results need a place
        find_target(name, None, EvaluationSettings(), Reporter())


@EACH
def test_in_a_directory_that_is_gone_nothing_is_found(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, read, kind = READERS[reader]
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setenv("PWD", str(tmp_path / "gone"))
    (tmp_path / "gone").rmdir()
    assert working_directory() == tmp_path / "gone"
    with pytest.raises(kind):
        read(Path(f"x.{ending}"))


CONTENTS = {
    "empty": b"",
    "zeros": b"\0" * 1000,
    "UTF-16": b"\xff\xfea\0b\0",
    "gzip": b"\x1f\x8b" + b"x" * 99,
    "Parquet": b"PAR1" * 9,
    "deep": b"[" * 200_000,
    "quotes": b'"' * 9,
    "object": b"{}",
    "list": b"[1]",
}


@EACH
@pytest.mark.parametrize("content", CONTENTS)
def test_whatever_is_in_a_file_it_is_read_or_one_error(reader: str, content: str, tmp_path: Path) -> None:
    ending, read, _ = READERS[reader]
    path = tmp_path / f"x.{ending}"
    path.write_bytes(CONTENTS[content])
    assert len(said(lambda: read(path))) < 5000


@pytest.mark.parametrize("size", [2**20 + 1, 2**30])
def test_a_recipe_is_small(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.touch()
    os.truncate(path, size)
    with pytest.raises(RecipeError, match=f"{size:,} bytes"):
        load_recipe(path)


def test_files_that_are_read_whole_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.touch()
    os.truncate(path, 2**32)
    with pytest.raises(ModelError, match="4,294,967,296 bytes"):
        read_json(path)
    with pytest.raises(OSError, match="at most 9 are read"):
        require_file(path, 9)
    os.truncate(path, 9)
    assert read_text(path, 9) == "\0" * 9


# --- YAML ---

LAUGH = [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 12)]
MAPS = [f"x{n}: &x{n} {{a: *x{n - 1}, b: *x{n - 1}, c: *x{n - 1}}}" for n in range(1, 30)]
CHAIN = [f"x{n}: &x{n} [*x{n - 1}]" for n in range(1, 2000)]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(["x0: &x0 ha", *LAUGH]),
        "\n".join(["x0: &x0 {a: b}", *MAPS]),
        "\n".join(["x0: &x0 1", *CHAIN]),
        "\n".join(["x0: &x0 [1]", *CHAIN, "? *x1999\n: 1"]),
        f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 2000)}]",
        "a: " + "[" * 3000 + "]" * 3000,
        "a: " + "{a: " * 3000,
        f"[{'1,' * 300_000}]",
        "\n".join(f"k{n}: {n}" for n in range(150_000)),
        "seed: &a [*a]",
        "seed: &a {? *a : 1}",
        "seed: !!bool maybe",
        "seed: !!python/name:os.system ''",
        "seed: !mine 1",
        "seed: ! 1",
        "a: &a {seed: 1}\nb: {!!merge <<: *a}",
        "1: 2",
        "? [a]\n: 2",
        f"seed: {'9' * 5000}",
        "seed: *nothing",
        "seed: 1\0",
        "%YAML 3.0\n--- {}",
        "seed: 1\n---\nseed: 2",
        "\tseed: 1",
        "seed: 1\nseed: 1",
    ],
    ids=lambda text: text[:30],
)
def test_yaml_that_is_a_trap(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "x.yaml")
    assert str(caught.value).startswith("x.yaml ")
    assert len(str(caught.value)) < 1000


def test_yaml_that_is_none(tmp_path: Path) -> None:
    text = "a: &a {b: [1, 2]}\nc: [*a, *a]\n<<: *a\n'no': no\n"
    inner = {"b": [1, 2]}
    assert parse_yaml(text, "x") == {"a": inner, "c": [inner, inner], "<<": inner, "no": "no"}
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    assert parse_yaml(json.dumps({"a": deep}), "x") == {"a": deep}
    many = {"a": [str(number) for number in range(20_000)]}
    (tmp_path / "x.yaml").write_text(json.dumps(many))
    assert parse_yaml((tmp_path / "x.yaml").read_text(), "x") == many


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"k{n}: {n}" for n in range(20_000)),
        f"sample: [{', '.join(['x'] * 50_000)}]",
        f"languages: [{', '.join(f'x{n}' for n in range(50_000))}]",
        f"languages: [en{'-us' * 3000}, {'x' * 9000}]",
        f"prompts: {{source: [{', '.join(['x'] * 50_000)}]}}",
        f"prompts: {{source: [{', '.join(['1'] * 50_000)}]}}",
        f"reward: {{prefix: {{{', '.join(f'x{n}: x' for n in range(5000))}}}}}",
        f"{'k' * 900_000}: 1",
        f"preset: {'x' * 500_000}",
        f"extends: [{'x' * 500_000}]",
        f"seed: {'9' * 4000}",
        'prompts: {source: "\\ud800"}',
        f"translate: {{codes: {{{', '.join(f'x{n}: 1' for n in range(20_000))}}}}}",
        f"train: {{method: {'x' * 100_000}}}",
    ],
    ids=lambda text: text[:30],
)
def test_no_fault_of_a_recipe_prints_a_bomb(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize(
    "change",
    [
        "a." * 3000 + "a=1",
        "seed=" + "[" * 3000,
        "seed=!!bool x",
        "seed=&a [*a]",
        "seed=" + "9" * 5000,
        "x" * 100_000 + "=1",
        "x" * 100_000,
        "train.lora=" + "x" * 100_000,
        "models.chat_template_kwargs={a: .nan}",
        "models.chat_template_kwargs={a: [.inf]}",
        "models.chat_template_kwargs={a: " + "x" * 20_000 + "}",
        "models.chat_template_kwargs={1: 2}",
        "resources.device=" + "x" * 20_000,
    ],
    ids=lambda change: change[:30],
)
def test_set_goes_through_the_same_gate(change: str) -> None:
    with pytest.raises(RecipeError) as caught:
        stage_settings(TrainStage, {"languages": ["es"]}, [change])
    assert len(str(caught.value)) < 5000


def test_values_of_python_that_have_no_end() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    for given in ({"train": endless}, {"models": {"chat_template_kwargs": endless}}, {"seed": 10**5000}):
        with pytest.raises(RecipeError):
            stage_settings(TrainStage, {"languages": ["es"], **given}, [])


def test_recipes_that_extend_each_other_without_end(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    with pytest.raises(RecipeError, match="More than 20 recipes"):
        load_recipe(tmp_path / "0.yaml")
    for base in ('"a\\0b"', "x" * 5000, "."):
        (tmp_path / "top.yaml").write_text(f"extends: {base}\n")
        with pytest.raises(RecipeError, match=r"top\.yaml"):
            load_recipe(tmp_path / "top.yaml")


# --- JSON and Parquet ---


@pytest.mark.parametrize("depth", [65, 100, 900, 990, 100_000])
def test_a_models_json_is_not_deep(depth: int, tmp_path: Path) -> None:
    for name in ("config.json", "adapter_config.json", "tokenizer.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text('{"a":' * depth + "1" + "}" * depth)
        with pytest.raises(ModelError, match="levels deep"):
            read_json(tmp_path / name)
    (tmp_path / "config.json").write_text('{"a":' * 64 + "1" + "}" * 64)
    assert list(read_json(tmp_path / "config.json")) == ["a"]


def test_results_of_others_are_not_deep_and_their_numbers_are_finite(tmp_path: Path) -> None:
    row = {"language": "es", "model": "m", "lc": 1.5, "lc_kind": "LC", "judge": "j", "baseline": "b", "items": 5}
    about = {"judge": {"judge": "j", "decoding": []}, "prompt": [], "settings": {}}
    file = tmp_path / "run" / "xalpaca" / "win_rates.json"
    file.parent.mkdir(parents=True)

    def write(**change: Any) -> str:
        file.write_text(json.dumps({**about, "rows": [{**row, **change}]}))
        return said(lambda: leaderboard([tmp_path / "run"]))

    assert write() == ""
    for number in (1e999, -1, 10**400, [], "many"):
        assert "cannot be read as results" in write(lc=number)
    for change in ({"lc_low": -1e999}, {"n": "many"}, {"language": ["es"]}, {"language": "klingon"}):
        assert "cannot be read as results" in write(**change)
    for content in ("[" * 100_000, '{"rows":' * 900, "{}", "[1]", '{"rows": [1]}'):
        file.write_text(content)
        assert "cannot be read as results" in said(lambda: leaderboard([tmp_path / "run"]))
    for place in ("x" * 5000, "a\0b"):
        with pytest.raises(RunError):
            leaderboard([place])


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_that_a_few_bytes_make_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "x.parquet", {f"c{number}": pa.nulls(500) for number in range(3)})
    assert len(read_file(path, "x")) == 500
    monkeypatch.setattr(rows, "_MOST_CELLS", 1499)
    with pytest.raises(DataError, match="500 rows of 3 columns"):
        read_file(path, "x")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0], pa.timestamp("us", tz="Nowhere/At_All")),
        pa.array([2**62], pa.timestamp("us")),
        pa.array([-(2**62)], pa.timestamp("us")),
        pa.array([2**31 - 1], pa.date32()),
    ],
    ids=["zone", "late", "early", "day"],
)
def test_columns_that_cannot_be_told_disturb_nobody_who_does_not_read_them(column: Any, tmp_path: Path) -> None:
    columns = {"prompt_id": ["a"], "language": ["es"], "text": ["x"], "odd": column}
    path = parquet(tmp_path / "x.parquet", columns)
    assert [row.text for row in read_rows(path, Response)] == ["x"]
    with pytest.raises(DataError, match=r"column 'odd'"):
        read_file(path, "x")


def test_parquet_whose_names_are_odd(tmp_path: Path) -> None:
    columns = {"prompt_id": ["a"], "language": ["es"], "text": ["x"], "text.de": ["y"], "": ["z"], "prompt_id.x": [1]}
    [row] = read_rows(parquet(tmp_path / "x.parquet", columns), Response)
    assert (row.prompt_id, row.text) == ("a", "x")
    many = parquet(tmp_path / "many.parquet", {f"c{number}": [number] for number in range(5000)})
    with pytest.raises(DataError, match="has no column 'prompt_id'"):
        read_rows(many, Response)
    pq.write_table(pa.table({}), tmp_path / "none.parquet")
    with pytest.raises(DataError):
        read_rows(tmp_path / "none.parquet", Response)
    nothing = {name: pa.array([], pa.string()) for name in ("prompt_id", "language", "text")}
    assert read_rows(parquet(tmp_path / "empty.parquet", nothing), Response) == []


def test_a_folder_that_nobody_may_look_into(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may look into every folder")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(FileError):
        read_rows(tmp_path / "closed" / "x.parquet", Response)
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "closed" / "x.yaml")


# --- files that take long to read where a reader is careless ---


def test_rows_that_have_columns_of_their_own_are_soon_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"id": {number}, "c{number}": {{"en": "x"}}}}\n' for number in range(20_000)))
    assert "several columns of translations" in said(lambda: load_prompts(PromptSettings(source=str(path)), ["en"]))


def test_many_broken_rows_are_soon_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    sound = '{"language": "es", "instruction": "x"}\n'
    path.write_text(sound + "{\n" * 50_000 + sound + "{\n")
    found = read_languages(str(path), "xalpaca.items", None, "x")
    assert {language: len(rows) for language, rows in found.items()} == {"es": 50_003}
