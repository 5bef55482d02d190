"""``run.log``: what was done in a run and what was said, for whoever has to find out why it failed.

Every command that works in a run appends to the file beside its lock: its arguments, what it runs on, what it told the
person, the libraries' warnings, and tracebacks. No key is in it. Nothing reads it, so it is in no fingerprint. A log
that cannot be written stops nothing.

What a person is told goes to Python's ``logging.getLogger("crosspref")``, too, for those who use crosspref from Python.
"""

import contextlib
import errno
import logging
import os
import platform
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from crosspref.escape import printable
from crosspref.keys import without_secrets

LOGGER = logging.getLogger("crosspref")

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "safetensors", "peft", "trl", "accelerate", "datasets", "pyarrow"),
    *("numpy", "vllm", "openai", "ray", "bitsandbytes", "gguf", "lm-eval", "deepspeed"),
)
"""The libraries whose versions are written down, where they are installed. None is imported for that."""

VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "NCCL_DEBUG", "VLLM_CPU_KVCACHE_SPACE"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("CROSSPREF_CACHE", "CROSSPREF_DEBUG", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "RAY_ADDRESS"),
    *("LANG", "LC_ALL", "PYTHONPATH", "TMPDIR", "XDG_CACHE_HOME", "SLURM_JOB_ID"),
)
"""The environment variables that are written down."""

LARGEST = 4 << 20
"""Bytes at which the log becomes ``run.log.1``, in the place of an earlier one, and a new one begins."""

LONGEST = 20_000
"""Characters of one message that are kept: its beginning and its end."""


class _Plain(logging.Formatter):
    """Writes a message without keys, and with nothing that a terminal or a reader could take for more than text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message; its further lines are indented."""
        text = without_secrets(super().format(record))
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]}\n...\n{text[-LONGEST // 2 :]}"
        return "\n    ".join(map(printable, text.splitlines()))


class RunLog(logging.Handler):
    """Appends what is said to the log of a run. Messages are held back until the run is known."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(_Plain("%(asctime)s %(process)d %(message)s"))
        self.path: Path | None = None
        self.waiting: list[str] = []

    def begin(self, path: Path) -> None:
        """Write to this file from now on, first what the process runs on and what waits."""
        if path != self.path:
            self.path = path
            waiting, self.waiting = self.waiting, []
            self._append([*described(), *waiting])

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message, or hold it back."""
        if self.path is None:
            self.waiting = [*self.waiting, self.format(record)][-1000:]
        else:
            self._append([self.format(record)])

    def _append(self, lines: Sequence[str]) -> None:
        assert self.path is not None  # noqa: S101 - see the callers
        try:
            _append(self.path, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            print(f"note: {printable(str(self.path))} cannot be written: {error.strerror}.", file=sys.stderr)  # noqa: T201
            self.path = None


@contextlib.contextmanager
def recording() -> Iterator[RunLog]:
    """Take down what is said meanwhile; ``RunLog.begin`` says where.

    Where nobody else listens, warnings are shown, as Python does without any listener.
    """
    log, level = RunLog(), LOGGER.level
    handlers: list[logging.Handler] = [log]
    if not LOGGER.hasHandlers():
        shown = logging.StreamHandler()
        shown.setLevel(logging.WARNING)
        shown.setFormatter(_Plain())
        handlers.append(shown)
    for handler in handlers:
        LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield log
    finally:
        LOGGER.setLevel(level)
        for handler in handlers:
            LOGGER.removeHandler(handler)


@contextlib.contextmanager
def kept_in(path: Path) -> Iterator[None]:
    """Take down in this file what is said meanwhile; in a command, until the command ends."""
    log = next((handler for handler in LOGGER.handlers if isinstance(handler, RunLog)), None)
    if log is not None:
        log.begin(path)
        yield
        return
    with recording() as log:
        log.begin(path)
        try:
            yield
        except BaseException:
            LOGGER.info("Ended by an error.", exc_info=True)
            raise


def described() -> list[str]:
    """Return lines on versions, the machine and the environment."""
    from importlib import metadata  # here, since it takes as long as all the rest of a light command

    versions = [f"Python {platform.python_version()}"]
    for library in ("crosspref", *LIBRARIES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{library} {metadata.version(library)}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    devices = [_gpu(file) for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    machine = [platform.platform(), f"{os.cpu_count()} processors", f"{memory:.1f} GB", *devices]
    environment = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    lines = [", ".join(versions), ", ".join(machine), " ".join(environment)]
    return ["", *(printable(without_secrets(line)) for line in lines)]


def _gpu(information: Path) -> str:
    """Return the name of a GPU from what its driver says of it."""
    with contextlib.suppress(OSError):
        found = re.search(r"Model:\s*(.+)", information.read_text(encoding="utf-8", errors="replace"))
        return found[1] if found else "a GPU"
    return "a GPU"


def _append(path: Path, text: str) -> None:
    """Append to a file of this run alone: not through a link, and not to a pipe, which would wait for a reader."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
            raise OSError(errno.EPERM, "It is a link or no file")
        file.write(text.encode("utf-8", "backslashreplace"))
    if about.st_size > LARGEST:
        path.replace(path.with_name(f"{path.name}.1"))
