"""`make bench` on a tiny model: every line is measured, stored and shown. What it reaches there means nothing."""

import importlib
import json
from pathlib import Path

import pytest
from running import DATA, Models

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {
    "prompts": 4,
    "responses": 2,
    "new-tokens": 12,
    "rounds": 1,
    "sample-prompts": 2,
    "iteration-prompts": 2,
    "pairs": 2,
    "dtype": "float32",
    "threads": 1,
}


def test_every_line_is_measured_and_shown(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("OMP_NUM_THREADS", "TQDM_DISABLE", "PYTHONWARNINGS"):
        monkeypatch.setenv(name, "1" if name != "PYTHONWARNINGS" else "ignore")
    bench, lines = importlib.import_module("bench"), importlib.import_module("lines")
    monkeypatch.setattr(importlib.import_module("measures.memory"), "TOKENS", 32)
    monkeypatch.setattr(importlib.import_module("measures.alpha"), "PROMPTS", 50)
    given = {"model": models[0], "prompts-from": DATA / "prompts_train.jsonl", "docs": tmp_path, **TINY}
    given["cache"] = tmp_path / "cache"
    bench.main([text for name, value in given.items() for text in (f"--{name}", str(value))])
    found = json.loads((tmp_path / "performance.json").read_text())
    page, printed = (tmp_path / "performance.md").read_text(), capsys.readouterr().out
    assert list(found) == list(lines.LINES)
    for key, line in found.items():
        assert line["low"] <= line["median"] <= line["high"]
        assert line["settings"]["response tokens"] > 0
        assert f"| [{key}](#{key}) |" in page
        assert f"\n{key} " in printed
    assert (tmp_path / "performance.svg").stat().st_size > 1000
    drawn = json.loads((tmp_path / "cache" / "workload.json").read_text())["responses"]
    texts = [row["text"] for row in drawn if len(row["text"]) > 5]
    assert texts
    assert not [text for text in texts if text in page]

    # One line alone replaces itself, from the same responses.
    bench.main([text for name, value in given.items() for text in (f"--{name}", str(value))] + ["--only", "alpha"])
    again = json.loads((tmp_path / "performance.json").read_text())
    assert {key for key in found if again[key] != found[key]} == {"alpha"}
    assert json.loads((tmp_path / "cache" / "workload.json").read_text())["responses"] == drawn
