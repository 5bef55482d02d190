"""What the end-to-end tests share: a small recipe, ways to run it, and a look into a run directory."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import yaml

from crosspref.cli import main
from crosspref.data.records import Dropped, Measure, Pair, Prompt, Response, Score
from crosspref.errors import RunError
from crosspref.run.store import Unit

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "src" / "crosspref" / "data"
CLI = [sys.executable, "-m", "crosspref"]
LOGS = ("phases.jsonl", "run.log", ".lock")
Models = tuple[Path, Path]
"""pi_I and pi_0."""
Run = Callable[..., tuple[int, str, str]]
"""The command, run in this process: exit code, output, errors."""
KINDS = {"responses": Response, "scores": Score, "pairs": Pair, "dropped": Dropped, "prompts": Prompt}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def head(name: str, path: Path, count: int) -> Path:
    """Write the first lines of one of the package's data files."""
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()[:count]
    return write_lines(path, [json.loads(line) for line in lines])


def small_recipe(initial: Path, policy: Path | None = None, **changes: Any) -> dict[str, Any]:
    """A recipe of many small shards that runs in seconds; ``changes`` are sections, merged into those here."""
    recipe: dict[str, Any] = {
        "models": {"initial": str(initial)} | ({"policy": str(policy)} if policy else {}),
        "languages": ["en", "es"],
        "prompts": {"source": str(DATA / "prompts_train.jsonl"), "limit": 5},
        # Short, so that some responses end before the limit and some do not.
        "sample": {"n": 3, "max_new_tokens": 12, "batch_size": 8},
        "select": {"truncated": "keep", "min_gap": 0},
        "train": {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 2, "checkpoint_every": 1},
        "resources": {
            "device": "cpu",
            "dtype": "float32",
            "threads": 1,
            "shard_prompts": 2,
            "process_per_phase": False,
        },
    }
    for section, values in changes.items():
        known = recipe.get(section)
        recipe[section] = {**known, **values} if isinstance(known, dict) and isinstance(values, dict) else values
    return recipe


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def write_evaluation(folder: Path, **sections: Any) -> Path:
    """Write the settings of an evaluation that takes seconds, with more sections, as ``evaluation.yaml``."""
    settings = {
        "judge": {"model": "judge-1", "concurrency": 2},
        "answers": {"max_new_tokens": 8},
        "resources": {"device": "cpu", "dtype": "float32", "threads": 1, "shard_prompts": 2},
        "resamples": 100,
    }
    return write_recipe(folder / "evaluation.yaml", {**settings, **sections})


def environment(**extra: str) -> dict[str, str]:
    source = str(HERE.parents[1] / "src")
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "120", **extra}


