"""Models and prompts under another path: the same content goes on, another one is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_runs import store

from crosspref.algorithm import phases
from crosspref.data.records import Response
from crosspref.errors import RunError
from crosspref.models.locate import locate_model
from crosspref.recipe.files import load_recipe, make_recipe
from crosspref.recipe.schema import Recipe
from crosspref.run.job import Job
from crosspref.run.layout import RunDirectory
from crosspref.run.moved import find_base_again
from crosspref.run.phases import settle_recipe
from crosspref.run.progress import Reporter
from crosspref.run.store import Fingerprint
from crosspref.stages.prompts import read_prompts


def recipe_in(place: Path, **changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "models": {"initial": str(place / "initial"), "policy": str(place / "policy")},
        "languages": ["en", "es"],
        "prompts": {"source": str(place / "prompts.jsonl")},
        "evaluate": {"prompts": str(place / "heldout.jsonl")},
    }
    return make_recipe({**content, **changes})


def job_of(run: RunDirectory, recipe: Recipe) -> Job:
    return Job(recipe, run, None, Reporter())  # type: ignore[arg-type]


def settled(run: RunDirectory, recipe: Recipe) -> list[str]:
    said: list[str] = []
    settle_recipe(run, recipe, phases, said.append)
    return said


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Files that only have to be hashed."""
    place = tmp_path / "old"
    for name in ("initial", "policy"):
        (place / name).mkdir(parents=True)
        (place / name / "config.json").write_text("{}")
        (place / name / "model.safetensors").write_text(name)
    for name, text in (("prompts", "Name a river."), ("heldout", "Name a lake.")):
        row = {"prompt_id": "one", "en": text, "es": f"{text} Sí."}
        (place / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return place


@pytest.fixture
def run(old: Path, tmp_path: Path) -> RunDirectory:
    """A run with prompts, and with responses of pi_0."""
    run, recipe = RunDirectory(tmp_path / "run"), recipe_in(old)
    assert settled(run, recipe) == []
    read_prompts(job_of(run, recipe), 0)
    made = Fingerprint({}, {"policy": locate_model(str(old / "policy")).identity})
    store(run.iteration(1).responses.unit("es", 0), [], Response, made)
    return run


def test_what_moved_goes_on_and_is_said(run: RunDirectory, old: Path) -> None:
    new = Path(shutil.move(old, old.with_name("new")))
    before = {path: path.read_bytes() for path in run.root.rglob("*.parquet*")}
    said = settled(run, recipe_in(new))
    expected = ["models.initial", "models.policy", "prompts.source", "evaluate.prompts"]
    assert [line.partition(":")[0] for line in said] == expected
    assert load_recipe(run.recipe) == recipe_in(new)
    read_prompts(job_of(run, recipe_in(new)), 0)
    assert {path: path.read_bytes() for path in run.root.rglob("*.parquet*")} == before
    assert settled(run, recipe_in(new)) == []


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("policy/model.safetensors", "models.policy"),
        ("prompts.jsonl", "prompts.source"),
        ("heldout.jsonl", "evaluate.prompts"),
    ],
)
def test_other_content_under_another_path_is_refused(run: RunDirectory, old: Path, file: str, setting: str) -> None:
    new = Path(shutil.copytree(old, old.with_name("new")))
    (new / file).write_text((new / file).read_text().replace("i", "e"))
    with pytest.raises(RunError, match=f"  - {setting}: "):
        settled(run, recipe_in(new))
    assert load_recipe(run.recipe) == recipe_in(old)


def test_an_adapter_finds_its_base_again(run: RunDirectory, old: Path, tmp_path: Path) -> None:
    named = {1: str(old / "policy"), 2: "../../iteration_1/policy", 3: "owner/name", 4: str(tmp_path)}
    files = {number: run.iteration(number).policy.path / "adapter_config.json" for number in named}
    for number, file in files.items():
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"r": 4, "base_model_name_or_path": named[number]}))
    new = Path(shutil.move(old, old.with_name("new")))
    find_base_again(run, recipe_in(new))
    found = {number: json.loads(file.read_text()) for number, file in files.items()}
    expected = {**named, 1: str(new / "policy")}
    assert found == {number: {"r": 4, "base_model_name_or_path": name} for number, name in expected.items()}
