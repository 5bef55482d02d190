"""Data files and tables from strangers: everything that is read, in every format, with something wrong in it."""

import copy
import csv
import gzip
import io
import json
import math
import random
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import load_prompts
from crosspref.data.records import Pair, Response, Score
from crosspref.data.tables import read_rows
from crosspref.recipe.sections import PromptSettings

from .cases import Case
from .mutate import TEXTS, change_bytes, change_tree, dump_json, odd_file, odd_value
from .world import World, judged

Rows = list[dict[str, Any]]
TEXT_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".ndjson")
OWN_KINDS = (".jsonl", ".parquet")
"""What crosspref's own tables are read from."""

KINDS = {"responses": Response, "scores": Score, "pairs": Pair}


class Data:
    """What all cases share, and the doors by which files come in."""

    COUNT = 2000

    def __init__(self, world: World) -> None:
        self.world = world
        self.doors: list[tuple[int, Callable[[Case], None]]] = [
            (30, self.prompts),
            (10, self.preferences),
            (15, self.tables),
            (15, self.select),
            (8, self.evaluate),
            (12, self.judged),
            (25, self.run),
            (2, self.score),
            (3, self.train),
        ]

    def __call__(self, case: Case) -> None:
        """Bring bad files through one of the doors."""
        weights, doors = zip(*self.doors, strict=True)
        [door] = case.chance.choices(doors, weights)
        door(case)
        case.require_untouched()

    def prompts(self, case: Case) -> None:
        """Parallel prompts: a row per prompt or per language, texts or conversations, a file or a folder."""
        chance, wide = case.chance, self.world.rows("prompts")
        long = [
            {"id": row["prompt_id"], "language": language, "prompt": row[language]}
            for row in wide
            for language in ("en", "es")
        ]
        chats = [
            {**{key: row[key] for key in ("id", "language")}, "messages": [{"role": "user", "content": row["prompt"]}]}
            for row in long
        ]
        structs = [{"id": row["prompt_id"], "prompt": {"en": row["en"], "es": row["es"]}} for row in wide]
        kind = chance.randrange(5)
        if kind == 4:
            source = case.folder / "prompts"
            for language in ("en", "es"):
                own = [row for row in long if row["language"] == language]
                self._write(case, own, source / language)
        else:
            source = self._write(case, [wide, long, chats, structs][kind], case.folder / "prompts")
        case.guard()
        settings = PromptSettings(
            source=str(source),
            on_problem=chance.choice(("stop", "drop")),
            limit=chance.choice((None, 1)),
            id_column=chance.choice((None, None, None, "id")),
        )
        case.call(partial(load_prompts, settings, ["en", "es"]), f"load_prompts({settings!r}, ['en', 'es'])")

    def preferences(self, case: Case) -> None:
        """English preferences."""
        rows = self.world.rows("preferences")
        if case.chance.random() < 0.5:
            for row in rows:
                row["chosen"], row["rejected"] = (
                    [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[name]}]
                    for name in ("chosen", "rejected")
                )
        source = self._write(case, rows, case.folder / "preferences")
        case.guard()
        case.call(partial(load_preferences, str(source)), f"load_preferences({str(source)!r})")

    def tables(self, case: Case) -> None:
        """A table of crosspref's own, by itself."""
        name = case.chance.choice(list(KINDS))
        file = self._write(case, self.world.rows(name), case.folder / name, OWN_KINDS)
        case.guard()
        case.call(partial(read_rows, file, KINDS[name]), f"read_rows({str(file)!r}, {KINDS[name].__name__})")

    def select(self, case: Case) -> None:
        """Pairs from responses and scores."""
        files = self._some(case, prompts=(), responses=OWN_KINDS, scores=OWN_KINDS)
        out = case.folder / f"out{case.chance.choice(OWN_KINDS)}"
        case.guard(f"{out.name}*", "dropped.jsonl*")
        mode = case.chance.choice(("optimal", "grid", "none"))
        given = ("--prompts", files["prompts"], "--responses", files["responses"], "--scores", files["scores"])
        settings = ("--set", f"length_penalty.mode={mode}", "--set", "select.truncated=keep", "--set=select.min_gap=0")
        case.run("select", *given, "--out", out, "--dropped", case.folder / "dropped.jsonl", *settings)
        _require_numbers(case, out)

    def evaluate(self, case: Case) -> None:
        """Measures of responses and scores."""
        files = self._some(case, responses=OWN_KINDS, scores=OWN_KINDS)
        out = case.folder / "out.jsonl"
        case.guard("out.jsonl*")
        scores = ("--scores", files["scores"], "--baseline-scores", self.world.root / "scores.jsonl")
        small = "--set=evaluate.resamples=20"
        case.run("evaluate", "--responses", files["responses"], *scores, "--out", out, small)

    def judged(self, case: Case) -> None:
        """Answers, items, annotations and verdicts of others, for a suite; nobody is asked."""
        suite = case.chance.choice(("xalpaca", "mtbench"))
        names = {
            "xalpaca": ("answers", "items", "baseline", "xalpaca_verdicts", "annotations"),
            "mtbench": ("conversations", "questions", "references", "mtbench_verdicts"),
        }[suite]
        kinds = {name: (".jsonl",) if name.endswith("verdicts") else () for name in names}
        files = self._some(case, **kinds)
        case.guard("out/*")
        command = judged(self.world, suite, files[names[0]], case.folder / "out")
        settings = [f"{suite}.{'items' if suite == 'xalpaca' else 'questions'}={files[names[1]]}"]
        settings.append(f"{suite}.{'baseline' if suite == 'xalpaca' else 'references'}={files[names[2]]}")
        if suite == "xalpaca" and case.chance.random() < 0.4:
            place = command.index("--answers")
            command[place : place + 2] = ["a-model", "--annotations", str(files["annotations"])]
        else:
            command += ["--judge", "replay", str(files[names[3]])]
        outcome = case.run(*command, *(f"--set={setting}" for setting in settings), "--set=judge.model=judge-1")
        if outcome.code == 0:
            case.run("leaderboard", "out", "--suite", suite, *case.chance.choice(((), ("--format", "csv"))))

    def run(self, case: Case) -> None:
        """A run directory of somebody else, which is looked at."""
        chance, run = case.chance, case.folder / "run"
        shutil.copytree(self.world.root / "run", run, ignore=shutil.ignore_patterns("report.md"))
        files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"]
        for file in chance.sample(files, k=chance.choice((1, 1, 2))):
            kind = chance.randrange(10)
            if kind == 0:
                odd_file(chance, file)
            elif kind < 6 and file.suffix == ".json":
                tree = json.loads(file.read_text(encoding="utf-8"))
                file.write_bytes(dump_json(chance, change_tree(chance, tree)))
            elif kind < 6 and file.suffix == ".parquet":
                rows = pq.ParquetFile(file).read(use_threads=False).to_pylist()
                _write_table(chance, _changed_rows(chance, rows), file)
            else:
                file.write_bytes(change_bytes(chance, file.read_bytes()))
        case.guard("run/report.md*", "run/run.log", "run/.lock", "comparison.*")
        commands = (
            ("status", "run"),
            ("report", "run"),
            ("compare", "run", self.world.root / "run"),
            ("leaderboard", "run"),
            ("plan", self.world.root / "recipe.yaml", "--from", "run"),
            ("verify", "run"),
        )
        for command in chance.sample(commands, k=2):
            case.run(*command)

    def score(self, case: Case) -> None:
        """Responses and prompts that a model scores."""
        files = self._some(case, prompts=(), responses=OWN_KINDS)
        out = case.folder / f"out{case.chance.choice(OWN_KINDS)}"
        case.guard(f"{out.name}*", f".{out.name}*")
        models = ("--policy", self.world.root / "policy", "--reference", self.world.root / "initial")
        given = ("--prompts", files["prompts"], "--responses", files["responses"])
        case.run("score", *models, *given, "--out", out, "--set=resources.threads=1")
        _require_numbers(case, out)

    def train(self, case: Case) -> None:
        """Pairs on which a model is trained."""
        file = self._write(case, self.world.rows("pairs"), case.folder / "pairs", OWN_KINDS)
        case.guard("out/*", "out.training.json", "out.checkpoints/*", "out.*")
        settings = ("train.batch_size=4", "train.micro_batch_size=2", "resources.threads=1")
        given = ("--model", self.world.root / "policy", "--pairs", file, "--out", case.folder / "out")
        case.run("train", *given, *(f"--set={setting}" for setting in settings))

    def _some(self, case: Case, **kinds: tuple[str, ...]) -> dict[str, Path]:
        """Write one of the named tables with something wrong in it, and leave the others as they are."""
        bad = case.chance.choice(list(kinds))
        files = {name: self.world.root / f"{name}.jsonl" for name in kinds}
        files[bad] = self._write(case, self.world.rows(bad), case.folder / bad, kinds[bad])
        return files

    def _write(self, case: Case, rows: Rows, stem: Path, endings: tuple[str, ...] = ()) -> Path:
        """Write rows in one of the formats, with something wrong in the rows, in the bytes or in the file."""
        chance = case.chance
        stem.parent.mkdir(exist_ok=True)
        file = stem.with_name(stem.name + chance.choice(endings or (*TEXT_KINDS, ".parquet", ".parquet")))
        kind = chance.randrange(20)
        _write_table(chance, _changed_rows(chance, rows) if kind < 13 else rows, file)
        if kind >= 13:
            data = file.read_bytes()
            if kind < 19:
                file.write_bytes(change_bytes(chance, data))
            else:
                odd_file(chance, file)
        elif file.suffix != ".parquet" and chance.random() < 0.08:
            packed = gzip.compress(file.read_bytes() if chance.random() < 0.7 else b" " * (1 << 26))
            file.unlink()
            file = file.with_name(f"{file.name}.gz")
            file.write_bytes(packed if chance.random() < 0.7 else change_bytes(chance, packed))
        return file


