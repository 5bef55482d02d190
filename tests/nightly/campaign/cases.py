"""What a case of the campaign is: a folder, commands in forked children with limits, and what they must not do."""

import contextlib
import ctypes
import fnmatch
import hashlib
import os
import random
import re
import resource
import select
import shlex
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import fork_server
from running import ask_here, assert_same_run

from crosspref import api
from crosspref.cli import main
from crosspref.errors import CrossprefError

CODES = frozenset({0, 1, 2, 130})
"""The exit codes that `crosspref` documents."""

SECONDS = 60.0
"""A command of the campaign takes a few; on a machine that is busy many more."""

MEGABYTES = 3000
"""What a command may take beyond what it has when it begins."""

LARGEST_FILE = 1 << 30
PR_SET_PDEATHSIG = 1
"""The number of a request to Linux: which signal comes when the parent ends."""

MISTAKE = re.compile(r"Traceback \(most recent call last\)|mistake in crosspref")
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
LONGEST = 100_000
"""Characters that a command may print."""

OWN = ("output.txt", "second.txt", "commands.txt", "difference.txt", "server.txt", "cache", "temporary")
"""What the campaign itself, libraries' caches and temporary folders leave in a case's folder."""

SENTINELS = {
    "notes.txt": "mine\n",
    ".mine.tmp": "mine\n",
    "mine.part.json": "{}\n",
    "mine.checkpoints/step": "mine\n",
    "kept/.mine.7.tmp/model.safetensors": "mine\n",
    "iteration_1/mine.tmp": "mine\n",
}
"""Files of somebody else, with names that resemble those that crosspref makes and removes."""

Work = Callable[[], int]
"""What a child does; returns its exit code."""


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit code (negative: the signal; None: it was still running), and what it printed."""

    code: int | None
    output: str
    seconds: float


class Child:
    """A forked process that does some work with limits, and is the leader of a group of its own.

    It has what this process has imported, so that it takes milliseconds and not seconds to begin. It begins in
    ``folder`` and may take so many megabytes more than this process has.
    """

    def __init__(self, work: Work, folder: Path, log: Path, megabytes: int = MEGABYTES) -> None:
        self.log, self.begun = log, time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            fork_server.run(partial(_confined, work, folder, megabytes), str(log))

    def wait(self, seconds: float) -> Outcome:
        """Wait for it, and kill it after so many seconds; whatever else it started is killed too."""
        descriptor = os.pidfd_open(self.pid)
        try:
            left = seconds - (time.monotonic() - self.begun)
            has_ended = bool(select.select([descriptor], [], [], max(0.0, left))[0])
        finally:
            os.close(descriptor)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone, or was never made
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status) if has_ended else None
        output = self.log.read_bytes().decode(errors="backslashreplace") if self.log.exists() else ""
        return Outcome(code, output, time.monotonic() - self.begun)


def _confined(work: Work, folder: Path, megabytes: int) -> int:
    """Do the work in a process that has just been forked, and that ends with the one that forked it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    os.chdir(folder)
    for name, variable in (("temporary", "TMPDIR"), ("cache", "CROSSPREF_CACHE")):
        (folder / name).mkdir(exist_ok=True)
        os.environ[variable] = str(folder / name)
    tempfile.tempdir = None  # what was found before
    os.environ["COLUMNS"] = "120"
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return work()


def in_child(work: Work, folder: Path, seconds: float = 600) -> None:
    """Do work that needs heavy libraries in a child, so that this process stays free of their threads."""
    outcome = Child(work, folder, folder / "output.txt", 1 << 16).wait(seconds)
    assert outcome.code == 0, outcome.output


def examine_here() -> None:
    """Let `crosspref check` examine models in its own process, which is a child already, and not in yet another one."""
    api.ask_child = ask_here


