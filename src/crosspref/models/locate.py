"""Finding models and telling whether two belong together, without importing torch.

A model is named by a local directory, a ``.gguf`` file, a hub id (``owner/name`` or ``owner/name@revision``), or a file
or folder inside an installed package (``package:NAME/path``). A directory or hub repository may hold a LoRA adapter of
peft instead of weights: that is a model over a base, which its ``adapter_config.json`` names in one of these ways.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from crosspref.data.sources import PACKAGE, inside_package
from crosspref.errors import ModelError
from crosspref.models.tokenizers import read_json, require_tokenizer_of_base
from crosspref.recipe.sections import LoraSettings

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")
_WHOLE_FILE_BYTES = 32 << 20
_EDGE_BYTES = 1 << 20
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.py"]
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are on this machine.

    ``identity`` is a hash of what the files hold: equal identities mean the same model, wherever it lies. Of files
    above 32 MB it covers the size, both ends and samples in between, so that it does not take minutes.

    If ``adapter`` is a directory, the model is that adapter over the base that ``directory`` and ``gguf_file`` name.
    Then tokenizer and configuration are the base's, and ``identity`` covers both.
    """

    name: str
    directory: Path
    gguf_file: str | None
    identity: str
    adapter: Path | None = None

    @property
    def own(self) -> Path:
        """The directory that names this model: the adapter's if it has one."""
        return self.adapter or self.directory

    @property
    def base(self) -> tuple[Path, str | None]:
        """Where the weights without an adapter lie: models whose bases are equal can share one in memory."""
        return self.directory.resolve(), self.gguf_file


def locate_model(name: str, *, weights: bool = True) -> ModelFiles:
    """Find a model; a hub id is downloaded (only its small files when ``weights`` is False).

    Raises:
        ModelError: there is no such model, or the directory does not hold one.
    """
    if name.startswith(PACKAGE):
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
    if _is_adapter(path):
        content = _identity([path / ADAPTER_WEIGHTS]) if (path / ADAPTER_WEIGHTS).is_file() else ""
        return _over_base(name, path, content, weights=True)
    weights = _checked(f"The directory {name!r}", path, weights=True)
    small = [file for pattern in _SMALL_FILES for file in path.glob(pattern)]
    return ModelFiles(name, path, None, _identity(sorted({*weights, *small})))


def _checked(what: str, path: Path, *, weights: bool) -> list[Path]:
    """Return the weights of a model directory, or raise ModelError if it does not hold a model."""
    if not (path / "config.json").is_file():
        raise ModelError(f"{what} holds no config.json, so it is not a model. It holds: {_listed(path)}")
    weight_files = sorted(path.glob("*.safetensors"))
    if weights and not weight_files:
        raise ModelError(
            f"{what} holds no .safetensors file. Weights in other formats can run code when they are loaded and are "
            "not read; convert them with transformers' save_pretrained."
        )
    return weight_files


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
    # The hub's snapshot directory is named after the commit, which identifies the content.
    identity = hashlib.sha256(f"{repository}@{directory.name}".encode()).hexdigest()
    if _is_adapter(directory):
        return _over_base(name, directory, identity, weights=weights)
    _checked(f"The hub's {name!r}", directory, weights=weights)
    return ModelFiles(name, directory, None, identity)


def _is_adapter(directory: Path) -> bool:
    return (directory / ADAPTER_CONFIG).is_file() and not (directory / "config.json").is_file()


