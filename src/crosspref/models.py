"""Finding models and telling whether two belong together, without importing torch.

A model is named by a local directory, a ``.gguf`` file, a hub id (``owner/name`` or ``owner/name@revision``), or a file
or folder inside an installed package (``package:NAME/path``).
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosspref.errors import ModelError
from crosspref.packages import PREFIX, inside_package

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")
_WHOLE_FILE_BYTES = 32 << 20
_EDGE_BYTES = 1 << 20
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.py"]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are on this machine.

    ``identity`` is a hash of what the files hold: equal identities mean the same model, wherever it lies. Of files
    above 32 MB it covers the size, both ends and a sample of what lies between, so that it takes no minutes.
    """

    name: str
    directory: Path
    gguf_file: str | None
    identity: str


def locate_model(name: str, *, weights: bool = True) -> ModelFiles:
    """Find a model; a hub id is downloaded (only its small files when ``weights`` is False).

    Raises:
        ModelError: there is no such model, or the directory does not hold one.
    """
    if name.startswith(PREFIX):
        try:
            path = inside_package(name)
        except LookupError as error:
            raise ModelError(f"The model {error.args[0]}") from error
    elif Path(name).expanduser().exists():
        path = Path(name).expanduser()
    elif _HUB_ID.match(name) and not name.startswith((".", "/", "~")):
        return _from_hub(name, weights)
    else:
        raise ModelError(
            f"The model {name!r} was not found: it is no existing path, and no hub id (owner/name) either. "
            "Give a directory with config.json and safetensors, a .gguf file, a hub id, or package:NAME/file."
        )
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(
                f"The model {name!r} is a file, but only .gguf files can be read alone; give its directory."
            )
        return ModelFiles(name, path.parent, path.name, _identity([path]))
    return _from_directory(name, path)


def _from_directory(name: str, path: Path) -> ModelFiles:
    weights = _checked(f"The directory {name!r}", path, weights=True)
    small = [file for pattern in _SMALL_FILES for file in path.glob(pattern)]
    return ModelFiles(name, path, None, _identity(sorted({*weights, *small})))


def _checked(what: str, path: Path, *, weights: bool) -> list[Path]:
    """Return the weights of a model directory, or raise ModelError if it does not hold a model."""
    if not (path / "config.json").is_file():
        raise ModelError(f"{what} holds no config.json, so it is not a model. It holds: {_listed(path)}")
    found = sorted(path.glob("*.safetensors"))
    if weights and not found:
        raise ModelError(
            f"{what} holds no .safetensors file. Weights in other formats can run code when they are loaded and are "
            "not read; convert them with transformers' save_pretrained."
        )
    return found


def _from_hub(name: str, weights: bool) -> ModelFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    patterns = [*_SMALL_FILES, "*.safetensors"] if weights else _SMALL_FILES
    try:
        directory = Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"The model {name!r} is no path on this machine, and as a hub id it cannot be fetched: {error}\n"
            "Check the spelling and the network; a gated model needs `hf auth login`."
        ) from error
    _checked(f"The hub's {name!r}", directory, weights=weights)
    # The hub's snapshot directory is named after the commit, which identifies the content.
    return ModelFiles(name, directory, None, hashlib.sha256(f"{repository}@{directory.name}".encode()).hexdigest())


def is_encoder_decoder(files: ModelFiles) -> bool:
    """Tell whether a model's configuration says that it has an encoder and a decoder, as translation models do."""
    return files.gguf_file is None and _json(files.directory / "config.json").get("is_encoder_decoder") is True


def require_one_output(files: ModelFiles) -> None:
    """Raise ModelError unless a reward model's configuration says that it has one output: the reward.

    transformers takes two labels for what names none, such as a model that is no classifier.
    """
    config = _json(files.directory / "config.json")
    labels = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
    if labels != 1:
        kind = ", ".join(config.get("architectures") or []) or "unknown"
        raise ModelError(
            f"A reward model must have one output, but {files.name!r} ({kind}) has {labels} labels; a model that is no "
            "classifier counts as having 2. Set reward.reward_model to a sequence-classification model that was "
            "trained with num_labels 1."
        )


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []


def _listed(directory: Path) -> str:
    return ", ".join(_names(directory)[:20]) or "nothing"


def _identity(files: list[Path]) -> str:
    """Hash names, sizes and contents; of very large files both ends and 15 samples between."""
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


def tokenizer_identity(directory: Path) -> dict[str, str]:
    """Return hashes of what decides the token ids of a conversation: the tokenizer, its special tokens, the template.

    Only the parts of ``tokenizer.json`` that change an encoding count, so that a file written anew by another version
    of a library still compares equal.
    """
    config = _json(directory / "tokenizer_config.json")
    template_file = directory / "chat_template.jinja"
    template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template", "")
    if isinstance(template, list):  # several by name, as older files have them; the conversation takes the default one
        template = {part.get("name"): part.get("template") for part in template}.get("default")
    tokenizer = _json(directory / "tokenizer.json")
    if tokenizer:
        content: Any = {key: tokenizer.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        content["model"] = _settled(content["model"] or {})
    else:
        names = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
        content = {name: _hash((directory / name).read_bytes()) for name in names if (directory / name).is_file()}
    return {
        "tokenizer": _hash(json.dumps(content, sort_keys=True).encode()),
        "end-of-sequence token": _hash(json.dumps(_token_text(config.get("eos_token"))).encode()),
        "chat template": _hash(json.dumps(template).encode()),
    }


def _settled(model: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's model in one spelling: merges as text, and no options that are off, as older files omit."""
    settled = {name: value for name, value in model.items() if value is not None and value is not False and value != ""}
    if "merges" in model:
        settled["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return settled


def require_same_tokenizer(policy: Path, reference: Path, names: tuple[str, str]) -> None:
    """Raise ModelError unless both directories turn a conversation into the same token ids."""
    ours, theirs = tokenizer_identity(policy), tokenizer_identity(reference)
    differing = [part for part in ours if ours[part] != theirs[part]]
    if differing:
        raise ModelError(
            f"The models {names[0]!r} and {names[1]!r} differ in: {', '.join(differing)}. The implicit reward compares "
            "the probabilities of the same token ids, so both need the same tokenizer and chat template. If the "
            "models are the right ones, copy the tokenizer files and chat_template.jinja of one to the other."
        )


def _token_text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def cache_directory() -> Path:
    """Where converted models are kept: ``$CROSSPREF_CACHE``, else ``crosspref`` in the user's cache directory."""
    own = os.environ.get("CROSSPREF_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crosspref"