@dataclass
class Case:
    """One case: its folder, its own random numbers, and what was found so far.

    ``faults`` are what must not happen, a line each, and ``counts`` what did.
    """

    kind: str
    number: int
    seed: int
    folder: Path
    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.seed} {self.kind} {self.number}")
        self.folder.mkdir(parents=True)
        self._foreign: dict[str, str] = {}
        self._outputs: tuple[str, ...] = ()

    def guard(self, *outputs: str, root: Path | None = None) -> None:
        """Put files of somebody else into the case's folder, or another one, and remember everything that lies there.

        Nothing of it may change. Only below paths that fit one of the patterns may there be anything new.
        """
        root = root or self.folder
        for name, text in SENTINELS.items():
            file = root / name
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
        self._outputs += outputs
        if root == self.folder:
            self._foreign |= look(root, root)
        else:
            self._foreign |= {
                name: found for name, found in look(self.folder, root).items() if name.endswith(tuple(SENTINELS))
            }

    def run(
        self,
        *arguments: str | Path,
        trouble: Callable[[], None] | None = None,
        codes: Collection[int] = CODES,
        seconds: float = SECONDS,
        megabytes: int = MEGABYTES,
    ) -> Outcome:
        """Run a command, after some trouble was made in its process, and judge how it ended."""
        return self.judge(self.start(*arguments, trouble=trouble, megabytes=megabytes).wait(seconds), codes, seconds)

    def start(
        self,
        *arguments: str | Path,
        trouble: Callable[[], None] | None = None,
        megabytes: int = MEGABYTES,
        log: str = "output.txt",
    ) -> Child:
        """Begin a command; `judge` what it comes to."""
        words = [str(argument) for argument in arguments]

        def work() -> int:
            if trouble:
                trouble()
            return main(words)

        return self._child(work, f"crosspref {shlex.join(words)}", megabytes, log)

    def call(self, work: Callable[[], object], what: str) -> Outcome:
        """Call a function of the package as Python code would, which may raise nothing but its own errors."""

        def reported() -> int:
            try:
                work()
            except CrossprefError as error:
                sys.stderr.write(f"crosspref: {str(error).translate(_UNSEEN)}\n")
                return 1
            return 0

        return self.judge(self._child(reported, what).wait(SECONDS), CODES, SECONDS)

    def _child(self, work: Work, what: str, megabytes: int = MEGABYTES, log: str = "output.txt") -> Child:
        with (self.folder / "commands.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(what[:2000] + "\n")
        (self.folder / log).unlink(missing_ok=True)
        return Child(work, self.folder, self.folder / log, megabytes)

    def judge(self, outcome: Outcome, codes: Collection[int], seconds: float) -> Outcome:
        """Count how a command ended, and say what it must not have done."""
        code, output = outcome.code, outcome.output.replace(str(self.folder), ".")
        said = output.replace("\n", " ")[-300:]
        if code is None:
            self.faults.append(f"hang: still running after {seconds:.0f} s: {said}")
        elif MISTAKE.search(output):
            self.faults.append(f"traceback: {_place(output)}")
        elif code not in codes:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self.faults.append(f"ended by {how}: {said}")
        elif code == 1 and "crosspref: " not in output:
            self.faults.append(f"refused without a word: {said}")
        if control := CONTROLS.search(output):
            around = output[max(0, control.start() - 60) : control.start() + 20]
            self.faults.append(f"a control character was printed: {around!r}")
        if len(output) > LONGEST:
            self.faults.append(f"{len(output):,} characters were printed")
        self.counts[_NAMES.get(code, "killed")] += 1
        return outcome

    def expect(self, outcome: Outcome, code: int, why: str) -> bool:
        """Tell whether a command ended by a code, and say so if it did not."""
        if outcome.code != code:
            said = outcome.output.replace(str(self.folder), ".").replace("\n", " ")[-300:]
            self.faults.append(f"{why}: exit code {outcome.code}: {said}")
        return outcome.code == code

    def require_same(self, run: Path, reference: Path) -> None:
        """Say what differs between a run, or a folder or file of results, and one that nobody disturbed."""
        log = self.folder / "difference.txt"
        outcome = Child(partial(_compare, run, reference), self.folder, log).wait(SECONDS)
        if outcome.code:
            self.faults.append(f"rows were lost or changed: {outcome.output.strip().splitlines()[-1][:300]}")
        else:
            log.unlink(missing_ok=True)

    def require_untouched(self) -> None:
        """Say which files of somebody else were touched, and which new ones lie where none should."""
        now = look(self.folder, self.folder)
        for name, before in self._foreign.items():
            if now.get(name) != before:
                self.faults.append(f"foreign: {name} was {'changed' if name in now else 'removed'}")
        for name in now.keys() - self._foreign.keys():
            if not any(fnmatch.fnmatch(name, pattern) for pattern in self._outputs):
                self.faults.append(f"stray: {name} was made")

    def remove_sentinels(self, root: Path) -> None:
        """Take away what `guard` put there, to compare what is left."""
        for name in SENTINELS:
            (root / name).unlink(missing_ok=True)
            for folder in (root / name).parents:
                if folder != root and folder.is_relative_to(root):
                    with contextlib.suppress(OSError):  # it holds other files
                        folder.rmdir()


_NAMES = {0: "accepted", 1: "refused", 2: "refused", None: "hung"}
_UNSEEN = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160)), "�")
"""Who prints an error that the API raised has to make it harmless; here nobody's terminal is at stake."""


def look(folder: Path, root: Path) -> dict[str, str]:
    """Return what lies below ``root``, by its path in ``folder``: its kind, permissions and content."""
    found = {}
    for path in root.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in OWN:
            continue
        mode = path.lstat().st_mode
        content = ""
        if stat.S_ISLNK(mode):
            content = str(path.readlink())
        elif stat.S_ISREG(mode) and path.stat().st_size < 1 << 28:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        if not stat.S_ISDIR(mode):
            found[name] = f"{mode:o} {content}"
    return found


def _compare(run: Path, reference: Path) -> int:
    if run.is_dir():
        assert_same_run(run, reference)
    else:
        assert run.read_bytes() == reference.read_bytes(), f"{run.name} differs"
    return 0


def _place(output: str) -> str:
    """Return what error it was and where in the package it came from, so that equal ones can be counted."""
    if "Traceback (most recent call last)" in output:
        lines = output[output.rindex("Traceback (most recent call last)") :].splitlines()
        frames = [line.strip() for line in lines if line.lstrip().startswith("File ")]
        error = next((line for line in lines[1:] if line[:1].strip()), "")
    else:
        [error] = [line for line in output.splitlines() if "mistake in crosspref" in line][-1:]
        frames = re.findall(r"\(in .+?, line \d+\)", error)
        error = error.split(" (in ")[0]
    ours = [frame for frame in frames if "/crosspref/" in frame] or frames or ["?"]
    place = re.sub(r".*/(?=(crosspref|site-packages)/)", "", ours[-1]).replace('"', "").strip("()")
    return f"{error.removeprefix('crosspref: ')[:160]} ({place})"


def signature(fault: str) -> str:
    """Return what equal faults of different cases have in common."""
    return re.sub(r"0x[0-9a-f]+|\d+\b(?!\))|'[^']*'", "#", fault)[:120]
