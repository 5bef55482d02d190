"""Which files of a directory make a model: its weights, chosen as transformers chooses them, and what is beside them.

Everything that reads, copies, measures, compares or identifies a model's files asks here.
"""

import hashlib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from crosspref.data.rows import parse_json
from crosspref.errors import ModelError
from crosspref.escape import listed
from crosspref.paths import read_text

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.py")
"""Patterns of the files that describe a model, as nearly all models have them."""

_ANEW = frozenset({"config.json", ADAPTER_CONFIG})
"""Files that describe weights, and are written anew with new ones."""

_STATE = frozenset({"trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"})
"""Files that describe a training; its other files have the endings of weights."""

_WEIGHT_ENDINGS = frozenset(
    {
        *(".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".h5", ".msgpack", ".ot"),
        *(".onnx", ".onnx_data", ".distcp", ".index.json"),
    }
)
_PAPER_ENDINGS = frozenset({".md", ".yml", ".yaml", ".ipynb", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".log"})
_PAPERS = ("readme", "license", "licence", "notice", "copying", "events.out.")
_SMALL_BYTES = 256 << 20
"""Vocabularies have at most some 40 MB."""

_WHOLE_FILE_BYTES = 32 << 20
_EDGE_BYTES = 1 << 20
_POINTER = b"version https://git-lfs.github.com/"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def file_names(directory: Path) -> set[str]:
    """Return the names of the files that lie in a directory."""
    return {entry.name for entry in directory.iterdir() if entry.is_file()} if directory.is_dir() else set()


def folder_names(directory: Path) -> set[str]:
    """Return the names of a directory's folders, with a slash: often a model lies in one of them."""
    return {f"{entry.name}/" for entry in directory.iterdir() if entry.is_dir()} if directory.is_dir() else set()


def require_fetched(what: str, directory: Path, names: Collection[str]) -> None:
    """Raise ModelError if files of a model are what git leaves in the place of large files that it did not fetch."""
    for name in sorted(names):
        with (directory / name).open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise ModelError(
                    f"{what} is not whole: {name} is a pointer of Git LFS and not the file itself. Run `git lfs pull` "
                    "in the directory, or fetch the model again."
                )


def weight_names(directory: Path, names: Collection[str]) -> list[str]:
    """Return the names of the files that a model's whole weights are read from, as transformers chooses them.

    One file goes before several that an index names. All others, such as an adapter's, or the same weights in their
    authors' own format, are not read. It is empty if the directory holds an adapter or another kind of weights.
    ``names`` are those of all files; the weights themselves need not be in the directory yet.

    Raises:
        ModelError: what is named are no safetensors files beside each other.
    """
    chosen = read_json(directory / "config.json").get("transformers_weights")
    if not isinstance(chosen, str):
        chosen = WEIGHTS if WEIGHTS in names else WEIGHTS_INDEX
    if chosen not in names:
        return []
    parts = [chosen]
    if chosen.endswith(".index.json"):
        places = read_json(directory / chosen).get("weight_map")
        parts = sorted({str(part) for part in places.values()}) if isinstance(places, dict) else []
    strange = [part for part in parts if not part.endswith(".safetensors") or Path(part).name != part]
    if strange or not parts:
        raise ModelError(
            f"{directory / chosen} must name safetensors files in the same directory, but names "
            f"{strange[0] if strange else 'none'}. Nothing else is read: save the model again with transformers' "
            "save_pretrained."
        )
    return parts


def is_adapter(directory: Path, names: Collection[str]) -> bool:
    """Tell whether a directory holds an adapter: its files beside whole weights are left over from a merge."""
    return ADAPTER_CONFIG in names and not weight_names(directory, names)


def require_weights(what: str, directory: Path, names: Collection[str]) -> None:
    """Raise ModelError unless a directory holds whole weights that can be read."""
    weights = weight_names(directory, names)
    missing = sorted(set(weights) - set(names))
    if missing:
        raise ModelError(
            f"{what} lacks {len(missing)} of the {len(weights)} files that its {WEIGHTS_INDEX} names, such as "
            f"{missing[0]}. Fetch or copy the model again."
        )
    if not weights:
        raise ModelError(
            f"{what} holds no {WEIGHTS}, and no {WEIGHTS_INDEX}. Weights in other formats can run code when they are "
            "loaded and are not read; convert them with transformers' save_pretrained. "
            f"It holds: {listed(sorted(names))}"
        )


def require_no_other_weights(directory: Path, purpose: str) -> None:
    """Raise ModelError where what reads all safetensors that there are, or those of an index, reads the wrong ones."""
    names = file_names(directory)
    places = read_json(directory / WEIGHTS_INDEX).get("weight_map", {})
    read = set(places.values()) or {name for name in names if name.endswith(".safetensors")}
    others = read ^ set(weight_names(directory, names))
    if others:
        raise ModelError(
            f"{purpose} would not read the weights in {directory} as they are meant, because of "
            f"{listed(sorted(others))}. Move the files that are not the model's weights out of the directory."
        )


def chosen_gguf(what: str, named_by: str, names: Collection[str]) -> str | None:
    """Return the one GGUF file among names, or None; of a model in several parts it is the first.

    In messages, ``what`` holds the files, and ``named_by`` stands before the name of one.

    Raises:
        ModelError: there are several.
    """
    found = sorted(name for name in names if name.endswith(".gguf"))
    models = [name for name in found if not (part := _SHARD.search(name)) or part[1] == "00001"] or found
    if len(models) > 1:
        raise ModelError(
            f"{what} holds several models as GGUF files. Name one of them, such as {named_by}{models[0]}. It holds: "
            f"{', '.join(models)}"
        )
    return models[0] if models else None


def require_one_part(name: str, file: str) -> None:
    """Raise ModelError if a GGUF file is only one of the parts of its model."""
    part = _SHARD.search(file)
    if part and part[2] != "00001":
        whole = f"{file[: part.start()]}.gguf"
        raise ModelError(
            f"The model {name!r} is in {int(part[2])} parts, and only whole GGUF files can be read. Join them with "
            f"llama.cpp's `llama-gguf-split --merge {Path(file[: part.start()]).name}-00001-of-{part[2]}.gguf "
            f"{Path(whole).name}`, and name the new file."
        )


def kept_files(directory: Path) -> list[Path]:
    """Return the files of a model that also belong to what is trained from it, in order of their names.

    That is every small file but weights, the state of a training, what describes the weights, and papers: whatever
    tokenizer, template, processor and generation read, however they are named.
    """
    found = [*directory.glob("*"), *directory.glob("additional_chat_templates/*")]
    return sorted(
        path for path in found if is_kept(path.name) and path.is_file() and path.stat().st_size <= _SMALL_BYTES
    )


def is_kept(name: str) -> bool:
    """Tell by a file's name whether it is one of ``kept_files`` where it is small."""
    lower = name.lower()
    if lower in _ANEW | _STATE or lower.startswith((".", *_PAPERS)):
        return False
    return not lower.endswith((*_WEIGHT_ENDINGS, *_PAPER_ENDINGS))


def identity_of(directory: Path, weights: Sequence[str]) -> str:
    """Return a hash of a model in a directory: its weights, what describes them, and all files that are kept."""
    small = [file for pattern in SMALL_FILES for file in directory.glob(pattern) if file.is_file()]
    files = {*(directory / name for name in weights), *small, *kept_files(directory)}
    return hash_files(sorted(files - {directory / ADAPTER_CONFIG}))


def hash_files(files: Sequence[Path]) -> str:
    """Hash names, sizes and contents; of very large files both ends and 15 samples in between."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE_FILE_BYTES:
                digest.update(stream.read())
            else:
                digest.update(stream.read(_EDGE_BYTES))
                for part in range(1, 16):
                    stream.seek(size * part // 16)
                    digest.update(stream.read(_EDGE_BYTES // 16))
                stream.seek(-_EDGE_BYTES, os.SEEK_END)
                digest.update(stream.read())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds, or an empty one if there is no file, or no object in it.

    Raises:
        ModelError: it cannot be read, is no JSON, or is larger or nested deeper than any model's is.
    """
    try:
        if not path.is_file():
            return {}
        content = parse_json(read_text(path))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    return content if isinstance(content, dict) else {}
