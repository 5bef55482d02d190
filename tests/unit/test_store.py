"""The run directory: what counts as finished, what is refused, and that nothing is silently reused or overwritten."""

import hashlib
import os
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crosspref.data.records import Pair, Prompt, Response, to_table
from crosspref.errors import FileError, LimitError, RunError
from crosspref.run import store
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Fingerprint, Unit, digest_of, publish_directory, write_text

MADE = Fingerprint({"sample.n": 4}, {"policy": "abc"})
ROWS = [Prompt("a", "es", "¿Qué?"), Prompt("b", "es", "Línea\nnueva")]


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    return Unit(tmp_path / "language=es" / "00000000.parquet")


def finish(unit: Unit, fingerprint: Fingerprint = MADE) -> None:
    unit.write_rows(ROWS, Prompt)
    unit.finish(fingerprint, len(ROWS), seconds=1.5)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_unit_is_written_finished_and_read_back(unit: Unit) -> None:
    assert not unit.finished(MADE)
    finish(unit)
    assert unit.finished(MADE)
    assert unit.rows(Prompt) == ROWS
    marker = unit.read_marker()
    assert (marker["rows"], marker["figures"]) == (2, {"seconds": 1.5})
    assert marker["parts"] == {"schema": 2, "sample.n": 4, "policy": "abc"}
    assert unit.digest == marker["digest"] == MADE.digest
    assert sorted(path.name for path in unit.path.parent.iterdir()) == [
        "00000000.parquet",
        "00000000.parquet.done.json",
    ]


def test_a_file_without_a_marker_is_not_finished(unit: Unit) -> None:
    unit.write_rows(ROWS, Prompt)
    assert unit.rows(Prompt) == ROWS
    assert not unit.finished(MADE)
    with pytest.raises(RunError, match=r"is not finished: there is no 00000000\.parquet\.done\.json beside it"):
        _ = unit.digest


def test_a_crash_while_writing_leaves_neither_file_nor_marker(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(table: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"PAR1 half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(store.pq, "write_table", crash)
    with pytest.raises(KeyboardInterrupt):
        finish(unit)
    assert not unit.path.exists()
    assert not unit.finished(MADE)


def test_a_crash_while_marking_leaves_the_unit_unfinished(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def crash_at_the_marker(self: Path, target: Path) -> Path:
        if target == unit.marker:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", crash_at_the_marker)
    with pytest.raises(KeyboardInterrupt):
        finish(unit)
    assert unit.path.exists()
    assert not unit.marker.exists()
    assert not unit.finished(MADE)


def test_the_marker_is_written_last_and_all_is_flushed(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    replace, fsync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append(f"flush {inode(handle)}"), fsync(handle)))

    def noted(self: Path, target: Path) -> Path:
        steps.append(f"flushed before: {f'flush {self.stat().st_ino}' in steps}, then {target.name}")
        return replace(self, target)

    def inode(handle: int) -> int:
        return os.fstat(handle).st_ino

    monkeypatch.setattr(Path, "replace", noted)
    finish(unit)
    renames = [step for step in steps if step.startswith("flushed")]
    assert renames == [f"flushed before: True, then {name}" for name in (unit.path.name, unit.marker.name)]
    # The folder too, after each: a rename that is not flushed is lost with the power.
    assert steps.count(f"flush {unit.path.parent.stat().st_ino}") == 2
    assert steps[-1] == f"flush {unit.path.parent.stat().st_ino}"


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (Fingerprint({"sample.n": 8}, {"policy": "abc"}), "sample.n: it was made with 4, now it is 8"),
        (Fingerprint({"sample.n": 4}, {"policy": "xyz"}), "policy: it was made with 'abc', now it is 'xyz'"),
        (Fingerprint({"sample.n": 4, "seed": 1}, {"policy": "abc"}), "seed: it was made with 'nothing', now it is 1"),
        (Fingerprint({}, {"policy": "abc"}), "sample.n: it was made with 4, now it is 'nothing'"),
    ],
)
def test_a_stale_fingerprint_stops_and_touches_nothing(unit: Unit, now: Fingerprint, said: str) -> None:
    finish(unit)
    before = contents(unit.path.parent)
    with pytest.raises(RunError) as caught:
        unit.finished(now)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{unit.path} was made from other settings or inputs:"
    assert lines[1:-1] == [f"  - {said}"]
    assert lines[-1] == "Nothing was overwritten. Set them back, or use a new run directory."
    assert contents(unit.path.parent) == before