def _changed_rows(chance: random.Random, rows: Rows) -> Rows:
    """Return rows with one to three things wrong: a cell, a column, or the rows themselves."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        rows = copy.deepcopy(rows)
        if not rows:
            return rows
        kind, columns = chance.randrange(12), list(rows[0])
        column = chance.choice(columns) if columns else "x"
        if kind < 5:
            chance.choice(rows)[column] = odd_value(chance)
        elif kind == 5:
            rows = change_tree(chance, rows)
            rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        elif kind == 6:
            value = odd_value(chance)
            rows = [{**row, column: value} for row in rows]
        elif kind == 7:
            rows = [{key: value for key, value in row.items() if key != column} for row in rows]
        elif kind == 8:
            name = chance.choice((*columns, *TEXTS, column.upper(), "id", "model", "language"))
            rows = [{(name if key == column else key): value for key, value in row.items()} for row in rows]
        elif kind == 9:
            rows = rows + rows[: chance.choice((1, len(rows)))]
        elif kind == 10:
            rows = chance.choice(([], rows[:1], rows[::-1], rows * 300))
        else:
            other = chance.choice(columns) if columns else column
            rows = [{**row, column: row.get(other), other: row.get(column)} for row in rows]
    return rows


def _write_table(chance: random.Random, rows: Rows, file: Path) -> None:
    """Write rows in the format that the file's name says, as far as it can hold them."""
    file.unlink(missing_ok=True)
    if file.suffix == ".parquet":
        _write_parquet(chance, rows, file)
    elif file.suffix in (".csv", ".tsv"):
        _write_csv(chance, rows, file)
    elif file.suffix == ".json":
        file.write_bytes(dump_json(chance, rows))
    else:
        file.write_bytes(b"".join(dump_json(chance, row) + b"\n" for row in rows))


