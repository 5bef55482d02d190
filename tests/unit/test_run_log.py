"""``run.log``: what it holds, what it must not hold, and what it must never do to a run."""

import argparse
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from crosspref.cli import main
from crosspref.commands import status
from crosspref.errors import RunError
from crosspref.recipe.files import FOLDER
from crosspref.run import log, terminal
from crosspref.run.layout import RunDirectory
from crosspref.run.progress import Reporter


def work(run: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], *arguments: str) -> int:
    """Run a command that works in a run and there does something."""

    def execute(_: argparse.Namespace) -> None:
        Reporter().say("before")
        with RunDirectory(run).locked():
            act()
        Reporter().say("behind")

    monkeypatch.setattr(status, "execute", execute)
    return main(["status", str(run), *arguments])


def say(text: str) -> Callable[[], None]:
    return lambda: Reporter().say(text)


def read(run: Path) -> str:
    return (run / "run.log").read_text(encoding="utf-8")


def fail(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_a_command_leaves_its_arguments_versions_and_all_that_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def act() -> None:
        Reporter().say("blåbær")
        terminal.say("Written: x")

    assert work(tmp_path, monkeypatch, act) == 0
    assert capsys.readouterr() == ("Written: x\n", "before\nblåbær\nbehind\n")
    said = ["before", "blåbær", "Written: x", "behind"]
    content = read(tmp_path)
    wanted = [f"crosspref status {tmp_path}", *said, "Ended with exit code 0."]
    assert [content.index(f" {part}\n") for part in wanted] == sorted(content.index(f" {part}\n") for part in wanted)
    assert all(part in content for part in ("Python 3", "torch 2", "transformers ", "HF_HUB_OFFLINE=1"))
    first = content
    assert work(tmp_path, monkeypatch, say("again")) == 0
    assert read(tmp_path).startswith(first)


@pytest.mark.parametrize("error", [KeyError("rope_type"), RunError("known"), KeyboardInterrupt()])
def test_an_error_leaves_its_traceback_and_what_was_said_of_it(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = work(tmp_path, monkeypatch, fail(error))
    content = read(tmp_path)
    assert content.endswith(f"Ended with exit code {code}.\n")
    assert capsys.readouterr().err.splitlines()[-1] in content
    assert ("Traceback (most recent call last)" in content) == isinstance(error, Exception)


def test_no_key_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, password = "sk-Zq8vN3xT7", "hunter2hunter2"
    monkeypatch.setenv("JUDGE_API_KEY", key)
    monkeypatch.setenv("HF_ENDPOINT", f"https://me:{password}@hub.example/")
    address = f"https://me:{password}@judge.example/v1?api_key={key[3:]}&x=1"
    error = RunError(f"The server at {address} said: invalid key {key}")
    arguments = ["--set", f"judge.key_variable={key[3:]}", "--set", f"judge.url={address}", "--set", "sample.n=4"]
    monkeypatch.setattr(status, "add_arguments", add_everything)
    assert work(tmp_path, monkeypatch, fail(error), *arguments) == 1
    content = read(tmp_path)
    for secret in (key, key[3:], password):
        assert secret not in content
    assert all(part in content for part in ("judge.example", "sample.n=4", "hub.example", "x=1"))


def add_everything(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run")
    parser.add_argument("--set", action="append")


def test_what_others_wrote_is_text_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forged = "2030-01-01 00:00:00,000 1 Ended with exit code 0."
    assert work(tmp_path, monkeypatch, say(f"\x1b[2Ja\x07b\u202e\n{forged}\r{forged}")) == 0
    content = read(tmp_path)
    assert content.replace("\n", "").isprintable()
    assert not any(line.startswith(forged) for line in content.splitlines())


def test_it_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LARGEST", 30_000)

    def chatter() -> None:
        for number in range(20):
            Reporter().say(f"{number} " + "x" * 100_000 + f" end {number}")

    assert work(tmp_path, monkeypatch, chatter) == 0
    files = {path.name: path.stat().st_size for path in tmp_path.glob("run.log*")}
    assert files.keys() == {"run.log", "run.log.1"}
    assert all(size < 30_000 + 2 * log.LONGEST for size in files.values())
    kept = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("run.log*"))
    assert "19 xxx" in kept
    assert "xxx end 19" in kept


def outside(run: Path) -> Path:
    return run.with_name("outside")


PLACES: dict[str, Callable[[Path], object]] = {
    "folder": lambda run: (run / "run.log").mkdir(),
    "link": lambda run: (run / "run.log").symlink_to(run / "recipe.yaml"),
    "second name": lambda run: os.link(outside(run), run / "run.log"),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_cannot_be_written_stops_nothing_and_is_said_once(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with RunDirectory(run).locked():
        (run / "recipe.yaml").write_text("mine")
    (run / "run.log").unlink()
    outside(run).write_text("theirs")
    PLACES[place](run)
    assert work(run, monkeypatch, say("on")) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "run.log" in line]
    assert len(notes) == 1
    assert notes[0].startswith("note: ")
    assert (run / "recipe.yaml").read_text() == "mine"
    assert outside(run).read_text() == "theirs"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.log")
    with log.kept_in(tmp_path / "run.log"):
        Reporter().say("on")


def test_commands_that_read_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_bytes((FOLDER / "quickstart.yaml").read_bytes())
    assert main(["status", str(tmp_path)]) == 0
    assert main(["report", str(tmp_path)]) == 1  # nothing is measured yet
    assert main(["audit", str(tmp_path)]) == 1
    assert main(["plan", "recipe:quickstart", "--from", str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_warnings_of_libraries_are_logged_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        for number in range(3):
            warnings.warn(f"the weather changes {number}", UserWarning, stacklevel=1)
        warnings.warn("a name changes", DeprecationWarning, stacklevel=1)  # for the library's authors

    assert work(tmp_path, monkeypatch, act) == 0
    assert "weather" not in capsys.readouterr().err
    assert "UserWarning: the weather changes 0" in read(tmp_path)
    assert read(tmp_path).count("the weather changes") == 1, "those of one place in the code are logged once"
    assert "a name changes" not in read(tmp_path)


def say_and_fail(text: str) -> None:
    Reporter().say(text)
    raise ZeroDivisionError


def test_python_code_has_the_log_and_the_logger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), RunDirectory(tmp_path).locked():
        say_and_fail("hello")
    assert " hello\n" in read(tmp_path)
    assert "ZeroDivisionError" in read(tmp_path)
    assert ("crosspref.run.terminal", logging.INFO, "hello") in caplog.record_tuples
    Reporter().say("later")
    assert "later" not in read(tmp_path)


def test_other_ranks_log_their_errors_and_not_what_rank_0_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ZeroDivisionError), log.kept_in(tmp_path / "run.log"):
        say_and_fail("hello")
    assert "ZeroDivisionError" in read(tmp_path)
    assert "RANK=1" in read(tmp_path)
    assert " hello\n" not in read(tmp_path)
