"""What can happen to a process while it works: kills, full and broken disks, little memory, others, clocks, moves.

A process watches its own file operations by one of Python's audit hooks, which hears of each before it is done, so that
a strike can come before any of them. What C++ and Rust write (Parquet, weights) is not heard of: there a limit of the
file size strikes in the middle, and a small disk where one may be mounted.
"""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from running import write_recipe

from crosspref.cli import main

from .cases import CODES, SECONDS, Case, in_child
from .world import World

KILLED = frozenset({-signal.SIGKILL, -signal.SIGALRM, -signal.SIGXFSZ, 0})
"""How a command ends that is killed, unless it was done before."""

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TROUBLES = {
    "the disk is full": errno.ENOSPC,
    "the quota is used up": errno.EDQUOT,
    "the disk is broken": errno.EIO,
    "the network lost the file": errno.ESTALE,
    "the disk is read-only": errno.EROFS,
    "it is forbidden": errno.EACCES,
}


class Watch:
    """Hears of every change of a file below a folder, before it is done, and strikes at one of them.

    Args:
        folder: what counts lies below it.
        at: the number of the event, from 0; None for no strike.
        strike: what happens then; it is told the operation and the path.
        lasting: whether it happens at every later event, too.
        reads: whether files that are opened to be read count, too.
    """

    def __init__(
        self,
        folder: Path,
        at: int | None = None,
        strike: Callable[[str, str], None] | None = None,
        *,
        lasting: bool = False,
        reads: bool = False,
    ) -> None:
        self.folder, self.at, self.strike, self.lasting, self.reads = str(folder), at, strike, lasting, reads
        self.events: list[tuple[str, str]] = []
        self.is_busy = False

    def begin(self) -> None:
        """Watch this process from now on, until its end."""
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            self._hear("fsync", f"/proc/self/fd/{descriptor}")
            flush(descriptor)

        os.fsync = fsync
        sys.addaudithook(self._audit)

    def _audit(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = given
            is_writing = isinstance(flags, int) and flags & WRITING
            if not isinstance(path, int | None) and (is_writing or self.reads):
                self._hear("open", os.fsdecode(path))
        elif event in CHANGES and not isinstance(given[0], int):
            folder = given[-1] if event in ("os.remove", "os.rmdir") else -1
            name = os.fsdecode(given[0])
            self._hear(event, name if folder in (-1, None) else f"/proc/self/fd/{folder}/{name}")

    def _hear(self, operation: str, path: str) -> None:
        if self.is_busy:
            return
        self.is_busy = True
        try:
            path = _resolved(path)
            if not path.startswith(self.folder + "/"):
                return
            number = len(self.events)
            self.events.append((operation, re.sub(r"\.\d+\.tmp", ".PID.tmp", path.removeprefix(self.folder + "/"))))
            if self.strike and self.at is not None and (number == self.at or (self.lasting and number > self.at)):
                self.strike(operation, path)
        finally:
            self.is_busy = False


def _resolved(path: str) -> str:
    """Return an absolute path, with a folder's own path in the place of a descriptor of this process."""
    descriptor = re.match(r"/proc/self/fd/\d+", path)
    if descriptor:
        path = f"{Path(descriptor[0]).readlink()}{path[descriptor.end() :]}"
    return os.path.normpath(Path.cwd() / path)


@dataclass(frozen=True)
class Scene:
    """A command, the folder or file that it makes, and what it did to files when nobody disturbed it."""

    name: str
    command: tuple[str, ...]
    out: str
    reference: Path
    events: Sequence[tuple[str, str]]
    seconds: float
    largest: int
    """Bytes of the largest file that it made."""
    start: Path | None = None
    """What lies in the place of its output when it begins."""

    def outputs(self) -> tuple[str, ...]:
        """Return the patterns of what it may leave in a case's folder."""
        return self.out, f"{self.out}/*", f"{self.out}.*", f".{self.out}.*"


class Strikes:
    """What all cases share: commands whose result is known; those of ``make_scenes`` if left out."""

    def __init__(self, world: World, scenes: Sequence[Scene] = ()) -> None:
        self.world = world
        self.scenes = scenes or self.make_scenes(world.root / type(self).__name__.lower())

    def make_scenes(self, place: Path) -> list[Scene]:
        """Make a whole run, train, and sample."""
        root = self.world.root
        place.mkdir()
        recipe = write_recipe(place / "recipe.yaml", self.world.recipe_content(train={"lora": {"rank": 4}}))
        given = {
            "run": ["run", str(recipe), "--out", "out"],
            "train": ["train", "--pairs", str(root / "pairs.jsonl"), "--out", "out"],
            "sample": ["sample", "--prompts", f"{root}/prompts.jsonl", "--languages", "en,es", "--out", "out.jsonl"],
        }
        settings = {
            "train": ("train.batch_size=4", "train.micro_batch_size=2", "train.checkpoint_every=1"),
            "sample": ("sample.n=3", "sample.max_new_tokens=12"),
        }
        here = ("resources.device=cpu", "resources.dtype=float32", "resources.threads=1")
        for name in ("train", "sample"):
            given[name] += ["--model", str(root / "policy"), *(f"--set={one}" for one in (*settings[name], *here))]
        return [make_scene(place / name, command) for name, command in given.items()]

    def at_share(self, share: float) -> tuple[Scene, int]:
        """Return the scene and the event at a share of all events of all scenes."""
        place = int(share * sum(len(scene.events) for scene in self.scenes))
        for scene in self.scenes:
            if place < len(scene.events):
                return scene, place
            place -= len(scene.events)
        return self.scenes[-1], len(self.scenes[-1].events) - 1

    def begin(self, case: Case, scene: Scene, *outputs: str) -> None:
        """Put files of others beside what a command makes, and where it keeps what is unfinished."""
        if scene.name == "train":
            (case.folder / "out.checkpoints").mkdir()
            (case.folder / "out.checkpoints" / "notes.txt").write_text("mine\n", encoding="utf-8")
        case.guard(*scene.outputs(), *outputs)
        if scene.start:
            shutil.copytree(scene.start, case.folder / scene.out)

    def some(self, case: Case) -> tuple[Scene, int]:
        """Return any scene, the whole run more often than others, and any of its events."""
        scene = case.chance.choice([self.scenes[0], *self.scenes])
        return scene, case.chance.randrange(len(scene.events))


def make_scene(folder: Path, command: Sequence[str], start: Path | None = None) -> Scene:
    """Run a command undisturbed, and note what it does to files; its output begins as a copy of ``start``."""
    folder.mkdir()
    out = command[command.index("--out") + 1]
    if start:
        shutil.copytree(start, folder / out)
    begun = time.monotonic()
    in_child(partial(_watched, command, folder), folder)
    seconds = time.monotonic() - begun
    events = [tuple(event) for event in json.loads((folder / "events.json").read_text(encoding="utf-8"))]
    files = [path for path in (folder / out).rglob("*") if path.is_file()] or [folder / out]
    largest = max(path.stat().st_size for path in files)
    return Scene(folder.name, tuple(command), out, folder / out, events, seconds, largest, start)


def _watched(command: Sequence[str], folder: Path) -> int:
    watch = Watch(folder)
    watch.begin()
    code = main(list(command))
    watch.is_busy = True
    (folder / "events.json").write_text(json.dumps(watch.events), encoding="utf-8")
    return code


def resume(case: Case, scene: Scene, place: str = "") -> None:
    """Give the command again: it goes on, and makes what it makes undisturbed; files of others stay as they are."""
    out = case.folder / (place or scene.out)
    if (out / "recipe.yaml").exists():
        case.guard(root=out.resolve())
    command = [place if word == scene.out and place else word for word in scene.command]
    code = 1 if _is_trained(scene, out) else 0
    if case.expect(case.run(*command), code, f"{scene.name} was not resumed"):
        case.require_untouched()
        if out.is_dir():
            case.remove_sentinels(out)
        case.require_same(out, scene.reference)


def _is_trained(scene: Scene, out: Path) -> bool:
    """Tell whether a trained model is there already: `train` does not overwrite it."""
    return scene.name == "train" and out.is_dir()


class Kills(Strikes):
    """Kills before every change of a file, in the middle of large files, and at any moment."""

    COUNT, EVERYWHERE = 240, 200
    """So many cases strike at events that are spread evenly over all; the others at random moments."""

    def __call__(self, case: Case) -> None:
        if case.number < self.EVERYWHERE:
            scene, at = self.at_share((case.number + case.chance.random()) / self.EVERYWHERE)
            troubles = [Watch(case.folder, at, kill).begin]
        else:
            scene, _ = self.some(case)
            sizes = partial(_limit_files, case.chance.randrange(1, scene.largest), kills=True)
            moments = [partial(_alarm, case.chance.uniform(0, scene.seconds)) for _ in range(4)]
            troubles = [sizes] if case.number % 3 == 0 else moments
        self.begin(case, scene)
        for trouble in troubles:
            if not _is_trained(scene, case.folder / scene.out):
                case.run(*scene.command, trouble=trouble, codes=KILLED)
        resume(case, scene)


class Disks(Strikes):
    """Disks that are full, broken, forbidden or lost, from some event on or only once."""

    COUNT, EVERYWHERE, BY_SIZE = 160, 120, 20

    def __call__(self, case: Case) -> None:
        if case.number < self.EVERYWHERE:
            scene, at = self.at_share((case.number + case.chance.random()) / self.EVERYWHERE)
            name = case.chance.choice(["the disk is full", *TROUBLES])
            strike, reads = partial(fail, TROUBLES[name]), name != "the disk is full" and case.chance.random() < 0.3
            lasting = name == "the disk is read-only" or case.chance.random() < 0.6
            self.begin(case, scene)
            case.run(*scene.command, trouble=Watch(case.folder, at, strike, lasting=lasting, reads=reads).begin)
            resume(case, scene)
        elif case.number < self.EVERYWHERE + self.BY_SIZE:
            scene = self.scenes[case.number % 2]  # whose largest files are larger than what it prints
            self.begin(case, scene)
            case.run(
                *scene.command, trouble=partial(_limit_files, case.chance.randrange(20_000, scene.largest), kills=False)
            )
            resume(case, scene)
        else:
            self._small_disk(case)

    def _small_disk(self, case: Case) -> None:
        """A real disk that is too small, and is made larger when the command has said so."""
        scene, _ = self.some(case)
        kilobytes = int(4 * (scene.largest / 1024) ** case.chance.uniform(0.2, 1.2)) + 4
        disk = case.folder / "disk"
        disk.mkdir()
        case.guard("disk/*")
        with _mounted(disk, f"{kilobytes}k") as is_mounted:
            if not is_mounted:
                case.counts["skipped: no disk may be mounted here"] += 1
                return
            command = [f"disk/{word}" if word == scene.out else word for word in scene.command]
            case.run(*command)
            subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
            resume(case, scene, f"disk/{scene.out}")


class Odd(Strikes):
    """Little memory, two at once, clocks that jump, read-only and slow disks, runs that are moved and copied."""

    COUNT = 140

    def __call__(self, case: Case) -> None:
        kinds = (self.memory, self.memory, self.two, self.clock, self.read_only, self.slow, self.moved)
        kinds[case.number % len(kinds)](case)

    def memory(self, case: Case) -> None:
        """Too little memory: C++ may end the process, Python must say so."""
        scene, _ = self.some(case)
        self.begin(case, scene)
        ends = CODES | {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGKILL, -signal.SIGBUS}
        case.run(*scene.command, megabytes=case.chance.choice((1, 5, 20, 50, 100, 200, 400)), codes=ends)
        resume(case, scene)

    def two(self, case: Case) -> None:
        """Two processes with one run: one does it, and the other waits for nothing and says so."""
        scene = self.scenes[0]
        self.begin(case, scene)
        first = case.start(*scene.command)
        time.sleep(case.chance.uniform(0, scene.seconds))
        second = case.start(*scene.command, log="second.txt")
        outcomes = [case.judge(child.wait(SECONDS), CODES, SECONDS) for child in (first, second)]
        if 0 not in [outcome.code for outcome in outcomes]:
            case.faults.append(f"two at once: neither ended well: {outcomes[1].output[-300:]}")
        resume(case, scene)

    def clock(self, case: Case) -> None:
        """A clock that jumps by years, and files from the past and the future."""
        scene, at = self.some(case)
        self.begin(case, scene)
        jumps = partial(_jump, case.chance.getrandbits(32))

        def trouble() -> None:
            jumps()
            Watch(case.folder, at, kill).begin()

        case.run(*scene.command, trouble=trouble, codes=KILLED)
        for path in sorted((case.folder / scene.out).rglob("*")):
            os.utime(path, (when := case.chance.choice((0, 1, 2**31, 2**33)), when))
        resume(case, scene)

    def read_only(self, case: Case) -> None:
        """A run that may only be read is shown; a command that would have to write it says so."""
        self.show(case, case.chance.choice(("report", "status", "compare", "leaderboard")))

    def show(self, case: Case, command: str) -> None:
        """Show a run that may only be read by a command, and try to resume it."""
        shutil.copytree(self.world.root / "run", case.folder / "run")
        case.guard("comparison.*")
        only = Watch(case.folder / "run", 0, partial(fail, errno.EROFS), lasting=True).begin
        case.expect(case.run(command, "run", trouble=only), 0, f"{command} of a run that may only be read")
        case.run("run", self.world.root / "recipe.yaml", "--out", "run", trouble=only)
        case.require_untouched()

    def slow(self, case: Case) -> None:
        """A disk that takes its time, as one behind a network does."""
        scene, _ = self.some(case)
        self.begin(case, scene)
        case.run(*scene.command, trouble=Watch(case.folder, 0, _dawdle, lasting=True).begin)
        resume(case, scene)

    def moved(self, case: Case) -> None:
        """A run that was killed, and then moved, copied or linked."""
        self.move(case, case.chance.choice(list(MOVES)), case.chance.randrange(len(self.scenes[0].events)))

    def move(self, case: Case, how: str, at: int) -> None:
        """Kill a run at an event, move it, and go on where it lies now."""
        scene, place = self.scenes[0], "elsewhere/a run"
        self.begin(case, scene, "elsewhere/*")
        case.run(*scene.command, trouble=Watch(case.folder, at, kill).begin, codes=KILLED)
        if (out := case.folder / scene.out).exists():
            (case.folder / "elsewhere").mkdir()
            MOVES[how](out, case.folder / place)
            resume(case, scene, place)


MOVES: dict[str, Callable[[Path, Path], object]] = {
    "moved": Path.rename,
    "copied": shutil.copytree,
    "linked": lambda out, place: place.symlink_to(out),
}
"""How a run comes to lie in another place."""


def kill(_: str, __: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int, _: str, path: str) -> None:
    raise OSError(number, os.strerror(number), path)


def _dawdle(_: str, __: str) -> None:
    time.sleep(0.005)


def _alarm(seconds: float) -> None:
    """Let the system end the process after a time, as it stands."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))


def _limit_files(size: int, *, kills: bool) -> None:
    """Let no file become larger: whoever writes on is killed, or is told so, as on a full disk."""
    if kills:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _jump(seed: int) -> None:
    """Let the time of day jump, and the time since the start go faster, as after a sleep."""
    chance, day, steady, slept = random.Random(seed), time.time, time.monotonic, [0.0]

    def time_of_day() -> float:
        return day() + chance.choice((0, 0, -1e9, 1e9, -3600, 3600))

    def since_start() -> float:
        slept[0] += chance.choice((0, 0, 0, 100))
        return steady() + slept[0]

    time.time, time.monotonic = time_of_day, since_start


@contextmanager
def _mounted(place: Path, size: str) -> Iterator[bool]:
    """Mount a small disk, where that is allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "campaign", str(place)]
    is_mounted = bool(shutil.which("mount")) and not subprocess.run(mount, capture_output=True, check=False).returncode
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", str(place)], check=True)
