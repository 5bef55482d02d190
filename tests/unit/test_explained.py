"""What the system and libraries raise, as errors with advice: full and broken disks, little memory, dead children."""

import errno
import os
import pickle
import resource
import signal
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from crosspref.engines.transformers.faults import reading
from crosspref.errors import FileError, LimitError, ModelError, explained
from crosspref.paths import writing
from crosspref.run.processes import ending, run_in_child


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_machine_at_fault_comes_with_advice(number: int, tmp_path: Path) -> None:
    place = tmp_path / "new" / "table"
    fault = explained(OSError(number, os.strerror(number), str(place)), place)
    assert isinstance(fault, FileError)
    assert fault.path == str(tmp_path / "new" / "table")
    assert os.strerror(number) in fault.problem
    assert fault.advice


def test_what_was_asked_for_wrongly_does_not() -> None:
    for number in (errno.EACCES, errno.ENOENT, errno.EISDIR):
        fault = explained(OSError(number, os.strerror(number), "there"))
        assert isinstance(fault, FileError)
        assert (fault.path, fault.advice) == ("there", "")


def test_a_full_disk_names_its_file_system() -> None:
    with pytest.raises(FileError) as caught, writing("/dev/full"), open("/dev/full", "w") as full:  # noqa: PTH123
        full.write("text")
    assert caught.value.path == "/dev/full"
    named = caught.value.problem.rpartition("the file system ")[2].rstrip(")")
    assert Path(named).is_mount()
    assert Path("/dev/full").is_relative_to(named)


CPU = (
    "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000 bytes. Error code 12 (Cannot allocate memory)"
)
LIMITS = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError(CPU),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    pa.ArrowMemoryError("malloc of size 64 failed"),
    OSError(errno.EMFILE, "Too many open files", "table"),
    RuntimeError("can't start new thread"),
    Exception("I/O error: Too many open files (os error 24)"),
]


@pytest.mark.parametrize("error", LIMITS, ids=repr)
def test_too_little_of_something_is_a_limit(error: Exception) -> None:
    fault = explained(error)
    assert isinstance(fault, LimitError)
    assert fault.advice
    assert "\n" not in str(fault)
    again = pickle.loads(pickle.dumps(fault))  # noqa: S301 - as it comes from a worker of Ray
    assert (str(again), again.advice) == (str(fault), fault.advice)


def test_memory_that_really_does_not_suffice() -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, limits[1]))
    try:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 42, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert isinstance(explained(caught.value), LimitError)


def test_what_a_library_makes_of_a_machines_fault_is_the_machines_fault() -> None:
    for cause, kind in ((OSError(errno.EIO, "Input/output error", "x"), FileError), (MemoryError(), LimitError)):
        error = ValueError("cannot read the header")
        error.__cause__ = RuntimeError("broken")
        error.__cause__.__cause__ = cause
        assert isinstance(explained(error), kind)
    error.__cause__ = FileNotFoundError(errno.ENOENT, "No such file", "x")
    assert explained(error) is None
    assert explained(KeyError("rope_type")) is None


def test_reading_a_model_is_stopped_by_the_machine_and_not_by_the_model() -> None:
    with pytest.raises(LimitError), reading("The model", "somewhere"):
        raise RuntimeError(CPU)
    with pytest.raises(FileError), reading("The model", "somewhere"):
        raise OSError(errno.EIO, "Input/output error", "somewhere/model.safetensors")
    with pytest.raises(ModelError), reading("The model", "somewhere"):
        raise OSError(errno.EACCES, "Permission denied", "somewhere/model.safetensors")


@pytest.mark.parametrize(
    ("code", "part"),
    [(-9, "SIGKILL"), (137, "SIGKILL"), (-7, "SIGBUS"), (-6, "SIGABRT"), (1, "exit code 1"), (130, "SIGINT")],
)
def test_how_a_child_ended(code: int, part: str) -> None:
    assert part in ending(code)
    assert ("memory" in ending(code)) == (part == "SIGKILL")


@pytest.mark.slow  # a process of its own
def test_a_child_that_the_system_killed() -> None:
    code, _ = run_in_child([sys.executable, "-c", f"import os; os.kill(os.getpid(), {signal.SIGKILL:d})"])
    assert "SIGKILL" in ending(code)