def test_another_schema_version_makes_units_stale(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(unit)
    monkeypatch.setattr(store, "SCHEMA_VERSION", 99)
    with pytest.raises(RunError, match="schema: it was made with 2, now it is 99"):
        unit.finished(MADE)


def test_a_digest_depends_on_content_and_not_on_order() -> None:
    assert digest_of({"a": 1, "b": [2, 3]}) == digest_of({"b": [2, 3], "a": 1})
    seen = {digest_of(value) for value in ({"a": 1}, {"a": "1"}, {"a": [1]}, {"b": 1}, {"a": None}, [], ["a", 1])}
    assert len(seen) == 7
    # Pinned: another value would make every run directory stale that exists.
    assert MADE.digest == hashlib.sha256(b'{"policy": "abc", "sample.n": 4, "schema": 2}').hexdigest()[:20]


@pytest.mark.parametrize("damage", ["", "{", "[]", "3", '{"digest": "x"}', "\0" * 40, "cut behind its digest"])
def test_a_damaged_marker_says_what_to_delete(unit: Unit, damage: str) -> None:
    finish(unit)
    unit.marker.write_text(unit.marker.read_text()[:40] if damage.startswith("cut") else damage)
    with pytest.raises(RunError, match=re.escape(f"{unit.marker} is damaged. To do this unit again: rm {unit.marker}")):
        unit.finished(MADE)


def test_a_marker_that_never_ends_is_damaged(unit: Unit) -> None:
    finish(unit)
    with unit.marker.open("wb") as holes:
        holes.truncate(1 << 40)
    with pytest.raises(RunError, match="is damaged"):
        unit.finished(MADE)
    unit.marker.unlink()
    os.mkfifo(unit.marker)
    with pytest.raises(RunError, match="is damaged"):
        unit.finished(MADE)


def test_what_the_machine_cannot_read_is_not_said_to_be_damaged(unit: Unit) -> None:
    finish(unit)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for read in (unit.read_marker, unit.table):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))  # no file can be opened
        try:
            with pytest.raises(LimitError) as caught:
                read()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert "rm " not in str(caught.value)
    assert unit.finished(MADE)


def test_a_marker_that_another_program_wrote_anew_counts(unit: Unit) -> None:
    """The quick look at a marker's first bytes is no other rule than reading it."""
    finish(unit)
    text = unit.marker.read_text()
    unit.marker.write_text('{"rows": 2, "figures": {}, ' + text.strip()[1:].replace('"rows": 2,', ""))
    assert unit.finished(MADE)
    assert unit.digest == MADE.digest
    with pytest.raises(RunError, match="made from other settings"):
        unit.finished(Fingerprint({"sample.n": 8}, MADE.inputs))


def test_a_file_that_is_gone_says_what_to_delete(unit: Unit) -> None:
    finish(unit)
    unit.path.unlink()
    with pytest.raises(RunError, match=re.escape(f"To do it again: rm {unit.marker}")):
        unit.finished(MADE)
    unit.marker.unlink()
    assert not unit.finished(MADE)


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_a_truncated_file_says_what_to_delete(unit: Unit, cut: int) -> None:
    finish(unit)
    unit.path.write_bytes(unit.path.read_bytes()[:cut])
    with pytest.raises(RunError, match=re.escape(f"To make it again: rm {unit.path} {unit.marker}")):
        unit.rows(Prompt)


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    kept = Unit(run.root / "iteration_1" / "responses" / "es" / "00000000.parquet")
    finish(kept)
    before = contents(run.root)
    folder = run.iteration(1).policy.temporary()
    write_text(folder / "config.json", "{}")
    (folder / ".config.json.7.tmp").write_text("half")
    (kept.path.parent / ".00000064.parquet.123.tmp").write_bytes(b"half")
    with run.locked():
        after = contents(run.root)
        assert after == {**before, ".lock": b"", "run.log": after["run.log"]}
        assert not folder.exists()


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(FileError) as caught:
        RunDirectory(tmp_path / "taken").locked().__enter__()
    assert caught.value.path == str(tmp_path / "taken")


