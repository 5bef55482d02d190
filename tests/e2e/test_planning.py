"""``crosspref plan`` on tiny models: from a finished run's figures, and from a probe."""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from running import Run, assert_one_message, succeeded, write_recipe
from transformers import AutoModelForCausalLM

from crosspref.models.locate import locate_model
from crosspref.plan.shapes import read_shape, shape_of


@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma"])
def test_parameters_are_those_of_the_model(tiny_models: dict[str, tuple[Path, Path]], kind: str) -> None:
    directory = tiny_models[kind][0]
    model = AutoModelForCausalLM.from_pretrained(directory)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert read_shape(locate_model(str(directory))).parameters == count
    # Worked out from the configuration it lacks only the norms, which are a few vectors.
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    assert shape_of(config, {}, kind).parameters == matrices


def test_a_runs_own_figures_give_its_own_time(done: Path, recipe_file: Path, command: Run) -> None:
    out, _ = succeeded(command("plan", recipe_file, "--from", done, "--json"))
    plan = json.loads(out)
    took: dict[str, float] = {}
    for line in (done / "phases.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        took[row["phase"]] = took.get(row["phase"], 0.0) + row["seconds"]
    # Its shards are too short to time one by one, but their sum is what the speeds were made from.
    assert plan["seconds"] == pytest.approx(sum(took.values()), rel=0.5)
    assert any("as measured" in note for note in plan["notes"])


def test_what_a_stopped_run_has_done_is_enough(done: Path, recipe_file: Path, command: Run, tmp_path: Path) -> None:
    for name in ("recipe.yaml", "prompts", "heldout", "iteration_0"):
        (shutil.copytree if (done / name).is_dir() else shutil.copy)(done / name, tmp_path / name)
    out, _ = succeeded(command("plan", recipe_file, "--from", tmp_path, "--json"))
    assert json.loads(out)["seconds"] > 0


def test_a_run_that_has_done_nothing_is_said(done: Path, recipe_file: Path, command: Run, tmp_path: Path) -> None:
    assert_one_message(command("plan", recipe_file, "--from", tmp_path / "none"), "holds no run")
    shutil.copy(done / "recipe.yaml", tmp_path)
    assert_one_message(command("plan", recipe_file, "--from", tmp_path), "has not got far enough", "crosspref status")


@pytest.mark.parametrize("stage_0", [False, True], ids=["pi_0 is given", "pi_0 is made"])
def test_a_probe_measures_every_phase(
    content: dict[str, Any], preferences: Path, command: Run, tmp_path: Path, stage_0: bool
) -> None:
    asked = dict(content)
    if stage_0:
        asked["models"] = {"initial": content["models"]["initial"]}
        asked["align_english"] = {"preferences": str(preferences), "batch_size": 4, "micro_batch_size": 2, "lora": {}}
    began = time.monotonic()
    out, _ = succeeded(command("plan", write_recipe(tmp_path / "recipe.yaml", asked), "--probe", "--json"))
    assert time.monotonic() - began < 240  # the budget is half of it
    plan = json.loads(out)
    heavy = [row for row in plan["rows"] if row["tokens"]]
    assert {row["phase"] for row in heavy} >= {"sample", "score", "train", "evaluate"}
    assert all(row["seconds"] > 0 and math.isfinite(row["seconds"]) and row["fits"] for row in heavy)
    assert any("counted by the tokenizer" in note for note in plan["notes"])
