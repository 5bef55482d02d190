"""How training is spread over devices, as the command in ``resources.launch`` says."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from crosspref.data.rows import parse_json
from crosspref.errors import CrossprefError
from crosspref.paths import read_text
from crosspref.recipe.files import parse_yaml
from crosspref.recipe.schema import Recipe

Kind = Literal["one process", "DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP"]
Part = Literal["weights", "gradients", "optimizer"]

_SHARED: dict[Kind, tuple[Part, ...]] = {
    "one process": (),
    "DDP": (),
    "ZeRO-1": ("optimizer",),
    "ZeRO-2": ("gradients", "optimizer"),
    "ZeRO-3": ("weights", "gradients", "optimizer"),
    "FSDP": ("weights", "gradients", "optimizer"),
}
"""Of what each device holds only its share."""


@dataclass(frozen=True, slots=True)
class Spread:
    """What spreads training, and over how many devices (None: all that there are).

    ``keeps_gathered``: FSDP keeps the weights that it gathered for going forward until it goes back. ``unread`` is a
    file of the launcher that cannot be read here, so that the kind is the one that needs the most memory.
    """

    kind: Kind = "one process"
    devices: int | None = 1
    keeps_gathered: bool = False
    unread: str | None = None

    def shards(self, part: Part) -> int:
        """Return how many devices share the weights, the gradients or the optimizer."""
        return self.devices or 1 if part in _SHARED[self.kind] else 1

    def on(self, count: int | None) -> "Spread":
        """Return what becomes of this where there are so many devices; None: as many as are asked for."""
        return replace(self, devices=min(self.devices or count or 1, count or self.devices or 1))


def read_spread(recipe: Recipe) -> Spread:
    """Return how a recipe's training is spread."""
    if recipe.resources.launch is not None:
        return _launched(recipe.resources.launch)
    if recipe.resources.executor == "ray":  # Ray Train starts DDP on the workers
        return Spread("DDP", recipe.ray.workers)
    return Spread()


def _launched(launch: str) -> Spread:
    """Return what a command starts."""
    options = _options(launch)
    config: dict[str, Any] = {}
    unread = None
    if (name := options.get("config_file")) is not None and (read := _read(name)) is None:
        unread = name
    elif name is not None:
        config = read or {}
    fsdp, zero = _section(config, "fsdp_config") | options, _section(config, "deepspeed_config") | options
    kind: Kind = "DDP"
    keeps_gathered = False
    if "use_fsdp" in options or config.get("distributed_type") == "FSDP":
        strategy = str(fsdp.get("fsdp_sharding_strategy", "FULL_SHARD")).upper()
        keeps_gathered = str(fsdp.get("fsdp_reshard_after_forward", "true")).lower() in ("false", "shard_grad_op")
        keeps_gathered = keeps_gathered or strategy in ("SHARD_GRAD_OP", "2")
        kind = "DDP" if strategy in ("NO_SHARD", "3") else "FSDP"
    elif "use_deepspeed" in options or config.get("distributed_type") == "DEEPSPEED":
        stage = zero.get("zero_stage", 2)  # as accelerate has it
        if (name := zero.get("deepspeed_config_file")) is not None:
            given = _read(str(name))
            stage = 0 if given is None else _section(given, "zero_optimization").get("stage", 0)
            unread = str(name) if given is None else unread
        stages: dict[str, Kind] = {"1": "ZeRO-1", "2": "ZeRO-2", "3": "ZeRO-3"}
        kind = stages.get(str(stage), "DDP")
    return Spread(kind, _processes(options, config), keeps_gathered, unread)


def _processes(options: dict[str, str], config: dict[str, Any]) -> int | None:
    """Return how many processes are started on all machines, as far as it is said in numbers."""
    per_node, nodes = options.get("nproc_per_node", ""), options.get("nnodes", "1")  # of torchrun
    if per_node.isdecimal() and nodes.isdecimal():
        return int(per_node) * int(nodes) or None
    number = str(options.get("num_processes", config.get("num_processes", "")))  # of accelerate: on all machines
    return int(number) or None if number.isdecimal() else None


def _options(command: str) -> dict[str, str]:
    """Return a command's long options by name, with _ for -; those without a value have an empty one."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation without an end: the run says so
        return {}
    options = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name.replace("-", "_")] = value if equals else "" if following.startswith("-") else following
    return options


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name)
    return section if isinstance(section, dict) else {}


def _read(name: str) -> dict[str, Any] | None:
    """Return the content of a launcher's file; None if it is not here, or holds something else."""
    path = Path(name)
    try:
        text = read_text(path)
        content = parse_json(text) if path.suffix == ".json" else parse_yaml(text, name)
    except (OSError, ValueError, CrossprefError):
        return None
    return content if isinstance(content, dict) else None
