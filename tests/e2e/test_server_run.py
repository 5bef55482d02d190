"""Whole runs whose policies and references are served by (fake) servers over real sockets."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_openai_server import FakeOpenAIServer
from fault_proxy import FaultProxy
from running import (
    Models,
    Run,
    assert_stopped,
    by_key,
    crosspref,
    head,
    rows,
    small_recipe,
    succeeded,
    times,
    write_recipe,
)

from crosspref import api
from crosspref.data.records import Response, Score
from crosspref.run.store import Unit

pytest.importorskip("openai")


@pytest.fixture
def server(models: Models) -> Iterator[FakeOpenAIServer]:
    with FakeOpenAIServer({"pi_I": models[0], "pi_0": models[1]}) as server:
        yield server


def served(url: str, **changes: Any) -> dict[str, Any]:
    return {"sample": {**changes.pop("sample", {}), "engine": "server"}, "server": {"url": url, **changes}}


def test_a_whole_run_is_that_of_transformers(
    server: FakeOpenAIServer, content: dict[str, Any], done: Path, command: Run, tmp_path: Path
) -> None:
    """Its answers and pairs are the same, since the fake server draws as transformers does here."""
    asked = {**content, "server": {"url": server.url}}
    for section in ("sample", "reward"):
        asked[section] = {**asked.get(section, {}), "engine": "server"}
    recipe, run = write_recipe(tmp_path / "recipe.yaml", asked), tmp_path / "run"

    policy = run / "iteration_1" / "policy"
    serve = f"vllm serve {policy} --served-model-name pi_1"
    answer = command("run", recipe, "--out", run)
    assert_stopped(answer, server.url, "does not serve pi_1", "'pi_I', 'pi_0'", serve)

    before = times(run)
    server.add("pi_1", policy)
    succeeded(command("run", recipe, "--out", run))
    assert {name: times(run)[name] for name in before} == before

    folder = Path("iteration_1")
    assert rows(run / folder / "responses") == rows(done / folder / "responses")
    ours, theirs = rows(run / folder / "scores"), rows(done / folder / "scores")
    for score, same in zip(ours, theirs, strict=True):
        assert (score.prompt_id, score.language, score.sample, score.tokens) == (
            same.prompt_id, same.language, same.sample, same.tokens,
        )  # fmt: skip
        assert score.policy_logprob == pytest.approx(same.policy_logprob, abs=1e-4)
        assert score.reference_logprob == pytest.approx(same.reference_logprob, abs=1e-4)
    pairs = [[(row.prompt_id, row.chosen_sample, row.rejected_sample) for row in rows(root / folder / "pairs")]
             for root in (run, done)]  # fmt: skip
    assert pairs[0] == pairs[1]
    assert pairs[0]
    assert len(rows(run / folder / "evaluation" / "responses")) == 12

    report, _ = succeeded(command("audit", run))
    assert "float32" in report
    noises = [float(noise) for noise in re.findall(r"^\s*e[ns] \w+\s+(\S+)", report, re.MULTILINE)]
    assert len(noises) == 2
    assert max(noises) < 1e-4


def test_text_alone_can_be_scored_and_trained_on(
    server: FakeOpenAIServer, models: Models, command: Run, tmp_path: Path
) -> None:
    """Some answers are all thinking: they are stored as empty ones, and asked for once."""
    server.changes = {"message": {"role": "assistant", "content": None, "reasoning_content": "Well ..."}}
    server.errs = lambda body: body["seed"] % 4 == 0
    asked = small_recipe(*models, iterations=1, **served(server.url, protocol="chat"))
    run = tmp_path / "run"
    succeeded(command("run", write_recipe(tmp_path / "recipe.yaml", asked), "--out", run))
    assert api.verify(run).damages == []
    responses = rows(run / "iteration_1" / "responses")
    assert {row.token_ids for row in responses} == {None}
    assert {row.finish_reason for row in responses} == {"stop", "length"}
    thoughts = [row for row in responses if row.seed % 4 == 0]
    assert thoughts
    assert {row.text for row in thoughts} == {""}
    seeds = [body["seed"] for body in server.asked if body["seed"] in {row.seed for row in responses}]
    assert len(seeds) == len(responses)
    scores = by_key(rows(run / "iteration_1" / "scores"))
    answers = by_key(responses)
    for key, row in answers.items():
        score = scores[key]
        assert score.tokens is not None
        assert (score.tokens > 0) == bool(row.text or row.finish_reason == "stop")
    assert (run / "iteration_1" / "policy" / "model.safetensors").is_file()
    ends = [
        (answers[pair.prompt_id, pair.language, sample].finish_reason, ended)
        for pair in rows(run / "iteration_1" / "pairs")
        for sample, ended in ((pair.chosen_sample, pair.chosen_ended), (pair.rejected_sample, pair.rejected_ended))
    ]
    assert set(ends) == {("stop", None), ("length", False)}
    # Text is no continuation of a run that holds token ids, and the other way round.
    asked["server"]["protocol"] = "tokens"
    answer = command("run", write_recipe(tmp_path / "recipe.yaml", asked), "--out", run)
    assert_stopped(answer, "server.protocol: 'chat' -> 'tokens' would invalidate sample (6 finished)")


def test_what_a_failing_server_left_undone_is_done_by_a_healthy_one(
    server: FakeOpenAIServer, models: Models, command: Run, tmp_path: Path
) -> None:
    run, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    with FaultProxy(server.url, ("half JSON",), share=0.05, seed=4, most=99) as proxy:
        asked = small_recipe(*models, iterations=1, **served(proxy.url, retries=0))
        answer = command("run", write_recipe(recipe, asked), "--out", run)
        assert_stopped(answer, proxy.url, "in 1 attempts", "Finished shards are kept")
    finished = {path: path.stat().st_mtime_ns for path in run.glob("iteration_1/responses/*/*.parquet")}
    assert len(finished) == 4  # of 6
    parts = [json.loads(path.read_text()) for path in run.glob("iteration_1/responses/*/*.part.json")]
    server.asked.clear()
    asked["server"] = {"url": server.url}
    succeeded(command("run", write_recipe(recipe, asked), "--out", run))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    responses = rows(run / "iteration_1" / "responses")
    assert len(by_key(responses)) == 30
    kept = {row.seed for path in finished for row in Unit(path).rows(Response)}
    again, left = {body["seed"] for body in server.asked}, {row.seed for row in responses} - kept
    assert again <= left
    assert len(left - again) == sum(len(part["items"]) for part in parts)  # answered before the failure


def test_two_engines_never_meet_in_one_ratio(
    server: FakeOpenAIServer, content: dict[str, Any], done: Path, command: Run, tmp_path: Path
) -> None:
    run = shutil.copytree(done, tmp_path / "run")
    scored = sorted(run.glob("iteration_1/scores/*/*/*.parquet"))
    Unit(scored[-1]).marker.unlink()
    before = times(run)
    asked = {**content, "reward": {"engine": "server"}, "server": {"url": server.url}}
    answer = command("run", write_recipe(tmp_path / "recipe.yaml", asked), "--out", run)
    assert_stopped(answer, "reward.engine: 'transformers' -> 'server' would invalidate", "score (5 finished)")
    assert times(run) == before
    assert not server.asked


@pytest.mark.slow
def test_stages_alone(models: Models, server: FakeOpenAIServer, tmp_path: Path) -> None:
    """In processes of their own, which must also end. A model that is no run's is asked for by its path."""
    initial, aligned = map(str, models)
    server.add(aligned, models[1])
    prompts, url = head("prompts_train.jsonl", tmp_path / "prompts.jsonl", 2), ("--set", f"server.url={server.url}")
    responses, scores = tmp_path / "responses.parquet", tmp_path / "scores.parquet"
    limits = ("--set", "sample.n=2", "--set", "sample.max_new_tokens=8", "--set", "sample.engine=server", *url)
    asked = ("--prompts", prompts, "--languages", "es", "--out", responses)
    sampled = crosspref("sample", "--model", aligned, *asked, *limits)
    assert sampled.returncode == 0, sampled.stderr
    asked = ("--prompts", prompts, "--responses", responses, "--out", scores)
    engine = ("--set", "reward.engine=server", *url)
    scored = crosspref("score", "--policy", aligned, "--reference", initial, *asked, *engine)
    assert scored.returncode == 0, scored.stderr
    found = Unit(scores).rows(Score)
    assert [row.tokens for row in found] == [len(row.token_ids) for row in Unit(responses).rows(Response)]
    assert None not in [row.implicit_reward for row in found]
