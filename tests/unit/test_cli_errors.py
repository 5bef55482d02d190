"""What the command says of errors that nobody foresaw: one message, the traceback in a log, and nothing twice."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from crosspref import cli
from crosspref.commands import status
from crosspref.errors import RunError
from crosspref.run.layout import RunDirectory


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def message_of(fail: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(status, "execute", lambda _: fail())
    assert cli.main(["status", "a run"]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.splitlines()[-1].startswith("crosspref: ")
    return errors


def unforeseen() -> None:
    raise KeyError("rope_type")


class PanicException(BaseException):
    """As libraries in Rust raise it."""


def panic() -> None:
    raise PanicException("index out of bounds")


@pytest.mark.parametrize(
    ("fail", "parts"), [(unforeseen, ("KeyError", "rope_type")), (panic, ("index out of bounds",))]
)
def test_an_unforeseen_error_is_one_message_and_its_traceback_is_in_a_log(
    fail: Callable[[], None],
    parts: tuple[str, ...],
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = message_of(fail, monkeypatch, capsys)
    [log] = temporary.iterdir()
    assert message.startswith("crosspref: ")
    assert all(part in message for part in (*parts, Path(__file__).name, str(log)))
    assert "Traceback" not in message
    content = log.read_text(encoding="utf-8")
    assert all(part in content for part in (*parts, "Traceback (most recent call last)", "Python 3", "status 'a run'"))


@pytest.mark.parametrize("place", ["run", "nowhere"])
def test_in_a_run_its_own_log_has_the_traceback(
    place: str,
    temporary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    with RunDirectory(run).locked():
        log = run / "run.log"
    if place == "nowhere":  # the system's administrator may write anywhere, but not over a folder
        log.unlink()
        log.mkdir()

    def fail() -> None:
        with RunDirectory(run).locked():
            unforeseen()

    message = message_of(fail, monkeypatch, capsys)
    [there] = [log] if place == "run" else temporary.iterdir()
    assert str(there) in message.splitlines()[-1]
    assert "rope_type" in there.read_text(encoding="utf-8")
    assert len(list(temporary.iterdir())) == (place == "nowhere")


def test_without_any_place_for_a_log_there_is_still_one_message(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    temporary.rmdir()
    assert cli.DEBUG in message_of(unforeseen, monkeypatch, capsys)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EMFILE])
def test_what_the_system_refuses_is_one_line_without_a_log(
    code: int, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError(code, "the reason", str(tmp_path / "table.parquet"))

    message = message_of(fail, monkeypatch, capsys)
    assert message.count("\n") == 1
    assert (str(tmp_path / "table.parquet") in message) == (code != errno.EMFILE)
    assert not list(temporary.iterdir())


def test_the_traceback_is_shown_to_who_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RunError("known")

    monkeypatch.setenv(cli.DEBUG, "1")
    errors = message_of(fail, monkeypatch, capsys)
    assert errors.startswith("Traceback")
    assert errors.endswith("crosspref: known\n")
