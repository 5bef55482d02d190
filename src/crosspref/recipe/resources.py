"""The sections of a recipe that say where and how it runs; ``sections`` has the others. Nothing here imports torch."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from crosspref.recipe.sections import Positive, Settings

Share = Annotated[float, Field(gt=0, le=1)]
AtLeastZero = Annotated[float, Field(ge=0)]


class ResourceSettings(Settings):
    """Where and how things run. These settings change no result beyond rounding."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of sampling, scoring and training. auto: bfloat16 where it is fast."
    )
    threads: Positive | None = Field(None, description="CPU threads of torch; all cores if left out.")
    shard_prompts: Positive = Field(64, description="Prompts per shard, the unit of work and of resuming.")
    process_per_phase: bool = Field(True, description="A process for each phase, so that its memory is given back.")
    executor: Literal["local", "ray"] = Field(
        "local", description="local: phases run on this machine. ray: shards are mapped over workers (section `ray`)."
    )
    launch: str | None = Field(
        None,
        description="What starts training on several devices: accelerate launch --config_file FILE, or torchrun "
        "--nproc-per-node 8. One process without it.",
    )

    @field_validator("launch")
    @classmethod
    def _phases_are_processes(cls, launch: str | None, info: ValidationInfo) -> str | None:
        if launch is not None and not launch.strip():
            raise ValueError("name a command, or leave it out")
        if launch is not None and info.data.get("process_per_phase") is False:
            raise ValueError("starts training in processes of their own, and contradicts process_per_phase: false")
        return launch


class VllmSettings(Settings):
    """vLLM in this process, for `sample.engine: vllm`. These settings change no result beyond rounding.

    One vLLM holds one copy of the model; several copies are workers of Ray (`resources.executor: ray`), each with one.
    """

    tensor_parallel: Positive = Field(1, description="GPUs that share one copy of the model.")
    memory: Share = Field(
        0.9, description="Share of a GPU's memory that vLLM may take. On a CPU its cache takes 4 GiB instead."
    )
    max_sequences: Positive = Field(256, description="Responses that are sampled side by side, at most.")


class ServerSettings(Settings):
    """A server that speaks OpenAI's protocol, for `sample.engine: server` and `reward.engine: server`.

    The models of a run are pi_I, pi_0, pi_1 ...; a server may hold them under other names.
    """

    url: str = Field("http://localhost:8000/v1", description="The server's address, with its version.")
    urls: dict[str, str] = Field({}, description="Addresses of models that another server holds: {pi_I: http://...}.")
    names: dict[str, str] = Field({}, description="Names under which models are served: {pi_0: my/model}; else pi_t.")
    protocol: Literal["tokens", "chat"] = Field(
        "tokens",
        description="tokens: prompts go out and responses come back as token ids (vLLM). chat: messages and text, "
        "as every server has it; cannot score.",
    )
    key_variable: str = Field("OPENAI_API_KEY", description="The environment variable that holds the server's key.")
    concurrency: Positive = Field(32, description="Requests at a time, at most.")
    requests_per_minute: Positive | None = Field(None, description="Requests per minute, at most.")
    timeout: Annotated[float, Field(gt=0)] = Field(600.0, description="Seconds until an answer is given up.")
    retries: Annotated[int, Field(ge=0)] = Field(
        6,
        description="How often a request is repeated after 429, 5xx, a lost connection or half an answer, each time "
        "later.",
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        return checked_address(url)

    @field_validator("urls")
    @classmethod
    def _are_addresses(cls, urls: dict[str, str]) -> dict[str, str]:
        return {role: checked_address(url) for role, url in urls.items()}


def checked_address(url: str) -> str:
    """Return the address of a server, or raise ValueError if it is none, or holds a secret."""
    parts = urlsplit(url)
    if parts.password is not None or parts.username is not None:  # which is not repeated here
        raise ValueError("the address holds a user or password, and is stored with the run: use key_variable")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a server, such as http://localhost:8000/v1")
    return url


class RaySettings(Settings):
    """Ray, for `resources.executor: ray`."""

    address: str | None = Field(
        None,
        description="The cluster: HOST:PORT, or auto for the one that this machine is a node of. If left out, what "
        "RAY_ADDRESS names, else a cluster on this machine for the run.",
    )
    workers: Positive = Field(2, description="Workers that hold the model, for sampling and for scoring.")
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(1.0, description="CPUs that Ray reserves for each worker.")
    gpus_per_worker: AtLeastZero = Field(0.0, description="GPUs that Ray reserves for each worker.")