def _write_csv(chance: random.Random, rows: Rows, file: Path) -> None:
    text, columns = io.StringIO(), list(dict.fromkeys(key for row in rows for key in row))
    delimiter = "\t" if file.suffix == ".tsv" else chance.choice((",", ",", ",", ";", "|"))
    writer = csv.writer(text, delimiter=delimiter, quoting=chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    writer.writerow(columns)
    writer.writerows([row.get(column) for column in columns] for row in rows)
    lead = chance.choice(("", "", "", "sep=;\n", "\n", "\ufeff", "# a comment\n"))
    file.write_bytes((lead + text.getvalue()).encode("utf-8", "surrogatepass"))


def _write_parquet(chance: random.Random, rows: Rows, file: Path) -> None:
    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = [_array(chance, [row.get(name) for row in rows]) for name in names]
    if chance.random() < 0.05 and names:
        names, columns = [*names, names[0]], [*columns, columns[0]]
    shown = [name.encode("utf-8", "replace").decode() for name in names]
    compression = chance.choice(("zstd", "none", "snappy"))
    try:
        pq.write_table(pa.Table.from_arrays(columns, names=shown), file, compression=compression)
    except pa.ArrowException:  # Arrow has types that Parquet has not
        texts = [pa.array(map(str, column.to_pylist()), pa.string()) for column in columns]
        pq.write_table(pa.Table.from_arrays(texts, names=shown), file, compression=compression)


def _array(chance: random.Random, values: list[Any]) -> pa.Array:
    """Return a column, now and then of a type that nobody expects."""
    if chance.random() < 0.1:
        array = chance.choice(_ODD_ARRAYS)(len(values))
        if len(array) == len(values):
            return array
    try:
        array = pa.array(values)
        if pa.types.is_string(array.type) and chance.random() < 0.2:
            kinds = (pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string()))
            return array.cast(chance.choice(kinds))
    except (pa.ArrowException, TypeError, OverflowError, UnicodeEncodeError, ValueError):
        texts = [None if value is None else str(value).encode("utf-8", "replace").decode() for value in values]
        return pa.array(texts, pa.string())
    return array


