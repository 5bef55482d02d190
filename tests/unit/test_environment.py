"""Whatever the environment holds: left-over ranks, and a person's own modules."""

import json
import os
import sys
from pathlib import Path

import pytest

from crosspref.cli import main
from crosspref.errors import RunError
from crosspref.run import ranks
from crosspref.run.processes import ask_child, run_in_child

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _nobody_launched_this(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "left_over", [{"RANK": "3"}, {"RANK": "3", "WORLD_SIZE": ""}, {"RANK": "3", "WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}]
)
def test_a_rank_counts_only_among_several_processes(monkeypatch: pytest.MonkeyPatch, left_over: dict[str, str]) -> None:
    set_all(monkeypatch, left_over)
    assert (ranks.rank(), ranks.processes(), ranks.is_main(), ranks.is_launched()) == (0, 1, True, False)


def test_launchers_say_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, LAUNCHED)
    assert (ranks.rank(), ranks.local_rank(), ranks.processes()) == (1, 1, 2)
    assert ranks.is_launched()
    assert not ranks.is_main()


def test_alone_hides_what_libraries_would_heed_and_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**LAUNCHED, "ACCELERATE_MIXED_PRECISION": "fp16", "PMI_SIZE": "4", "RANKING": "mine"})
    before = dict(os.environ)
    with ranks.alone():
        assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION", "PMI_SIZE"} & os.environ.keys()
        assert os.environ["RANKING"] == "mine"
        assert ranks.is_main()
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
def test_what_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    set_all(monkeypatch, {**LAUNCHED, name: "two"})
    with pytest.raises(RunError, match=f"{name} is 'two'"):
        assert ranks.rank() + ranks.local_rank() < 0


@pytest.mark.parametrize("variables", [{"RANK": "1", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "many"}, LAUNCHED])
def test_commands_that_do_not_train_are_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], tmp_path: Path
) -> None:
    set_all(monkeypatch, variables)
    assert main(["init", str(tmp_path / "start")]) == 0
    assert main(["status", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.slow  # a process of its own
@pytest.mark.parametrize("start", [["-m", "crosspref", "settings"], ["-c", "import yaml, pyarrow, crosspref.cli"]])
def test_modules_of_the_working_directory_are_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: list[str]
) -> None:
    for name in ("yaml", "random", "select", "pyarrow", "typing", "crosspref"):
        (tmp_path / f"{name}.py").write_text(f"open({name!r} + '.was_run', 'w')\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    assert run_in_child([sys.executable, *start])[0] == 0
    assert not list(tmp_path.glob("*.was_run"))


@pytest.mark.slow  # a process of its own
def test_a_child_is_asked_in_any_language_and_from_any_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    recipe = {"models": {"initial": "modèle", "policy": "blåbær"}, "languages": ["en"], "prompts": {"source": "p"}}
    _, faults = json.loads(ask_child(["examine"], json.dumps(recipe, ensure_ascii=False)))
    assert "modèle" in str(faults)  # which is not there
