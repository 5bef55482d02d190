"""Verification of runs that somebody else made: whatever they hold is damage, and nothing else happens."""

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import made_runs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import crosspref
from crosspref.cli import main
from crosspref.data.records import Prompt, Response
from crosspref.errors import RunError
from crosspref.run.job import digest_rows
from crosspref.run.kept import keeping
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Fingerprint, Unit, fits_seal, is_whole, seal_text, sealed
from crosspref.run.verdicts import VERDICTS, Verdict, VerdictLog, key_of

PROMPTS = [Prompt("a", "es", "¿Qué?"), Prompt("b", "es", "¿Y?")]
MADE = Fingerprint({"source": "prompts.jsonl"}, {"rows": digest_rows(PROMPTS)})


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Nothing here may take long. The failure is no Exception, so that nothing takes it for damage."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still running after 30 s"))
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that has begun, with one table of prompts."""
    run = made_runs.begin(tmp_path / "run")
    made_runs.store(run.prompts.unit("es"), PROMPTS, Prompt, MADE)
    return run


def damaged(run: RunDirectory) -> list[str]:
    return [damage.path.relative_to(run.root).as_posix() for damage in crosspref.verify(run.root).damages]


def test_a_run_that_has_begun_is_whole(run: RunDirectory) -> None:
    findings = crosspref.verify(run.root)
    assert (findings.damages, findings.units, findings.files) == ([], 1, 3)
    assert findings.unrecorded == 1  # the recipe, which another hand wrote without a seal


def test_a_directory_without_a_run(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing", Path(__file__)):
        with pytest.raises(RunError):
            crosspref.verify(place)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        json.dumps({"digest": MADE.digest, "parts": MADE.parts, "rows": 2, "figures": {}, "more": 1}).encode(),
        json.dumps(sealed({"digest": "0" * 20, "parts": MADE.parts, "rows": 2, "figures": {}})).encode(),
        json.dumps(sealed({"digest": MADE.digest, "parts": MADE.parts, "rows": 2, "files": [1]})).encode(),
    ],
)
def test_markers_of_any_content(run: RunDirectory, content: bytes) -> None:
    unit = run.prompts.unit("es")
    unit.marker.write_bytes(content)
    assert damaged(run) == ["prompts/es.parquet.done.json"]


def table_of(**columns: Any) -> pa.Table:
    return pa.table({"prompt_id": ["a"], "language": ["es"], "instruction": ["¿Qué?"], **columns})


@pytest.mark.parametrize(
    "table",
    [
        table_of().drop_columns(["language"]),
        table_of(instruction=[3]),
        table_of(instruction=pa.array([None], pa.string())),
        table_of(prompt_id=pa.array([b"\xff"], pa.binary())),
        table_of(instruction=[[{"role": None, "content": "¿Qué?"}]]),
        table_of(language=["en"]),
        table_of(instruction=["¿Otra?"]),
    ],
)
def test_tables_of_any_content(run: RunDirectory, table: pa.Table) -> None:
    """Digest, seal and number of rows are those of the table, as whoever made it would write them."""
    unit = run.prompts.unit("es")
    pq.write_table(table, unit.path)
    unit.finish(MADE, len(table))
    assert "prompts/es.parquet" in damaged(run)


def a_recipe_of_many_iterations(run: RunDirectory, _: Path) -> None:
    text = run.recipe.read_text(encoding="utf-8")
    run.recipe.write_text(re.sub(r"^iterations: \d+$", f"iterations: {10**9}", text, flags=re.M), encoding="utf-8")
    (run.root / f"iteration_{10**9}").mkdir()


def a_link_out_of_it(run: RunDirectory, outside: Path) -> None:
    run.iteration(1).folder.mkdir()
    run.iteration(1).responses.folder.symlink_to(outside)


def a_file_that_is_a_link(run: RunDirectory, outside: Path) -> None:
    unit = run.prompts.unit("es")
    unit.path.rename(outside / "es.parquet")
    unit.path.symlink_to(outside / "es.parquet")


def a_pipe(run: RunDirectory, _: Path) -> None:
    os.mkfifo(run.prompts.unit("en").path)


def a_terabyte_of_holes(run: RunDirectory, _: Path) -> None:
    os.truncate(run.prompts.unit("es").path, 1 << 40)


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (a_recipe_of_many_iterations, 1),
        (a_link_out_of_it, 1),
        (a_file_that_is_a_link, 2),  # and its marker says that it is gone
        (a_pipe, 1),
        (a_terabyte_of_holes, 1),
    ],
)
def test_directories_of_any_shape(
    run: RunDirectory, tmp_path: Path, change: Callable[[RunDirectory, Path], None], problems: int
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    change(run, outside)
    assert len(damaged(run)) == problems


def test_folders_may_be_nested_without_end(run: RunDirectory) -> None:
    places = [run.root]
    for _ in range(1100):
        places.append(places[-1] / "d")
        places[-1].mkdir()
    assert damaged(run) == []
    for place in places[:0:-1]:  # what removes temporary folders is recursive
        place.rmdir()


@pytest.mark.parametrize("content", ["models: [", "[" * 50_000, "iterations: x\n"])
def test_recipes_of_any_content(run: RunDirectory, content: str) -> None:
    run.recipe.write_text(content)
    assert damaged(run) == ["recipe.yaml"]


def test_names_do_not_reach_the_terminal_as_they_are(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    unit = Unit(run.root / "prompts" / "\x1b[31mred\n.parquet")
    made_runs.store(unit, PROMPTS, Prompt)
    unit.path.write_bytes(b"PAR1")
    assert main(["verify", str(run.root)]) == 1
    output, errors = capsys.readouterr()
    assert "\x1b" not in output + errors
    assert "Traceback" not in output + errors


def test_damage_without_a_phase_is_found_too(run: RunDirectory) -> None:
    """Such as answers to a suite, which belong to no phase."""
    unit = Unit(run.suites / "answers" / "mtbench" / "pi_0" / "es" / "00000000.parquet")
    made_runs.store(unit, [], Response)
    unit.path.write_bytes(unit.path.read_bytes() + b" ")
    [found] = crosspref.verify(run.root).damages
    assert (found.path, found.phase, found.remove) == (unit.path, None, (unit.path, unit.marker))


def test_what_is_kept_of_an_unfinished_unit(run: RunDirectory) -> None:
    unit = run.iteration(1).responses.unit("es", 0)
    with keeping(lambda *_: None, unit, MADE) as kept:
        kept.keep({"0": [[1, 2, 3]]})
        kept.save()
    assert damaged(run) == []
    content = unit.part.read_text()
    unit.part.write_text(content.replace("3", "7"))
    assert damaged(run) == [unit.part.relative_to(run.root).as_posix()]
    with keeping(lambda *_: None, unit, MADE) as kept:
        assert kept.items == {}, "damaged work must not become a result"
    unit.part.write_text(json.dumps({"digest": MADE.digest, "items": {"0": 1}}))  # as it was before there were seals
    assert damaged(run) == []
    with keeping(lambda *_: None, unit, MADE) as kept:
        assert kept.items == {"0": 1}


def test_a_judges_verdicts_are_read_line_by_line(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.suites / VERDICTS
    log = VerdictLog.open(path)
    for text in ("a", "b", "c", "d"):
        key = key_of("judge", {}, text)
        log.append(Verdict(key, "judge", {}, "2025-01-01", text, "m", {"m": -0.1}, 0.5, None, {"prompt_tokens": 3}))
    log.close()
    assert damaged(run) == []
    whole, cut, impossible, changed = path.read_text().splitlines()
    bad = [cut[:50], impossible.replace("-0.1", "NaN"), changed.replace('"judge": "judge"', '"judge": "fudge"')]
    path.write_text("\n".join([whole, *bad, whole, ""]))
    [found] = crosspref.verify(run.root).damages
    assert (found.path, found.phase, found.remove, found.lines) == (path, None, (), (2, 3, 4))
    assert main(["verify", str(run.root)]) == 1
    [mend] = [line.strip() for line in capsys.readouterr().out.splitlines() if "sed -i" in line]
    subprocess.run(shlex.split(mend.partition(": ")[2]), check=True)
    assert path.read_text() == f"{whole}\n{whole}\n"
    assert damaged(run) == []


def test_replacing_a_file_of_a_finished_unit_keeps_its_digests(run: RunDirectory) -> None:
    policy = run.iteration(1).policy
    policy.path.mkdir(parents=True)
    for name in ("config.json", "adapter_config.json"):
        (policy.path / name).write_text("{}")
    policy.finish(MADE, 3)
    before = policy.read_marker()
    policy.replace_text(policy.path / "adapter_config.json", '{"base": "añejo"}')
    after = policy.read_marker()
    assert is_whole(after, ())
    assert before["files"]["policy/config.json"] == after["files"]["policy/config.json"]
    assert after["files"]["policy/adapter_config.json"]["bytes"] == len('{"base": "añejo"}'.encode())
    assert not [name for name in damaged(run) if name.endswith("json")]


def test_a_sealed_text() -> None:
    text = "models: {}\nseed: 42\n"
    whole = seal_text(text)
    assert fits_seal(whole) is True
    assert fits_seal(text) is None
    assert whole.startswith(text)
    for place in (place for place, character in enumerate(text) if character != "\n"):
        changed = whole[:place] + chr(ord(whole[place]) ^ 1) + whole[place + 1 :]
        assert fits_seal(changed) is False
    assert fits_seal(whole[:-1]) is False
    assert fits_seal(whole[:-10]) is False