def _over_base(name: str, adapter: Path, content: str, *, weights: bool) -> ModelFiles:
    """Find the base of an adapter whose weights have the hash ``content``, and check that they belong together."""
    config = read_json(adapter / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"The adapter {name!r} is of the kind {config.get('peft_type')!r}; only LORA can be read.")
    if weights and not (adapter / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"The adapter {name!r} holds no {ADAPTER_WEIGHTS}. Weights in other formats can run code when they are "
            f"loaded and are not read; save it again with a newer peft. It holds: {_listed(adapter)}"
        )
    named = base_of_adapter(adapter)
    try:
        base = locate_model(named, weights=weights) if not _is_adapter(Path(named).expanduser()) else None
    except ModelError as error:
        raise ModelError(
            f"The adapter {name!r} is made for the base model {named!r}, which was not found. If that has moved, put "
            f"its path or hub id into base_model_name_or_path in {adapter / ADAPTER_CONFIG}. {error}"
        ) from error
    if base is None or base.adapter is not None:
        raise ModelError(
            f"The adapter {name!r} is made for {named!r}, which is an adapter itself. Only an adapter over whole "
            "weights can be read: merge the lower one into its base with peft's merge_and_unload."
        )
    if base.gguf_file is None:
        require_tokenizer_of_base(name, adapter, base.directory)
    # Without the base's name, so that moving it leaves the model what it is.
    settings = {key: value for key, value in config.items() if key not in ("base_model_name_or_path", "revision")}
    parts = json.dumps([content, settings, base.identity], sort_keys=True)
    return ModelFiles(name, base.directory, base.gguf_file, hashlib.sha256(parts.encode()).hexdigest(), adapter)


def base_of_adapter(adapter: Path) -> str:
    """Return how an adapter names its base; a relative path is taken from the adapter's directory if it exists there.

    Raises:
        ModelError: it names none.
    """
    config = read_json(adapter / ADAPTER_CONFIG)
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(named, str) or not named:
        raise ModelError(
            f"{adapter / ADAPTER_CONFIG} names no base model. Put its path or hub id into base_model_name_or_path."
        )
    if (adapter / named).exists():
        return str((adapter / named).resolve())
    if revision and _HUB_ID.match(named) and "@" not in named and not Path(named).exists():
        return f"{named}@{revision}"
    return named


def require_same_lora(policy: ModelFiles, lora: LoraSettings) -> None:
    """Raise ModelError if training continues with the policy's adapter, but the settings have another rank or scale.

    A policy without an adapter, or one that is stored merged, may have any settings.
    """
    if policy.adapter is None or lora.save != "adapter":
        return
    config = read_json(policy.adapter / ADAPTER_CONFIG)
    for setting, key, wanted in (("rank", "r", lora.rank), ("alpha", "lora_alpha", lora.alpha)):
        if config.get(key) != wanted:
            raise ModelError(
                f"The adapter of {policy.name} has {setting} {config.get(key)}, but lora.{setting} is {wanted}. "
                f"Training continues with the policy's adapter if lora.save is adapter: set lora.{setting} to "
                f"{config.get(key)}, or lora.save: merged for a new adapter over merged weights."
            )


def require_whole(files: ModelFiles, role: str) -> None:
    """Raise ModelError if a model is an adapter, where only whole weights are read."""
    if files.adapter is not None:
        raise ModelError(
            f"The {role} {files.name!r} is an adapter over {files.directory}, and only whole weights are read as a "
            f"{role}: merge it into its base with peft's merge_and_unload."
        )


def is_encoder_decoder(files: ModelFiles) -> bool:
    """Tell whether a model's configuration has an encoder and a decoder, as translation models do."""
    return files.gguf_file is None and read_json(files.directory / "config.json").get("is_encoder_decoder") is True


def require_one_output(files: ModelFiles) -> None:
    """Raise ModelError unless a reward model's configuration says that it has one output: the reward.

    transformers assumes two labels where none are named, such as for a model that is no classifier.
    """
    require_whole(files, "reward model")
    config = read_json(files.directory / "config.json")
    labels = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
    if labels != 1:
        kind = ", ".join(config.get("architectures") or []) or "unknown"
        raise ModelError(
            f"A reward model must have one output, but {files.name!r} ({kind}) has {labels} labels; a model that is no "
            "classifier counts as having 2. Set reward.reward_model to a sequence-classification model that was "
            "trained with num_labels 1."
        )


def _listed(directory: Path) -> str:
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    return ", ".join(names[:20]) or "nothing"


def _identity(files: list[Path]) -> str:
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


def cache_directory() -> Path:
    """Return where converted models are kept: ``$CROSSPREF_CACHE``, or ``crosspref`` in the user's cache folder."""
    chosen = os.environ.get("CROSSPREF_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crosspref"
