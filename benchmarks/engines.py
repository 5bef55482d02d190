"""Throughput of the engines side by side: sampling and scoring through transformers, vLLM and vLLM's server.

    .venv-vllm/bin/python benchmarks/engines.py --prompts 8 --responses 4 --new-tokens 64 --out engines.json

Each engine lives in a process of its own, and they run alternating, by crosspref's own stages; meanwhile the server is
stopped, since it would keep itself busy. Needs the environment of `make test-vllm`. Prints tokens per second and each
engine's ratio to transformers in the same round, and writes JSON.
"""

import argparse
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import workload
from timing import alternate, check_alike, machine, mean_per_token, ratios, spread, timed

from crosspref.data.records import Prompt, Response, Score
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.engines.transformers.models import readable_directory
from crosspref.models.locate import locate_model
from crosspref.recipe.sections import ResourceSettings, RewardSettings, SampleSettings, ServerSettings
from crosspref.stages.sample import Drawing, sample
from crosspref.stages.score import score

SAMPLERS, SCORERS = ("transformers", "vllm", "server"), ("transformers", "server")
ENGINE: Any = None
"""The engine of a worker."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=workload.MODEL)
    parser.add_argument("--prompts-from", default=workload.source())
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--responses", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that the server ends, too
    os.environ.update({"OMP_NUM_THREADS": str(options.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    os.environ.update({"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"})
    settings = {**vars(options), "prompts_from": Path(options.prompts_from).name, "out": None}
    results: dict[str, Any] = {"machine": machine(options.threads), "settings": settings}
    with serve(options) as server:
        results["sampling"], responses = measure_sampling(options, server)
        results["scoring"] = measure_scoring(options, server, responses)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure_sampling(options: argparse.Namespace, server: "Server") -> tuple[dict[str, Any], list[Response]]:
    """Return tokens per second of each sampler, and the responses of the first."""
    prompts = workload.english(options.prompts_from, options.prompts)
    work = partial(draw, prompts, options.responses)
    speeds, results = alternate_engines(SAMPLERS, "sampler", work, options, server)
    for rows in results.values():
        assert len(rows) == len(prompts) * options.responses, "an engine left responses out"
    # What they drew differs; how likely it is under the model must not, beyond chance.
    means = {}
    for name, rows in results.items():
        _, scores = alternate_engines(SCORERS[:1], "scorer", partial(rate, prompts, rows), options, server, rounds=1)
        means[name] = mean_per_token(scores["transformers"])
    check_alike(means)
    return {**summary("sampling", speeds), "mean nats per token, and its error": means}, results["transformers"]


def measure_scoring(options: argparse.Namespace, server: "Server", responses: list[Response]) -> dict[str, Any]:
    """Return scored tokens per second of each scorer."""
    prompts = workload.english(options.prompts_from, options.prompts)
    speeds, results = alternate_engines(SCORERS, "scorer", partial(rate, prompts, responses), options, server)
    ours, theirs = ([row.policy_logprob for row in results[name]] for name in SCORERS)
    apart = workload.difference(ours, theirs, options.dtype)
    return {**summary("scoring", speeds), "greatest difference, nats": apart}


def summary(what: str, speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Print and return what was measured, and each engine against transformers."""
    against = {name: ratios(values, speeds["transformers"]) for name, values in speeds.items()}
    for name, values in speeds.items():
        one, other = spread(values), spread(against[name])
        print(
            f"{what} {name}: {one['median']:.1f} tokens/s ({one['low']:.1f} to {one['high']:.1f}), "
            f"{other['median']:.2f} x transformers ({other['low']:.2f} to {other['high']:.2f})",
            flush=True,
        )
    return {"tokens per second": speeds, "to transformers": {name: spread(rows) for name, rows in against.items()}}


def alternate_engines(
    names: tuple[str, ...],
    kind: str,
    work: Callable[[], tuple[float, Any]],
    options: argparse.Namespace,
    server: "Server",
    rounds: int | None = None,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Let engines alternate, each in its own process, where work runs and returns (tokens per second, result)."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        turns: dict[str, Callable[[], tuple[float, Any]]] = {}
        for name in names:
            pool = ProcessPoolExecutor(1, spawn, load, (name, kind, vars(options), server.url))
            turn = partial(run, stack.enter_context(pool), work)
            turns[name] = partial(server.run, turn) if name == "server" else turn
            turns[name]()  # loads the engine, and does what is done once
        return alternate(turns, rounds or options.rounds)


def run(pool: ProcessPoolExecutor, work: Callable[[], tuple[float, Any]]) -> tuple[float, Any]:
    """Return what work returns in a worker."""
    return pool.submit(work).result()


def load(name: str, kind: str, options: dict[str, Any], url: str) -> None:
    """Build the engine of this process."""
    global ENGINE
    new_tokens = options["new_tokens"]
    sampling = {"engine": name, "n": max(2, options["responses"]), "max_new_tokens": new_tokens}
    machine = {"dtype": options["dtype"], "device": "cpu", "threads": options["threads"]}
    engines = EngineFactory(
        EngineSettings(
            sample=SampleSettings(**sampling, max_prompt_tokens=2048 - new_tokens),  # what the server is told, too
            reward=RewardSettings(engine="transformers" if name == "vllm" else name, algorithm="simpo"),
            resources=ResourceSettings(**machine),
            server=ServerSettings(url=url, concurrency=64),
            seed=workload.SEED,
            roles={options["model"]: "pi_0"},
        )
    )
    model = locate_model(options["model"])
    ENGINE = engines.sampler(model) if kind == "sampler" else engines.scorer(model, None)


def draw(prompts: list[Prompt], n: int) -> tuple[float, list[Response]]:
    """Return tokens per second, and the responses."""
    drawing = Drawing(n, workload.SEED, iteration=1)
    seconds, rows = timed(lambda: sample(prompts, ENGINE, drawing, workload.quiet))
    return sum(len(row.token_ids or ()) for row in rows) / seconds, rows


def rate(prompts: list[Prompt], responses: list[Response]) -> tuple[float, list[Score]]:
    """Return response tokens per second, and the scores."""
    given = {"settings": RewardSettings(algorithm="simpo"), "reward": "multilingual", "advance": workload.quiet}
    seconds, rows = timed(lambda: score(responses, prompts, ENGINE, **given))
    return sum(row.tokens for row in rows) / seconds, rows


class Server:
    """vLLM's server; it is stopped when it is not its turn."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]") -> None:
        self.url, self.process = url, process

    def run(self, work: Callable[[], Any]) -> Any:
        """Wake the server for some work."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            return work()
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)


@contextmanager
def serve(options: argparse.Namespace) -> Iterator[Server]:
    """Serve the model with vLLM as pi_0; it holds the same settings as the engine in process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    directory = readable_directory(locate_model(options.model))
    command = [
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)),
        *("--served-model-name", "pi_0", "--host", "127.0.0.1", "--port", port, "--dtype", options.dtype),
        *("--max-model-len", "2048", "--max-num-seqs", "256", "--generation-config", "vllm", "--enforce-eager"),
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "4"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            wait_for(port, process, log)
            # It keeps running while the others load: that takes minutes, and it does not survive such a long stop.
            yield Server(f"http://127.0.0.1:{port}/v1", process)
        except Exception:
            print(log.read_text()[-4000:], file=sys.stderr)
            raise
        finally:
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(port: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the server answers."""
    import httpx

    end = time.monotonic() + 400
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    sys.exit(f"vLLM's server did not come up:\n{log.read_text(errors='replace')[-3000:]}")


if __name__ == "__main__":
    main()
