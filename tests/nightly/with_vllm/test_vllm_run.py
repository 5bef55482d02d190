"""Whole runs with vLLM by the real command, one of them killed in mid-sampling; and vLLM's own server."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("vllm.entrypoints.openai.api_server")

import httpx
import psutil

from crosspref.data.records import Response
from crosspref.run.store import Unit

ROOT = Path(__file__).parents[3]
DATA = ROOT / "src" / "crosspref" / "data"


def first_lines(name: str, path: Path, count: int) -> str:
    path.write_text("\n".join((DATA / name).read_text(encoding="utf-8").splitlines()[:count]) + "\n", encoding="utf-8")
    return str(path)


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def test_a_run_that_is_killed_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    recipe = {
        "extends": str(Path(__file__).parents[2] / "with_stage_0.yaml"),
        "languages": ["en", "es"],
        "prompts": {"limit": 2},
        "align_english": {"preferences": first_lines("english_preferences.jsonl", tmp_path / "english.jsonl", 2)},
        "sample": {"engine": "vllm", "n": 2, "max_new_tokens": 12, "max_prompt_tokens": 256},
        "vllm": {"max_sequences": 8},
        "select": {"min_gap": 0},
        "evaluate": {"prompts": None},
        "resources": {"shard_prompts": 1, "dtype": "float32", "threads": 1},
    }
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "crosspref", "run", str(file), "--out", str(run)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + 500
    while not any(run.glob("iteration_1/responses/*/*.done.json")):
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 20
    while left := [child for child in psutil.process_iter() if session_of(child.pid) == process.pid]:
        assert time.monotonic() < end, left
        time.sleep(0.1)
    markers = list(run.glob("iteration_1/responses/*/*.done.json"))
    kept = {path: path.stat().st_mtime_ns for path in markers}

    again = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    units = [Unit(path) for path in sorted(run.glob("iteration_1/responses/*/*.parquet"))]
    rows: list[Response] = [row for unit in units for row in unit.rows(Response)]
    assert len({(row.prompt_id, row.language, row.sample) for row in rows}) == len(rows) == 8
    assert all(row.token_ids and row.finish_reason in {"stop", "length"} for row in rows)
    assert (run / "iteration_1" / "policy" / "config.json").is_file()


def test_the_server_takes_and_returns_token_ids(vllm_server: str) -> None:
    models = httpx.get(f"{vllm_server}/models", timeout=30).json()["data"]
    assert {model["id"] for model in models} == {"pi_0", "pi_I"}
    body = {"model": "pi_0", "prompt": [1, 2, 3], "max_tokens": 3, "temperature": 0, "return_token_ids": True}
    choice = httpx.post(f"{vllm_server}/completions", json=body, timeout=120).json()["choices"][0]
    assert len(choice["token_ids"]) == 3
    assert choice["prompt_token_ids"] == [1, 2, 3]
