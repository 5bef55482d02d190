"""`executor: ray` on real clusters of Ray on this machine: same tables, whatever dies; clear errors, bounded memory."""

import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from killing import assert_same_policy
from running import Forked, ForkServer, Run, assert_stopped, content, files, small_recipe, wait_for, write_recipe

from crosspref.engines import EngineSettings
from crosspref.errors import MissingLibraryError, ModelError, RunError
from crosspref.recipe.sections import RaySettings, ResourceSettings

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from crosspref.engines.ray import executor as ray_executor  # noqa: E402
from crosspref.engines.ray.executor import RayExecutor  # noqa: E402

SAMPLED = "iteration_1/responses/*/*.done.json"
SCORED = "iteration_1/scores/*/*/*.done.json"


@pytest.fixture(scope="module")
def recipe(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards per stage."""
    changes: dict[str, Any] = {"iterations": 1, "prompts": {"limit": 6}, "resources": {"shard_prompts": 1}}
    return write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", small_recipe(*models, **changes))


@pytest.fixture(scope="module")
def reference(recipe: Path, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of this machine alone."""
    run = tmp_path_factory.mktemp("reference") / "run"
    forks.run("run", recipe, "--out", run, log=run.with_name("log"))
    return run


def workers_of_ray(doing: str = "") -> list[int]:
    """The processes of Ray's workers; those that are at work on a shard, for ``.do``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                name = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::Worker" + doing.encode()):
                found.append(int(folder.name))
    return found


def assert_same_tables(run: Path, reference: Path) -> None:
    """Every table and marker before training is the same to the last bit, and none is there twice."""

    def tables(root: Path) -> dict[str, Path]:
        kinds = ("responses/", "scores/", "pairs/", "dropped/")
        return {name: path for name, path in files(root).items() if any(kind in name for kind in kinds)}

    ours, theirs = tables(run), tables(reference)
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    differing = [name for name in theirs if content(ours[name]) != content(theirs[name])]
    assert not differing, f"these differ: {differing}"


def on_ray(recipe: Path, run: Path, forks: ForkServer, *more: str) -> Forked:
    command = ["run", recipe, "--out", run, "--set", "resources.executor=ray", *more]
    return forks.spawn(*command, log=run.with_name("log"))


def test_a_worker_that_is_killed_costs_nothing_but_time(
    recipe: Path, reference: Path, forks: ForkServer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = on_ray(recipe, run, forks)
    killed = []
    for pattern in (SAMPLED, SCORED):
        wait_for(run, pattern, process.poll)
        while not (busy := workers_of_ray(".do")):
            assert process.poll() is None, process.output()
        victim = busy[0]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)
    assert process.wait(240) == 0, process.output()
    assert process.output().count("the shard is done again") == len(set(killed)) == 2, process.output()
    assert_same_tables(run, reference)
    assert_same_policy(run, reference)
    assert "train: on 2 workers of Ray" in process.output()
    assert not (run / ".ray_train").exists()
    assert not workers_of_ray(), "the cluster outlived the run that started it"


def stopped_while_it_works(process: Forked) -> int:
    """Stop a worker of Ray in the middle of a shard, which would be done before its node is gone."""
    while True:
        assert process.poll() is None, process.output()
        for worker in workers_of_ray(".do"):
            os.kill(worker, signal.SIGSTOP)
            if worker in workers_of_ray(".do"):
                return worker
            os.kill(worker, signal.SIGCONT)


@pytest.mark.nightly
def test_a_node_that_is_lost_costs_nothing_but_time(
    recipe: Path, reference: Path, forks: ForkServer, tmp_path: Path
) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        by_raylet = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
        run = tmp_path / "run"
        process = on_ray(recipe, run, forks, "--set", f"ray.address={cluster.address}")
        wait_for(run, SAMPLED, process.poll)
        worker = stopped_while_it_works(process)
        raylet = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        cluster.remove_node(by_raylet[raylet], allow_graceful=False)
        os.kill(worker, signal.SIGKILL)
        assert process.wait(240) == 1, process.output()
        assert "the shard is done again" in process.output(), process.output()
        assert_same_tables(run, reference)
        # Training is not for a single worker to begin: it would be another share of the machines than was asked for.
        assert "nodes have room for 1. Ask" in process.output(), process.output()
    finally:
        cluster.shutdown()


@pytest.mark.parametrize("kind", ["nobody", "silent", "another protocol", "client"])
def test_an_address_that_does_not_answer_is_said_at_once(kind: str, recipe: Path, command: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if kind == "nobody":
            server.close()
        elif kind == "another protocol":
            address = f"127.0.0.1:{_greeting()}"
        elif kind == "client":
            address = f"ray://{address}"
        started = time.monotonic()
        changes = ["--set", "resources.executor=ray", "--set", f"ray.address={address}"]
        answer = command("run", recipe, "--out", tmp_path / "run", *changes)
    assert time.monotonic() - started < 10
    assert_stopped(answer, address)


def _greeting() -> int:
    """A server that speaks first, as SSH does; returns its port."""
    import threading

    server = socket.create_server(("127.0.0.1", 0))

    def greet() -> None:
        connection, _ = server.accept()
        with server, connection:
            connection.sendall(b"SSH-2.0-greeting\r\n")
            connection.recv(64)

    threading.Thread(target=greet, daemon=True).start()
    return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def small_store() -> Iterator[None]:
    """A cluster that this process is connected to, whose object store holds 80 MB and has no way out to a disk."""
    spilling = {"automatic_object_spilling_enabled": False}
    ray.init(
        "local",
        num_cpus=2,
        object_store_memory=80_000_000,
        include_dashboard=False,
        log_to_driver=False,
        _system_config=spilling,
    )
    yield
    ray.shutdown()


def ray_settings(**settings: Any) -> EngineSettings:
    return EngineSettings(resources=ResourceSettings(executor="ray"), ray=RaySettings(**settings))


def shards(count: int) -> list[Any]:
    return [SimpleNamespace(unit=SimpleNamespace(path=Path(f"{number:08d}.parquet"))) for number in range(count)]


def mapped(
    settings: EngineSettings, work: Callable[..., Any], count: int, build: Callable[[], Any] = object
) -> tuple[list[Any], list[str], Counter[str]]:
    """What comes back, what was said, and what was counted."""
    said: list[str] = []
    counted: Counter[str] = Counter()
    with RayExecutor(settings).map_shards(build, work, shards(count), said.append) as results:
        found = []
        for done in results(lambda units, tokens: counted.update(units=units, tokens=tokens)):
            rows = done.result.num_rows if isinstance(done.result, pa.Table) else done.result
            found.append((done.shard.unit.path.name, rows))
    return found, said, counted


def test_workers_know_nothing_of_the_working_directory_and_of_other_launchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wave.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")

    def look(engine: Any, shard: Any, advance: Any) -> tuple[bool, str | None]:
        import wave  # none that Ray itself has imported

        return Path(wave.__file__).parent == tmp_path, os.environ.get("WORLD_SIZE")

    settings = ray_settings()
    with RayExecutor(settings).cluster():
        found, _, _ = mapped(settings, look, 1)
    assert found == [("00000000.parquet", (False, None))]


def test_results_beyond_the_object_stores_memory_pass_through_it(small_store: None) -> None:
    def work(engine: Any, shard: Any, advance: Any) -> pa.Table:
        advance(1, 10)
        return pa.table({"text": ["x" * 1000] * 10_000})

    found, _, counted = mapped(ray_settings(), work, 40)  # 400 MB
    assert sorted(found) == [(f"{number:08d}.parquet", 10_000) for number in range(40)]
    assert counted == {"units": 40, "tokens": 400}


def test_a_workers_error_is_the_runs_error(small_store: None) -> None:
    def broken() -> Any:
        raise ModelError("this model does not fit")

    def missing(engine: Any, shard: Any, advance: Any) -> Any:
        raise MissingLibraryError("nothing", "A test", "pip install nothing")

    with pytest.raises(ModelError, match=r"^this model does not fit$"):
        mapped(ray_settings(), lambda *_: 1, 4, broken)
    with pytest.raises(MissingLibraryError, match=r"^A test needs the library 'nothing'"):
        mapped(ray_settings(), missing, 4)


def test_a_shard_that_kills_its_workers_is_named(small_store: None) -> None:
    def work(engine: Any, shard: Any, advance: Any) -> int:
        if shard.unit.path.name == "00000002.parquet":
            os.kill(os.getpid(), signal.SIGKILL)
        return 1

    with pytest.raises(RunError, match=r"died at 00000002.parquet, for the 3\. time.*\n.*memory"):
        mapped(ray_settings(), work, 4)


def test_workers_without_a_place_are_told_of(small_store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "NOTICE_SECONDS", 1.0)

    def work(engine: Any, shard: Any, advance: Any) -> int:
        time.sleep(0.3)
        return 1

    found, said, _ = mapped(ray_settings(workers=3), work, 12)
    assert len(found) == 12
    # The third has none for good; on a busy machine the second may have none yet.
    assert any(re.match(r"[12] of 3 workers have no place.* go on without", line) for line in said), said
    with pytest.raises(RunError, match=r"each needs 1 CPUs and 1 GPUs .* its 1 nodes have 2 CPUs and 0 GPUs"):
        mapped(ray_settings(gpus_per_worker=1.0), work, 2)
