"""What libraries raise while they read a model or look for a device, as one error that says what, where and what to do.

All engines that load something through transformers, peft or vLLM do so within ``reading``.
"""

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from crosspref.engines import EXTRAS, missing_library
from crosspref.errors import CrossprefError, ModelError, RecipeError, is_failure, raise_if_machine_failed
from crosspref.escape import one_line

ADVICE = {
    "trust_remote_code": "If you trust its authors, set trust_remote_code: true.",
    "flash": "Install that library, or take the attention implementation out of the model's config.json.",
    "quantiz": "Install what it needs, or name the model's original weights, which are not quantised.",
}
"""What to do about an error, by a word of the library's message."""


@contextlib.contextmanager
def reading(what: str, place: Path | str) -> Iterator[None]:
    """Turn what a library raises while it reads a model's files into a ModelError.

    ``what`` is the beginning of a sentence, such as ``The tokenizer``; ``place`` is the directory or file.

    Raises:
        ModelError: it cannot be read.
        MissingLibraryError: a library is needed that one of crosspref's extras installs.
        LimitError: the memory does not suffice, or too many files are open.
        FileError: a disk is full or broken.
    """
    try:
        yield
    except CrossprefError:
        raise
    except BaseException as error:  # tokenizers raises a bare Exception, and a model's own code anything
        if not is_failure(error):
            raise
        raise_if_machine_failed(error)
        reason = reason_of(error)
        for library in EXTRAS:
            is_absent = isinstance(error, ImportError) or importlib.util.find_spec(library) is None
            if is_absent and re.search(rf"\b{library}\b", reason, re.IGNORECASE):
                raise missing_library(library, f"{what} in {place}") from error
        advice = next((text for word, text in ADVICE.items() if word in reason.lower()), "")
        raise ModelError(f"{what} in {place} cannot be loaded: {reason} {advice}".strip()) from error


def reason_of(error: BaseException) -> str:
    """Return what a library says of an error, in one line that ends with a full stop, and the error's type."""
    said = one_line(error)
    return f"{said} ({type(error).__name__})." if said else f"{type(error).__name__}."


def find_device(name: str) -> torch.device:
    """Return the device that ``resources.device`` names, if it can be used on this machine.

    Raises:
        RecipeError: torch does not know it, or it is not here.
    """
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.zeros(1, device=device)
    except Exception as error:
        raise RecipeError(
            f"resources.device: {name} cannot be used on this machine: {reason_of(error)} Set it to auto, or to a "
            "device that torch finds here, such as cpu, cuda or cuda:1.",
            ("resources.device",),
        ) from error
    return device
