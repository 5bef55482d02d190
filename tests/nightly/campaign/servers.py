"""Servers that misbehave: each way of `hostile_server`, at some request, for every command that asks a server."""

import base64
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile_server import BEHAVIOURS, OF_THE_LIST, Handler, HostileServer, answer

from .cases import Case, Child, examine_here
from .world import World, judged

KEY = "sk-Campaign-7Zq3vX9-uLw2"
LEAKS = [KEY.encode(), KEY.encode().hex().encode(), base64.b64encode(KEY.encode())]
"""How a key that a server repeats could get into a file."""

WHEN: dict[str, Callable[[int], bool]] = {
    "always": lambda number: True,
    "at first": lambda number: number == 1,
    "at the third request": lambda number: number == 3,
    "now and then": lambda number: number % 2 == 0,
    "from the second on": lambda number: number > 1,
}
PATIENCE = ("timeout=3.0", "retries=1", "concurrency=2")


class Servers:
    """What all cases share: the commands, and what each makes where its server behaves well."""

    COUNT = 200

    def __init__(self, world: World) -> None:
        self.world = world
        root, server = world.root, ["--set=server.url=URL", *(f"--set=server.{setting}" for setting in PATIENCE)]
        judge = ["--judge", "URL", *(f"--set=judge.{setting}" for setting in PATIENCE)]
        prompts = ["--prompts", str(root / "prompts.jsonl")]
        engine = ["--set=sample.engine=server", *server]
        small = ["--set=sample.n=2", "--set=sample.max_new_tokens=6", "--languages", "en,es", "--out", "out.jsonl"]
        models = ["--policy", str(root / "policy"), "--reference", str(root / "initial")]
        scores = ["--responses", str(root / "responses.jsonl"), "--set=reward.engine=server", "--out", "out.jsonl"]
        named = "--set=server.names.policy=pi_0"
        sample = ["sample", "--model", str(root / "policy"), *prompts, *engine, *small, named]
        self.commands: dict[str, list[str]] = {
            "sample tokens": sample,
            "sample chat": [*sample, "--set=server.protocol=chat"],
            "score": ["score", *prompts, *models, *scores, *server],
            "check": ["check", str(root / "recipe.yaml"), *engine],
            "xalpaca": [*judged(world, "xalpaca", root / "answers.jsonl", Path("out")), *judge],
            "mtbench": [*judged(world, "mtbench", root / "conversations.jsonl", Path("out")), *judge],
        }

    def __call__(self, case: Case) -> None:
        """Give a command a server that misbehaves, then one that is well again."""
        chance = case.chance
        command = chance.choice(list(self.commands))
        of_list = [name for name in BEHAVIOURS if name in OF_THE_LIST]
        others = [name for name in BEHAVIOURS if name not in OF_THE_LIST]
        asks_others = command in ("xalpaca", "mtbench") or chance.random() < 0.8
        self.misbehave(case, command, chance.choice(others if asks_others else of_list), chance.choice(list(WHEN)))

    def misbehave(self, case: Case, command: str, behaviour: str, when: str) -> None:
        """Let the server of a command misbehave in some way at some requests, and then be well again."""
        case.guard("out", "out/*", "out.jsonl*", "well")
        with _served(case, behaviour, when, str(self.world.root / "policy")) as url:
            arguments = [argument.replace("URL", url) for argument in self.commands[command]]
            case.run(*arguments, trouble=_prepare)
            (case.folder / "well").touch()
            again = case.run(*arguments, trouble=_prepare)
            # A judge whose verdicts were all unusable has none to show, and is not asked the same once more.
            if command not in ("xalpaca", "mtbench"):
                case.expect(again, 0, f"{command}, {behaviour} {when}: well again, and not resumed")
        case.counts[command] += 1
        _require_no_key(case, f"{command}, {behaviour} {when}")
        case.require_untouched()


class _Handler(Handler):
    """Misbehaves at some requests, and never once the file ``well`` is there."""

    owner: "_MoodyServer"

    def act(self, body: dict[str, Any] | None) -> None:
        server = self.owner
        with server.lock:
            server.asked["list" if body is None else "other"] += 1
            number = server.asked["list" if body is None else "other"]
        is_meant = (body is None) == (server.behaviour in OF_THE_LIST)
        if is_meant and WHEN[server.when](number) and not server.well.exists():
            BEHAVIOURS[server.behaviour](self, body or {})
        else:
            self.send_odd(answer(self, body))


class _MoodyServer(HostileServer):
    def __init__(self, behaviour: str, when: str, well: Path, *models: str) -> None:
        super().__init__(("pi_0", "pi_I", *models))
        self.behaviour, self.when, self.well = behaviour, when, well
        self.http.RequestHandlerClass = type("Handler", (_Handler,), {"owner": self})


@contextlib.contextmanager
def _served(case: Case, behaviour: str, when: str, model: str) -> Iterator[str]:
    """Run a server in a process of its own, since one with threads cannot be forked, and yield its address."""
    told, tell = os.pipe()

    def serve() -> int:
        with _MoodyServer(behaviour, when, case.folder / "well", model) as server:
            os.write(tell, server.url.encode())
            signal.pause()
        return 0

    child = Child(serve, case.folder, case.folder / "server.txt")
    try:
        yield os.read(told, 1000).decode()
    finally:
        os.close(told)
        os.close(tell)
        child.wait(0)


def _prepare() -> None:
    os.environ["OPENAI_API_KEY"] = KEY
    examine_here()


def _require_no_key(case: Case, what: str) -> None:
    """Say in which files the server's key lies."""
    for path in case.folder.rglob("*"):
        if path.is_file() and any(form in path.read_bytes() for form in LEAKS):
            case.faults.append(f"the key lies in {path.name}: {what}")
