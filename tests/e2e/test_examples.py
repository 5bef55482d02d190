"""The scripts in examples/ do what they say, on tiny models, and stay short."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from running import Models, rows, small_recipe, write_recipe

from crosspref.data.preferences import load_preferences
from crosspref.data.records import Pair, Response

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_short() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(lengths) == 3
    assert max(lengths.values()) <= 40, lengths


def test_score_responses(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("score_responses")
    initial, policy = map(str, models)
    example.main(policy, initial)
    lines = capsys.readouterr().out.splitlines()
    rewards = [float(line.split()[0]) for line in lines]
    assert rewards == sorted(rewards, reverse=True)
    assert {line.partition(" tokens  ")[2] for line in lines} == set(example.ANSWERS)


def test_select_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompt 1: the long answer wins until alpha is 2. Prompt 2: it is best until 0.25, and worst from 1 on."""
    scored, pairs = tmp_path / "scored.jsonl", tmp_path / "pairs.jsonl"
    answers = [("p", "aaaa", 6.0), ("p", "b", 0.0), ("q", "ccccc", 2.0), ("q", "ddd", 0.0), ("q", "eee", 1.5)]
    rows = [{"prompt": prompt, "response": text, "score": score} for prompt, text, score in answers]
    scored.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    load("select_pairs").main(str(scored), str(pairs))
    assert "alpha 1.5;" in capsys.readouterr().out
    written = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    texts = [tuple(row[side][0]["content"] for side in ("prompt", "chosen", "rejected")) for row in written]
    assert texts == [("p", "aaaa", "b"), ("q", "eee", "ccccc")]
    assert len(load_preferences(str(pairs))) == 2


def test_own_sampler(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are trained on; that phases run in processes of their own is set, and does not lose it."""
    recipe: dict[str, Any] = small_recipe(*models, iterations=1, resources={"process_per_phase": True})
    monkeypatch.setattr(
        sys, "argv", ["own_sampler.py", str(write_recipe(tmp_path / "a.yaml", recipe)), str(tmp_path / "run")]
    )
    runpy.run_path(str(EXAMPLES / "own_sampler.py"), run_name="__main__")
    folder = tmp_path / "run" / "iteration_1"
    responses = rows(folder / "responses", Response)
    assert len(responses) == 2 * 5 * 3
    assert all(row.token_ids is None for row in responses)  # crosspref's own samplers give the ids
    texts = {row.text for row in responses}
    pairs = rows(folder / "pairs", Pair)
    assert pairs
    assert {pair.chosen[0]["content"] for pair in pairs} <= texts
    assert (folder / "policy" / "model.safetensors").exists()
