"""What a command may write and remove in a folder, and how many work there: other people's files stay as they are."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import begin, store

from crosspref import api
from crosspref.cli import main
from crosspref.data.records import Prompt
from crosspref.data.tables import write_rows
from crosspref.errors import FileError, RunError
from crosspref.reports.comparison import compare_runs
from crosspref.run.kept import Parts
from crosspref.run.layout import RunDirectory, open_run
from crosspref.run.owned import held, owned
from crosspref.run.store import Fingerprint, write_text
from crosspref.suites import work


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def write(*paths: Path) -> None:
    for path in paths:
        write_text(path, "mine")


def test_a_folder_of_other_files_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    """Such as the folder of several runs, in one of which a policy has been trained, but not been saved."""
    write(tmp_path / "other" / "iteration_1" / ".policy.77.tmp" / "model.safetensors", tmp_path / ".notes.77.tmp")
    write(tmp_path / "recipe.yaml", tmp_path / "prompts" / "en.parquet")
    before = contents(tmp_path)
    with pytest.raises(RunError, match=str(tmp_path)), RunDirectory(tmp_path).locked():
        pass
    assert contents(tmp_path) == before


def test_only_leftovers_of_the_layout_are_removed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.locked():
        pass
    places = run.iteration(1)
    shard = places.responses.unit("es", 64)
    left = [
        *(path.with_name(f".{path.name}.77.tmp") for path in (shard.path, shard.marker, shard.part)),
        *(path.with_name(f".{path.name}.77.tmp") for path in (run.recipe, run.report, places.audit)),
        places.folder / ".audit.md-es.part.json.77.tmp",
        places.folder / ".policy.77.tmp" / "deep" / "model.safetensors",
        places.policy.path / ".adapter_config.json.77.tmp",
        places.scores("translated").unit("es", 0).path.with_name(".00000000.parquet.77.tmp"),
        run.iteration(0).evaluation.measures.path.with_name(".measures.parquet.done.json.77.tmp"),
        run.iteration(12).evaluation.scores.unit("es", 0).path.with_name(".00000000.parquet.77.tmp"),
        run.root / "prompts" / ".dropped.parquet.77.tmp",
    ]
    stay = [
        run.root / ".notes.77.tmp",
        run.root / ".recipe.yaml.tmp",
        run.root / ".recipe.yaml.old.77.tmp",
        places.folder / ".thesis.77.tmp" / "a.tex",
        places.folder / ".policy.best.tmp" / "model.safetensors",
        places.folder / ".policy.7x.tmp" / "model.safetensors",
        shard.path.with_name(".00000064.parquet"),
        shard.path.with_name("00000064.parquet.77.tmp"),
        run.root / "mine" / "iteration_1" / ".policy.77.tmp" / "model.safetensors",
        run.root / "iteration_1" / "mine" / "es" / ".00000000.parquet.77.tmp",
        run.suites / "answers" / "xalpaca" / "pi_0" / "es" / ".00000000-ab.parquet.77.tmp",  # of another process, maybe
    ]
    write(*left, *stay)
    with run.locked():
        assert set(contents(run.root)) == {".lock", "run.log", *(str(path.relative_to(run.root)) for path in stay)}


def test_a_suite_removes_only_its_own_leftovers(tmp_path: Path) -> None:
    places = work._places("xalpaca")
    with owned(tmp_path, places):
        pass
    left = [tmp_path / ".xalpaca.md.77.tmp", tmp_path / "xalpaca" / ".changes.csv.77.tmp"]
    left += [tmp_path / folder / ".a.parquet.77.tmp" for folder in ("answers/xalpaca/pi_0/es", "xalpaca/x/pi_0/es")]
    stay = [tmp_path / ".notes.md.77.tmp", tmp_path / "mine" / ".changes.csv.77.tmp"]
    write(*left, *stay)
    with owned(tmp_path, places):
        assert set(contents(tmp_path)) == {".lock", *(str(path.relative_to(tmp_path)) for path in stay)}


def test_a_copy_without_hidden_files_is_still_a_run(tmp_path: Path) -> None:
    run = begin(tmp_path)
    store(run.prompts.unit("es"), [Prompt("a", "es", "¿Qué?")], Prompt)
    assert not (tmp_path / ".lock").exists()
    with run.locked():
        assert (tmp_path / ".lock").exists()


def test_logs_of_a_scheduler_or_an_earlier_start_are_no_obstacle(tmp_path: Path) -> None:
    logs = [tmp_path / name for name in ("slurm-123.out", "slurm-123.err", "error-20260101-000000-7.log")]
    write(*logs)
    with RunDirectory(tmp_path).locked():
        assert set(contents(tmp_path)) == {".lock", "run.log", *(path.name for path in logs)}


@pytest.mark.parametrize("name", ["folder.log/mine", "slurm.out/mine", "link.out", "notes.out.txt"])
def test_what_only_looks_like_a_log_is_an_obstacle(tmp_path: Path, name: str) -> None:
    run = RunDirectory(tmp_path / "run")
    write(tmp_path / "theirs")
    if name == "link.out":
        link(run.root / name, tmp_path / "theirs")
    else:
        write(run.root / name)
    with pytest.raises(RunError), run.locked():
        pass
    assert [path.name for path in run.root.iterdir()] == [name.partition("/")[0]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "recipe:quickstart", "--out", ""],
        ["evaluate", "model", "--suite", "xalpaca", "--out", ""],
        ["evaluate", "--answers", "answers.json", "--suite", "xalpaca", "--out", ""],
        ["train", "--model", "model", "--pairs", "pairs.jsonl", "--out", ""],
        ["compare", "run", "--out", ""],
        ["canary", "list", "--out", ""],
        ["lab", "--out", ""],
        *([name, ""] for name in ("status", "report", "audit", "init", "compare")),
    ],
    ids=" ".join,
)
def test_an_empty_name_is_not_the_working_directory(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / ".notes.77.tmp")
    assert main(arguments) == 1
    assert "is empty" in capsys.readouterr().err
    assert list(contents(tmp_path)) == [".notes.77.tmp"]


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


LINKS: dict[str, tuple[str, str]] = {
    "recipe": ("recipe.yaml", "folder/file"),
    "log": ("phases.jsonl", "folder/file"),
    "lock": (".lock", "folder/file"),
    "report": ("report.md", "folder/new"),
    "iteration": ("iteration_1", "folder"),
    "policy": ("iteration_1/policy", "folder"),
    "table": ("iteration_1/responses/es/00000000.parquet", "folder/file"),
    "part": ("iteration_1/responses/es/00000000.parquet.part.json", "folder/file"),
    "half-written": ("iteration_1/.policy.77.tmp", "folder"),
    "relative": ("iteration_1/evaluation", "../../folder"),
    "results of suites": ("evaluation", "folder"),
    "sibling with a longer name": ("heldout", "run_2"),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_run_with_a_link_that_leads_out_of_it_is_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path / "folder" / "file", tmp_path / "run_2" / "file")
    run = begin(tmp_path / "run")
    write_text(run.root / ".lock", "")
    place, target = LINKS[name]
    if name == "recipe":
        (tmp_path / "folder" / "file").write_bytes(run.recipe.read_bytes())
    link(run.root / place, Path(target) if target.startswith("..") else tmp_path / target)
    before = contents(tmp_path)
    uses: list[Callable[[], object]] = [
        lambda: open_run(run.root),
        lambda: run.locked().__enter__(),
        lambda: api.status(run.root),
        lambda: compare_runs([run.root]),
    ]
    for use in uses:
        with pytest.raises(RunError, match=str(run.root / place)):
            use()
    if name != "recipe":
        write(run.root / "iteration_2" / "mine")
        before["run/iteration_2/mine"] = b"mine"
        assert main(["report", str(run.root)]) == 1
    assert contents(tmp_path) == before


def test_links_inside_a_run_and_to_a_run_are_followed(tmp_path: Path) -> None:
    run = begin(tmp_path / "real")
    write_text(run.root / ".lock", "")
    write(run.root / "iteration_1" / "notes")
    link(run.root / "iteration_1" / "link", Path("notes"))
    link(run.root / "loop", Path("loop"))
    link(tmp_path / "run", run.root)
    for root in (run.root, tmp_path / "run"):
        assert open_run(root)[0].root == root
        with RunDirectory(root).locked():
            pass


def test_a_pipe_in_a_run_is_refused_before_anybody_waits_for_it(tmp_path: Path) -> None:
    run = begin(tmp_path)
    os.mkfifo(tmp_path / "phases.jsonl")
    with pytest.raises(RunError, match=r"phases\.jsonl"):
        compare_runs([run.root])


def test_a_table_is_written_over_no_other_file(tmp_path: Path) -> None:
    write(tmp_path / ".rows.jsonl.tmp")
    write_rows(tmp_path / "rows.jsonl", [Prompt("a", "es", "¿Qué?")], Prompt)
    assert list(contents(tmp_path)) == [".rows.jsonl.tmp", "rows.jsonl"]


def test_nothing_is_kept_in_the_place_of_another_file(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "rows.parquet", Fingerprint({}))
    write(tmp_path / "rows.parquet-es.part.json")
    with pytest.raises(FileError) as caught, parts.keeping(lambda *_: None, "es"):
        pass
    assert caught.value.path == str(tmp_path / "rows.parquet-es.part.json")
    with parts.keeping(lambda *_: None, "fr") as kept:
        kept.keep({"a": 1})
        kept.save()
    with parts.keeping(lambda *_: None, "fr") as kept:
        assert kept.items == {"a": 1}
    parts.remove()
    assert contents(tmp_path) == {"rows.parquet-es.part.json": b"mine"}


def test_one_process_at_a_time_whatever_an_earlier_one_left(tmp_path: Path) -> None:
    write_text(tmp_path / ".lock", "4242 on another machine")
    for _ in range(2):
        with held(tmp_path):
            assert (tmp_path / ".lock").read_text() == "4242 on another machine"
            with pytest.raises(RunError, match=str(tmp_path)), RunDirectory(tmp_path).locked():
                pass


@pytest.mark.slow
def test_a_process_that_is_killed_keeps_no_lock(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with held(tmp_path):
            os.write(tell, b"!")
            time.sleep(60)
        os._exit(0)
    assert os.read(ready, 1) == b"!"
    with pytest.raises(RunError, match=str(tmp_path)), held(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with held(tmp_path):
        pass
