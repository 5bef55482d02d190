"""A whole run whose policies are adapters over one base, what becomes of it when things move, and its stages alone."""

import shutil
from pathlib import Path

import pytest
import torch
from running import Models, Run, assert_one_message, by_key, rows, small_recipe, succeeded, times, write_recipe
from safetensors.torch import load_file

from crosspref import api
from crosspref.data.records import Score
from crosspref.data.tables import read_rows
from crosspref.models.locate import locate_model


def test_a_run_of_adapters(command: Run, models: Models, preferences: Path, held_out: Path, tmp_path: Path) -> None:
    """pi_0, pi_1 and pi_2 are one adapter that goes on; pi_I is its base."""
    lora = {"rank": 2, "save": "adapter"}
    stage_0 = {"preferences": str(preferences), "learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 2}
    base = Path(shutil.copytree(models[0], tmp_path / "base"))
    recipe = small_recipe(
        base,
        iterations=2,
        align_english={**stage_0, "lora": lora},
        train={"lora": lora},
        evaluate={"prompts": str(held_out), "n": 1, "resamples": 100},
    )
    file, first = write_recipe(tmp_path / "recipe.yaml", recipe), tmp_path / "first"
    succeeded(command("run", file, "--out", first))
    run = Path(shutil.move(first, tmp_path / "run"))
    policies = [run / f"iteration_{iteration}" / "policy" for iteration in range(3)]
    for policy in policies:
        assert sorted(entry.name for entry in policy.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        assert locate_model(str(policy)).directory == base
    assert len({locate_model(str(policy)).identity for policy in policies}) == 3

    before = times(run)
    succeeded(command("run", file, "--out", run))
    assert api.verify(run).damages == []
    assert {name for name, when in times(run).items() if when != before[name]} <= {"recipe.yaml", "report.md"}

    _score_and_train_alone(command, recipe, run, base, tmp_path)

    base.rename(tmp_path / "hidden")
    answer = command("train", "--model", policies[1], "--pairs", run / "iteration_2" / "pairs", "--out", tmp_path / "x")
    config = policies[1] / "adapter_config.json"
    assert_one_message(answer, f"made for the base model {str(base)!r}, which was not found", str(config))


def _score_and_train_alone(command: Run, recipe: dict[str, object], run: Path, base: Path, tmp_path: Path) -> None:
    """The commands give what the run gave, and whole weights from an adapter where they are asked for."""
    policy, folder = run / "iteration_1" / "policy", run / "iteration_2"
    settings = []
    for section in ("resources", "train"):
        for name, value in recipe[section].items():  # type: ignore[attr-defined]
            given = (
                [f"{name}.{key}={setting}" for key, setting in value.items()] if name == "lora" else [f"{name}={value}"]
            )
            settings += [part for one in given for part in ("--set", f"{section}.{one}")]
    cpu = settings[: 2 * len(recipe["resources"])]  # type: ignore[arg-type]
    scores = tmp_path / "scores.parquet"
    what = ("--prompts", recipe["prompts"]["source"], "--responses", folder / "responses")  # type: ignore[index]
    succeeded(command("score", "--policy", policy, "--reference", base, *what, "--out", scores, *cpu))
    found, expected = (
        {key: row.implicit_reward for key, row in by_key(table).items()}
        for table in (read_rows(scores, Score), rows(folder / "scores"))
    )
    assert found == pytest.approx(expected, abs=1e-5)

    training = ("train", "--model", policy, "--pairs", folder / "pairs", *settings)
    for name, extra in (("own", ()), ("full", ("--set", "train.lora="))):
        succeeded(command(*training, *extra, "--out", tmp_path / name))
    own, theirs = (load_file(path / "adapter_model.safetensors") for path in (tmp_path / "own", folder / "policy"))
    assert all(torch.equal(own[name], weight) for name, weight in theirs.items())
    assert locate_model(str(tmp_path / "own")).directory == base
    assert locate_model(str(tmp_path / "full")).adapter is None
