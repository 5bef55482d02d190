"""The command as a person meets it: checking, watching, stopping, going on, and being told what is wrong."""

import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from running import (
    CLI,
    ForkServer,
    Models,
    Run,
    assert_one_message,
    assert_same_run,
    assert_stopped,
    crosspref,
    environment,
    files,
    times,
    wait_for,
    write_lines,
    write_recipe,
)

from crosspref.commands import command_line
from crosspref.engines.langid import identify


def test_check_of_a_good_recipe_says_what_it_found(recipe_file: Path, models: Models) -> None:
    done = crosspref("check", recipe_file)
    assert (done.returncode, done.stderr) == (0, "")
    output = done.stdout
    assert all(line.startswith("ok  ") for line in output.splitlines()), output
    for part in (str(models[0]), str(models[1]), "same tokenizer", "en 5", "es 5", "30 responses of at most 12 tokens"):
        assert part in output


FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"sampling": {"n": 2}}, ["sampling", "sample"]),
    "contradiction": ({"align_english": {"preferences": "x.jsonl"}}, ["models.policy", "align_english"]),
    "no model": ({"models": {"initial": "nowhere/at/all"}}, ["nowhere/at/all"]),
    "no prompts": ({"prompts": {"source": "missing.jsonl"}}, ["missing.jsonl"]),
    "missing language": ({"languages": ["en", "th"]}, ["th"]),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["check", "run"])
def test_a_fault_of_a_recipe_is_one_message_before_any_work(
    command: Run, content: dict[str, Any], tmp_path: Path, fault: str, name: str
) -> None:
    change, parts = FAULTS[fault]
    sections = {
        key: {**content.get(key, {}), **value} if isinstance(value, dict) else value for key, value in change.items()
    }
    path = write_recipe(tmp_path / "recipe.yaml", {**content, **sections})
    assert_stopped(command(name, path, *(["--out", tmp_path / "run"] if name == "run" else [])), *parts)
    assert not [file for file in files(tmp_path / "run") if "responses" in file or file.startswith("iteration")]


def test_check_compares_the_tokenizers(command: Run, content: dict[str, Any], tmp_path: Path) -> None:
    other = Path(shutil.copytree(content["models"]["policy"], tmp_path / "other"))
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    models = {**content["models"], "policy": str(other)}
    answer = command("check", write_recipe(tmp_path / "recipe.yaml", {**content, "models": models}))
    assert_one_message(answer, "chat template", str(other))


def test_check_reports_a_missing_translation_with_file_and_row(
    command: Run, content: dict[str, Any], tmp_path: Path
) -> None:
    rows = [{"prompt_id": "a", "en": "One?", "es": "¿Uno?"}, {"prompt_id": "b", "en": "Two?", "es": ""}]
    source = write_lines(tmp_path / "gaps.jsonl", rows)
    path = write_recipe(tmp_path / "recipe.yaml", {**content, "prompts": {"source": str(source)}})
    assert_one_message(command("check", path), "gaps.jsonl", "row 2", "es")
    code, output, _ = command("check", path, "--set", "prompts.on_problem=drop")
    assert code == 0
    assert "dropped" in output


def test_an_unknown_command_lists_the_known_ones(command: Run) -> None:
    code, _, errors = command("smaple")
    assert code == 2
    assert all(name in errors for name in ("run", "check", "status", "sample", "select"))
    assert command()[0] == 2
    assert command("--version")[0] == 0


def test_a_run_directory_that_cannot_be_read_is_one_message(command: Run, recipe_file: Path, tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    assert_one_message(command("status", taken), "holds no run")
    assert_stopped(command("run", recipe_file, "--out", taken), str(taken))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "recipe.yaml").write_text("models: [")
    for name in ("status", "report"):
        assert_one_message(command(name, broken), str(broken))