def crosspref(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [*CLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(**extra), check=False)


def ask_here(arguments: Sequence[str], text: str) -> str:
    """Do here what `crosspref` asks a child of its own, which would take seconds to import torch."""
    output, before = io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(text)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = main(list(arguments))
    finally:
        sys.stdin = before
    last = output.getvalue().splitlines()[-1]
    if code:
        raise RunError(last.removeprefix("crosspref: "))
    return last


class ForkServer:
    """Starts `crosspref` commands as forked children; see fork_server.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.lock = threading.Lock()
        self.ready = False

    def _ask(self, *question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            if not self.ready:
                assert json.loads(self.process.stdout.readline()) == "ready"
                self.ready = True
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())

    def spawn(self, *arguments: str | Path, log: Path) -> "Forked":
        return Forked(self, self._ask("spawn", [str(argument) for argument in arguments], str(log)), log)

    def run(self, *arguments: str | Path, log: Path) -> "Forked":
        """Run a command to its end, which must be a good one."""
        process = self.spawn(*arguments, log=log)
        assert process.wait() == 0, process.output()
        return process

    def poll(self, pid: int) -> int | None:
        code: int | None = self._ask("poll", pid)
        return code

    def close(self) -> None:
        self.process.communicate()


class Forked:
    """One running command."""

    def __init__(self, server: ForkServer, pid: int, log: Path) -> None:
        self.server, self.pid, self.log = server, pid, log
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.server.poll(self.pid)
        return self.code

    def wait(self, seconds: float = 120) -> int:
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < end, f"still running after {seconds} s:\n{self.output()}"
            time.sleep(0.02)
        return code

    def signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill_when(self, ready: Callable[[], Any]) -> None:
        """Kill it as soon as something is so, which must be before it ends."""
        end = time.monotonic() + 60
        while not ready():
            assert self.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.002)
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


def rows(folder: Path, kind: type | None = None) -> list[Any]:
    """The rows of all tables in a folder and below; which record they hold is told by the folder's path."""
    if kind is None:
        kind = next(KINDS[part] for part in reversed(folder.parts) if part in KINDS)
    # A folder of prompts holds a table of what was dropped, too.
    paths = [path for path in sorted(folder.rglob("*.parquet")) if kind is Dropped or path.stem != "dropped"]
    return [row for path in paths for row in Unit(path).rows(kind)]


def by_key(rows: Iterable[Any]) -> dict[tuple[Any, ...], Any]:
    """Rows by their key, which must be unique."""
    rows = list(rows)
    found = {(row.prompt_id, row.language, *([row.sample] if hasattr(row, "sample") else [])): row for row in rows}
    assert len(found) == len(rows)
    return found


def measures(run: Path) -> list[Measure]:
    return [
        row for path in sorted(run.glob("iteration_*/evaluation/measures.parquet")) for row in Unit(path).rows(Measure)
    ]


def files(run: Path) -> dict[str, Path]:
    """All files of a run but its logs, by their place in it."""
    found = {path.relative_to(run).as_posix(): path for path in sorted(run.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name not in LOGS}


def times(run: Path) -> dict[str, int]:
    return {name: path.stat().st_mtime_ns for name, path in files(run).items()}


def content(path: Path) -> Any:
    """What a file of a run holds, without what only says how long it took to make."""
    if path.suffix == ".parquet":
        return repr(pq.ParquetFile(path).read().to_pylist())  # repr, for which nan equals nan
    if path.name.endswith(".done.json"):
        marker = json.loads(path.read_text(encoding="utf-8"))
        how = ("seconds", "tokens")
        figures = {name: value for name, value in marker["figures"].items() if name not in how}
        del marker["seal"]  # which covers these figures, too
        return json.dumps({**marker, "figures": figures}, sort_keys=True)
    return path.read_bytes()


def assert_same_run(run: Path, reference: Path) -> None:
    """Every table, marker and weight of one run is in the other, to the last bit."""
    ours, theirs = files(run), files(reference)
    assert ours.keys() == theirs.keys(), f"only in one of them: {sorted(ours.keys() ^ theirs.keys())}"
    differing = [name for name in theirs if content(ours[name]) != content(theirs[name])]
    assert not differing, f"these differ: {differing}"


def wait_for(run: Path, pattern: str, alive: Callable[[], Any]) -> None:
    while not any(run.glob(pattern)):
        assert alive() is None, "it ended before it was expected to"
        time.sleep(0.001)


def succeeded(answer: tuple[int, str, str]) -> tuple[str, str]:
    """The output and the errors of a command, which must have ended well."""
    code, output, errors = answer
    assert code == 0, errors
    return output, errors


def table(folder: Path, name: str) -> list[Any]:
    """The rows of one of a suite's tables."""
    return [SimpleNamespace(**row) for row in pq.read_table(folder / f"{name}.parquet").to_pylist()]


def assert_stopped(answer: tuple[int, str, str], *parts: str) -> None:
    """A command ended with one message behind its progress, which has these parts."""
    code, output, errors = answer
    assert_one_message((code, output, errors[errors.index("crosspref: ") :]), *parts)


def assert_one_message(answer: tuple[int, str, str], *parts: str) -> None:
    """A command said nothing but one message, which has these parts."""
    code, _, errors = answer
    assert code == 1, errors
    assert errors.startswith("crosspref: "), errors
    assert errors.count("crosspref: ") == 1, errors
    assert "Traceback" not in errors, errors
    for part in parts:
        assert part in errors, f"{part!r} is not in: {errors}"
