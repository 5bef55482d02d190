"""A connection to Ray, what it reserves for each worker, and the nodes that it has."""

import contextlib
import os
import socket
import sys
from pathlib import Path

import ray
from ray.exceptions import RayError

from crosspref.errors import RunError
from crosspref.escape import one_line
from crosspref.paths import SAFE_PATH
from crosspref.recipe.sections import RaySettings

DEATHS = 3
"""The run stops when so many workers have died on one shard, or before they hold their engine."""

ANSWER_SECONDS = 5.0
"""How long an address may take to answer."""


def connect(settings: RaySettings) -> None:
    """Connect this process to Ray, if it is not yet, and start a cluster on this machine where no address is given.

    Raises:
        RunError: the address does not answer, or Ray cannot start here.
    """
    if ray.is_initialized():
        return
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address not in {"auto", "local"}:
        require_answer(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ |= SAFE_PATH
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        # Its workers import from where it is called: not where a person's own random.py may lie.
        with contextlib.chdir(Path(sys.executable).parent):
            ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        hint = ""
        if address == "auto":
            hint = "\nray.address: auto needs a cluster on this machine (`ray start --head`) or RAY_ADDRESS."
        if "AF_UNIX" in str(error):
            hint = "\nSet RAY_TMPDIR to a folder with a short path, such as /tmp."
        raise RunError(f"Ray ({address}) cannot be used: {one_line(error)}{hint}") from error


def require_answer(address: str) -> None:
    """Raise RunError unless Ray's head answers at HOST:PORT; Ray itself would wait for it for more than a minute."""
    if "://" in address:
        raise RunError(
            f"ray.address {address} is for Ray's client, which training cannot use. Run crosspref on a node of the "
            "cluster, for example by `ray job submit`, with ray.address: auto or HOST:PORT."
        )
    host, _, port = address.rpartition(":")
    problem = "it speaks another protocol"
    try:
        if not host:
            raise ValueError(f"{address!r} is not HOST:PORT")
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in {"", "0"}:
                return  # nothing can be said in the clear
            # The opening of HTTP/2, which gRPC runs on: the other side opens with its settings (a frame of type 4).
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            if connection.recv(4)[3:] == b"\x04":
                return
    except (OSError, ValueError) as error:
        problem = str(error)
    raise RunError(
        f"No Ray cluster answers at ray.address {address}: {problem}. `ray status --address {address}` on a node of "
        "the cluster must work; its port is the one of `ray start --head` (6379). Leave ray.address out for a cluster "
        "on this machine."
    )


def needs_of(settings: RaySettings) -> dict[str, float]:
    """Return what Ray reserves for each worker."""
    return {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}


def living_nodes() -> list[dict[str, float]]:
    """Return the resources of each of the cluster's nodes that is there."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
