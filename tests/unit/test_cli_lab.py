"""What `crosspref lab` says when it is asked for something that is not there."""

from pathlib import Path

import pytest

from crosspref.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--study", "nonsense"], "no study 'nonsense'. Known: rewards, length, reference"),
        (["--study", "rewards", "--seeds", "0"], "--seeds is 0"),
        (["--study", "rewards", "--jobs", "0"], "--jobs is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--seed", "4294967296"], "--seed is 4294967296"),
        (["--iterations", "1000000000"], "--iterations is 1000000000"),
        (["--evidence", "nowhere"], "has no results of a study"),
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["lab", *arguments]) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