def test_status_before_during_and_after_and_only_one_process_at_a_time(
    command: Run, recipe_file: Path, done: Path, forks: ForkServer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert_one_message(command("status", run), "holds no run")
    process = forks.spawn("run", recipe_file, "--out", run, log=tmp_path / "log")
    wait_for(run, "iteration_1/responses/*/*.done.json", process.poll)
    process.signal(signal.SIGSTOP)
    try:
        code, output, _ = command("status", run)
        assert code == 0
        table = [line.split() for line in output.splitlines()]
        sampled = len(list(run.glob("iteration_1/responses/*/*.done.json")))
        assert ["1", "sample", str(sampled), "6"] in table
        assert ["0", "prompts", "6", "6"] in table  # two languages and what was dropped, for training and held out
        assert ["1", "train", "0", "1"] in table
        assert output.splitlines()[-1].startswith("Next: ")
        assert output.splitlines()[-1].endswith(" of iteration 1.")
        before = times(run)
        assert_stopped(command("run", recipe_file, "--out", run), "Another process is working in", str(run))
        assert times(run) == before
    finally:
        process.signal(signal.SIGCONT)
    assert process.wait() == 0, process.output()
    code, output, _ = command("status", run)
    assert output.splitlines()[-1] == "Everything is done."
    assert_same_run(run, done)


def test_ctrl_c_says_how_to_go_on(recipe_file: Path, done: Path, forks: ForkServer, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    for pattern in ("iteration_1/responses/*/*.done.json", "iteration_1/checkpoints/*/checkpoint-1"):
        log = tmp_path / pattern.split("/")[1]
        process = forks.spawn("run", recipe_file, "--out", run, "--set", "seed=42", log=log)
        wait_for(run, pattern, process.poll)
        process.signal(signal.SIGINT)
        assert process.wait() == 130, process.output()
        last = process.output().splitlines()[-2:]
        assert last[0] == "Stopped. What was finished is kept."
        assert last[1] == f"To resume: {command_line('run', str(recipe_file), '--out', str(run), '--set', 'seed=42')}"
        assert "Traceback" not in process.output()
    forks.run("run", recipe_file, "--out", run, log=tmp_path / "log")
    assert_same_run(run, done)


def test_ctrl_c_in_a_terminal_ends_the_phase_in_its_own_process_too(
    recipe_file: Path, done: Path, forks: ForkServer, tmp_path: Path
) -> None:
    """A terminal sends it to all processes of the group; one message comes out, and nothing goes on."""
    run, arguments = tmp_path / "run", ["run", str(recipe_file), "--out", str(tmp_path / "run")]
    apart = [*CLI, *arguments, "--set", "resources.process_per_phase=true"]
    with subprocess.Popen(
        apart, start_new_session=True, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as parent:
        wait_for(run, "iteration_0/evaluation/responses/*/*.done.json", parent.poll)
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        status = dict(line.split(":\t") for line in Path(f"/proc/{child}/status").read_text().splitlines())
        assert int(status["SigBlk"], 16) >> (signal.SIGINT - 1) & 1, "the phase may print a message of its own"
        os.killpg(parent.pid, signal.SIGINT)
        _, errors = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert errors.count("Stopped.") == errors.count("To resume: ") - 1 == 1
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(parent.pid, 0)
    forks.run(*arguments, log=tmp_path / "log")
    assert_same_run(run, done)


def test_a_full_disk_is_one_message_and_costs_nothing(
    command: Run, recipe_file: Path, done: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for a disk: first tables find no room, then weights and checkpoints."""
    run = tmp_path / "run"
    identify("It unpacks its own model into the temporary folder at first.")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (1000, 30_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            answer = command("run", recipe_file, "--out", run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert_stopped(answer, str(run), "cannot be written")
    assert command("run", recipe_file, "--out", run)[0] == 0
    assert_same_run(run, done)


def test_ranks_that_something_left_in_the_environment_change_nothing(
    command: Run, recipe_file: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_over = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {**left_over, "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    code, _, errors = command("run", recipe_file, "--out", tmp_path / "run")
    assert code == 0
    assert "Phase 1 of" in errors
    assert_same_run(tmp_path / "run", done)
