"""``crosspref init``: what it writes can be checked, says what is missing, and overwrites nothing."""

from pathlib import Path

import pytest

from crosspref.cli import main
from crosspref.commands.check import check_recipe
from crosspref.data.prompts import load_prompts
from crosspref.errors import RecipeError
from crosspref.recipe.files import load_recipe

Models = dict[str, tuple[Path, Path]]


@pytest.fixture
def started(tmp_path: Path) -> Path:
    directory = tmp_path / "a folder: mine"
    assert main(["init", str(directory)]) == 0
    return directory


def test_check_says_what_to_fill_in_next(started: Path) -> None:
    with pytest.raises(RecipeError, match=r"models\.policy \(pi_0\)"):
        load_recipe(started / "recipe.yaml")


def test_it_is_ready_once_the_models_are_named(
    started: Path, tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial, policy = tiny_models["llama"]
    text = (started / "recipe.yaml").read_text(encoding="utf-8")
    text = text.replace("  initial:\n", f"  initial: {initial}\n").replace("  policy:\n", f"  policy: {policy}\n")
    (started / "recipe.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the prompts are found from every directory
    recipe = load_recipe(started / "recipe.yaml")
    prompts = load_prompts(recipe.prompts, recipe.languages).prompts
    assert len(prompts) == 6 * len(recipe.languages)
    assert list(check_recipe(recipe))[-1] == "ok    ready"


@pytest.mark.parametrize("name", ["recipe.yaml", "prompts.jsonl"])
def test_nothing_is_overwritten(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    assert main(["init", str(tmp_path)]) == 1
    assert str(tmp_path / name) in capsys.readouterr().err
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [(name, "mine")]
