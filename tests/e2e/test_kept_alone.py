"""Work outside a run's shards that is killed in the middle: the same command goes on, to the same result."""

import errno
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from nlp_items import write_items
from running import Models, Run, assert_stopped, succeeded
from test_stages_alone import settings

from crosspref.cli import main
from crosspref.engines.packed import decoding
from crosspref.paths import writing
from crosspref.run import kept as kept_work
from crosspref.run.store import Unit, write_text
from crosspref.suites.nlp.results import ItemScore

Arguments = list[str | Path]


class Work:
    """A command, whose result goes to the folder that it is given, and what reads it."""

    def __init__(self, arguments: Callable[[Path], Arguments], result: Callable[[Path], Any]) -> None:
        self.arguments, self.result = arguments, result


def writes_to(name: str, *arguments: str | Path) -> Work:
    """A stage that writes one table."""
    return Work(lambda folder: [*arguments, "--out", folder / name], lambda folder: (folder / name).read_text())


def item_scores(folder: Path) -> list[Any]:
    return [Unit(path).rows(ItemScore) for path in sorted(folder.rglob("*.parquet"))]


@pytest.fixture
def works(models: Models, content: dict[str, Any], done: Path, reward_model: Path, tmp_path: Path) -> dict[str, Work]:
    both = ("--policy", models[1], "--reference", models[0])
    prompts = ("--prompts", content["prompts"]["source"], *settings(content))
    responses = ("--responses", done / "iteration_1" / "responses")
    few = ("--set", "prompts.limit=5", "--languages", "en,es", *settings(content, "sample"))
    short = ("--set", "translate.max_new_tokens=8", "--set", "sample.batch_size=4")
    rated = ("--reward", "reward_model", "--set", f"reward.reward_model={reward_model}")

    def audited(folder: Path) -> Arguments:
        shutil.copytree(done, folder, dirs_exist_ok=True)
        return ["audit", folder, "--prompts", "4"]

    write_items(tmp_path / "data", {"en": 12})
    nlp = {
        "nlp": {"data": str(tmp_path / "data"), "batch_size": 5},
        "resources": {"device": "cpu", "dtype": "float32", "threads": 1},
        "resamples": 100,
    }
    file = tmp_path / "evaluation.yaml"
    file.write_text(yaml.safe_dump(nlp), encoding="utf-8")
    suite = ("evaluate", models[1], "--suite", "nlp", "--with", file)
    return {
        "sample": writes_to("responses.jsonl", "sample", "--model", models[1], *prompts, *few),
        "translate": writes_to("made.jsonl", "translate", "--model", models[1], *responses, *short, *settings(content)),
        "score": writes_to("scores.jsonl", "score", *both, *prompts, *responses, "--compare", "znlp"),
        "rate": writes_to("scores.jsonl", "score", *rated, *prompts, *responses),
        "audit": Work(audited, lambda folder: (folder / "iteration_1" / "audit.md").read_text()),
        "nlp": Work(lambda folder: [*suite, "--out", folder], lambda folder: item_scores(folder / "nlp" / "items")),
    }


def killed(arguments: Sequence[str | Path], write: int) -> bool:
    """Run a command in a process that is killed behind the so-manieth time that something is kept; was it?"""
    process = os.fork()
    if process == 0:
        left = iter(range(write - 1))

        def write_and_die(path: Path, text: str) -> None:
            write_text(path, text)
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        kept_work.write_text = write_and_die
        try:
            main([str(argument) for argument in arguments])
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where something was kept, once for each time; legs are short, and all that is kept is written."""
    monkeypatch.setattr(kept_work, "SECONDS", 0.0)
    monkeypatch.setattr(decoding, "LEG", 2)  # of 64 tokens
    paths: list[Path] = []

    def write(path: Path, text: str) -> None:
        paths.append(path)
        write_text(path, text)

    monkeypatch.setattr(kept_work, "write_text", write)
    return paths


@pytest.mark.parametrize("name", ["sample", "translate", "score", "rate", "audit", "nlp"])
def test_killed_in_the_middle_it_goes_on(
    name: str, works: dict[str, Work], command: Run, kept: list[Path], tmp_path: Path
) -> None:
    work, folder = works[name], tmp_path / "killed"
    succeeded(command(*work.arguments(tmp_path / "whole")))
    expected, steps = work.result(tmp_path / "whole"), len(kept)
    assert steps > 3
    write = steps * 2 // 3
    assert killed(work.arguments(folder), write)
    assert list(folder.rglob("*.part.json"))
    kept.clear()
    succeeded(command(*work.arguments(folder)))
    assert work.result(folder) == expected
    assert len(kept) <= steps - write, "what was done was done again"
    assert not list(tmp_path.rglob("*.part.json"))


def test_what_other_settings_left_is_not_used(
    works: dict[str, Work], command: Run, kept: list[Path], tmp_path: Path
) -> None:
    work, other = works["sample"], ("--set", "sample.temperature=0.5")
    succeeded(command(*work.arguments(tmp_path / "whole"), *other))
    steps = len(kept)
    assert killed(work.arguments(tmp_path / "killed"), 3)
    kept.clear()
    succeeded(command(*work.arguments(tmp_path / "killed"), *other))
    assert work.result(tmp_path / "killed") == work.result(tmp_path / "whole")
    assert len(kept) == steps


def test_a_full_disk_is_no_fault_of_a_task(
    works: dict[str, Work], command: Run, kept: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, _: str) -> None:
        with writing(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kept_work, "write_text", write)
    assert_stopped(command(*works["nlp"].arguments(tmp_path / "out")), "arc.parquet.part.json")


def test_an_audit_of_what_may_not_be_written_keeps_nothing(
    works: dict[str, Work], command: Run, kept: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    succeeded(command(*works["audit"].arguments(tmp_path / "run")))
    assert kept == []
