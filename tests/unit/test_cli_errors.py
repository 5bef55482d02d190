"""What the command says of errors that nobody foresaw: one message, the traceback in a file, and nothing twice."""

import argparse
import errno
from pathlib import Path

import pytest

from crosspref import cli
from crosspref.commands import status
from crosspref.errors import RunError


def message_of(error: Exception, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    def execute(_: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(status, "execute", execute)
    assert cli.main(["status", str(run)]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("crosspref: ")
    return errors


def test_an_unforeseen_error_is_one_message_and_its_traceback_is_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = message_of(KeyError("rope_type"), tmp_path, monkeypatch, capsys)
    [log] = tmp_path.glob("error-*.log")
    assert all(part in message for part in ("KeyError", "rope_type", Path(__file__).name, str(log)))
    assert "Traceback" not in message
    assert "Traceback (most recent call last)" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["nowhere", "read-only"])
def test_where_there_is_no_run_to_write_to_it_is_in_the_folder_for_temporary_files(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    temporary, run = tmp_path / "temporary", tmp_path / "run"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    if place == "read-only":
        run.mkdir()  # the system's administrator may write anywhere, but not over a folder
        monkeypatch.setattr("time.strftime", lambda _: "0")
        monkeypatch.setattr("os.getpid", lambda: 0)
        (run / "error-0-0.log").mkdir()
    message = message_of(ZeroDivisionError(), run, monkeypatch, capsys)
    [log] = temporary.iterdir()
    assert str(log) in message
    assert "ZeroDivisionError" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_what_the_system_refuses_names_the_file_and_the_reason(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError(code, "the reason", str(tmp_path / "table.parquet"))
    message = message_of(error, tmp_path, monkeypatch, capsys)
    assert message.count("\n") == 1
    assert str(tmp_path / "table.parquet") in message
    assert "the reason" in message
    assert not list(tmp_path.iterdir())


def test_the_traceback_is_shown_to_who_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cli.DEBUG, "1")

    def execute(_: argparse.Namespace) -> None:
        raise RunError("known")

    monkeypatch.setattr(status, "execute", execute)
    assert cli.main(["status", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("Traceback")
    assert errors.endswith("crosspref: known\n")