_ODD_ARRAYS: list[Callable[[int], pa.Array]] = [
    lambda count: pa.nulls(count),
    lambda count: pa.array([b"\xff\xfe"] * count),
    lambda count: pa.array([b"0123456789abcdef"] * count, pa.binary(16)),
    lambda count: pa.array([Decimal("1.50")] * count),
    lambda count: pa.array([datetime(2025, 1, 1) for _ in range(count)], pa.timestamp("ns")),
    lambda count: pa.array([2**62] * count, pa.int64()).cast(pa.timestamp("us")),
    lambda count: pa.array([timedelta(days=1)] * count),
    lambda count: pa.array([math.nan] * count),
    lambda count: pa.array([2**64 - 1] * count, pa.uint64()),
    lambda count: pa.array([[[1], None]] * count),
    lambda count: pa.array([{"role": "user", "content": None}] * count),
    lambda count: pa.array([[("a", 1)]] * count, pa.map_(pa.string(), pa.int32())),
    lambda count: pa.array([[]] * count, pa.list_(pa.null())),
    lambda count: pa.array([""] * count),
    lambda count: pa.array([1.5] * count, pa.float16()),
]


def _require_numbers(case: Case, table: Path) -> None:
    """Say which numbers of a table that was written are none: such must be refused where they come in."""
    if not table.is_file():
        return
    rows = pq.ParquetFile(table).read(use_threads=False).to_pylist() if table.suffix == ".parquet" else [
        json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()
    ]  # fmt: skip
    for row in rows:
        wrong = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        if wrong:
            case.faults.append(f"a number that is none was written: {wrong[0]} is {row[wrong[0]]}")
            return