def test_tables_are_readable_elsewhere(tmp_path: Path) -> None:
    import datasets

    rows = [
        Response("a", "es", 0, "Sí", [5, 6], "stop", 2**63 - 1),
        Response("a", "es", 1, "", None, "length", None),
    ]
    unit = Unit(tmp_path / "es" / "00000000.parquet")
    unit.write_rows(rows, Response)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(unit.path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [Response(**row) for row in loaded] == rows
    assert pq.ParquetFile(unit.path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_folders_named_like_partitions_add_no_columns(unit: Unit) -> None:
    unit.write_rows([], Prompt)
    assert unit.table().equals(to_table([], Prompt))


def test_publishing_a_unit_replaces_an_unfinished_one(tmp_path: Path) -> None:
    unit = RunDirectory(tmp_path).iteration(1).policy
    write_text(unit.path / "sub" / "old.txt", "unfinished")
    temporary = unit.temporary()
    write_text(temporary / "sub" / "new.txt", "whole")
    unit.publish(temporary)
    assert contents(unit.path) == {"sub/new.txt": b"whole"}
    assert not temporary.exists()
    assert not unit.finished(MADE)
    unit.finish(MADE, 3)
    assert unit.finished(MADE)
    shutil.rmtree(unit.path)
    with pytest.raises(RunError, match="is gone"):
        unit.finished(MADE)


def test_publishing_a_folder_replaces_nothing_else(tmp_path: Path) -> None:
    temporary, place = tmp_path / "new", tmp_path / "policy"
    write_text(temporary / "new.txt", "whole")
    write_text(place / "mine.txt", "mine")
    with pytest.raises(FileError) as caught:
        publish_directory(temporary, place)
    assert caught.value.path == str(place)
    assert contents(tmp_path) == {"new/new.txt": b"whole", "policy/mine.txt": b"mine"}


def test_a_temporary_folder_is_empty_each_time(tmp_path: Path) -> None:
    unit = RunDirectory(tmp_path).iteration(1).policy
    write_text(unit.temporary() / "half.txt", "x")
    assert contents(unit.temporary()) == {}


def test_checkpoints_of_another_fingerprint_are_removed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    other = Fingerprint({"train.beta": 0.2})
    write_text(run.iteration(1).checkpoints(other) / "checkpoint-5" / "state.json", "{}")
    write_text(run.iteration(2).checkpoints(other) / "checkpoint-9" / "state.json", "{}")
    assert (run.iteration(1).checkpoints(other) / "checkpoint-5" / "state.json").exists()
    mine = run.iteration(1).checkpoints(MADE)
    assert list(mine.parent.iterdir()) == [mine]
    assert list(mine.iterdir()) == []
    assert (run.iteration(2).checkpoints(other) / "checkpoint-9").exists()
    run.iteration(2).remove_checkpoints()
    run.iteration(2).remove_checkpoints()
    assert not (run.iteration(2).folder / "checkpoints").exists()


def test_what_is_no_checkpoint_stays(tmp_path: Path) -> None:
    places = RunDirectory(tmp_path).iteration(1)
    write_text(places.checkpoints(MADE) / "checkpoint-5" / "state.json", "{}")
    write_text(places.folder / "checkpoints" / "notes.txt", "mine")
    write_text(places.folder / "checkpoints" / "best" / "weights", "mine")
    other = places.checkpoints(Fingerprint({"train.beta": 0.2}))
    assert {path.name for path in other.parent.iterdir()} == {"notes.txt", "best", other.name}
    places.remove_checkpoints()
    assert set(contents(other.parent)) == {"notes.txt", "best/weights"}


def test_what_was_kept_goes_with_the_unit_that_is_done(tmp_path: Path) -> None:
    units = [RunDirectory(tmp_path).iteration(1).responses.unit("es", number) for number in range(3)]
    for unit in units:
        write_text(unit.part, "{}")
    finish(units[0])
    assert not units[0].part.exists()
    write_text(units[0].part, "{}")  # as a kill between the marker and the removal leaves it
    units[1].write_rows(ROWS, Prompt)
    with RunDirectory(tmp_path).locked():
        assert [unit.part.exists() for unit in units] == [False, True, True]


def test_tables_are_written_with_the_columns_of_the_first_one(unit: Unit) -> None:
    said = [{"role": "assistant", "content": "sí"}]
    pairs = [Pair(f"p{number}", "es", said, said, said, chosen_ended=number % 2 == 0 or None) for number in range(3)]
    for rows, names in ((pairs, {"chosen_ended"}), ([replace(pair, chosen_ended=None) for pair in pairs], set())):
        with unit.writer(Pair) as write:
            for start in (0, 2):
                write(to_table(rows, Pair).slice(start, 2))
        assert unit.rows(Pair) == rows
        assert {"chosen_ended", "rejected_ended"} & set(unit.table().column_names) == names
    with unit.writer(Pair) as write:
        pass
    assert unit.rows(Pair) == []
