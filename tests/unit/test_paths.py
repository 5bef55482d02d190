"""Paths that people name, and files that cannot be written: said in time, and by one kind of error."""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crosspref.cli import main
from crosspref.data.records import Dropped
from crosspref.data.tables import write_rows
from crosspref.errors import FileError, RunError
from crosspref.models.locate import cache_directory
from crosspref.paths import require_writable, writing
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Unit, write_text


@pytest.mark.parametrize("place", ["taken.parquet", "file/new.parquet", "/proc/nowhere/new.parquet"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--model", "none", "--prompts", "none", "--languages", "es", "--out"],
        ["translate", "--model", "none", "--responses", "none", "--out"],
        ["score", "--prompts", "none", "--responses", "none", "--out"],
        ["select", "--prompts", "none", "--responses", "none", "--scores", "none", "--out", "new.jsonl", "--dropped"],
        ["evaluate", "--responses", "none", "--out"],
        ["leaderboard", "none", "--out"],
        ["report", "none", "--svg"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_output_that_cannot_be_written_is_said_before_anything_is_read(
    arguments: list[str],
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.parquet").mkdir()
    (tmp_path / "file").write_text("")
    assert main([*arguments, place]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(f"crosspref: {place} ")
    assert errors.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.parquet"]


@pytest.mark.parametrize("place", ["file/new", "/proc/nowhere/new"])
@pytest.mark.parametrize(
    "arguments", [["compare", "none", "--out"], ["train", "--model", "x", "--pairs", "x", "--out"]]
)
def test_files_beside_an_output_are_asked_for_as_early(
    arguments: list[str],
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main([*arguments, place]) == 1
    assert capsys.readouterr().err.startswith(f"crosspref: {place}.")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_must_leave_room_for_those_beside_it(tmp_path: Path) -> None:
    """What is kept until the table is written has a longer name than the table."""
    longest = 255 - len("..12345678.part.json.tmp")
    assert require_writable(tmp_path / "new" / ("x" * longest))
    for name in ("x" * 250, "x" * 300):
        with pytest.raises(FileError) as caught:
            require_writable(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_pipe_or_a_device_is_no_place_for_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(FileError):
            require_writable(place)


@pytest.mark.parametrize(
    "arguments", [["lab"], ["lab", "--study", "rewards"], ["canary", "list"], ["canary", "--measure"]]
)
def test_a_lab_that_cannot_write_says_so_at_once(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    assert main([*arguments, "--out", str(tmp_path / "file" / "lab")]) == 1
    assert str(tmp_path / "file" / "lab") in capsys.readouterr().err


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """A limit on the size of files stands in for a full disk: nothing can be written, with another number of error."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def save_by_torch(path: Path) -> None:
    import torch

    with writing(path):
        torch.save({"weights": torch.zeros(9)}, path)


def save_by_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with writing(path):
        save_file({"weights": torch.zeros(9)}, path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "text"),
        lambda path: Unit(path).write_rows([Dropped("a", "es", "select", "why")], Dropped),
        lambda path: write_rows(path.with_suffix(".jsonl"), [Dropped("a", "es", "select", "why")], Dropped),
        lambda path: RunDirectory(path.parent).log_phase({"phase": "sample"}),
        save_by_torch,
        save_by_safetensors,
    ],
    ids=["text", "table", "lines", "log", "torch", "safetensors"],
)
def test_a_full_disk_is_one_kind_of_error(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "first")  # libraries are imported
    with pytest.raises(FileError) as caught, no_room():
        write(tmp_path / "new")
    assert Path(caught.value.path).parent == tmp_path
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob(".*")), "a half-written file stays"


def test_other_errors_stay_what_they_are_while_something_is_written(tmp_path: Path) -> None:
    for error in (RuntimeError("CUDA out of memory"), RunError("stale: os error 28")):
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error


def test_without_a_home_the_cache_says_how_to_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom the system does not know
    for name in ("CROSSPREF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FileError, match="CROSSPREF_CACHE"):
        cache_directory()
