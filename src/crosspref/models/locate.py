"""Finding models and telling whether two belong together, without importing torch.

A model is named by a local directory, a ``.gguf`` file, a hub id (``owner/name`` or ``owner/name@revision``, with
``:FILE.gguf`` behind it for one of several GGUF files), or a file or folder inside an installed package
(``package:NAME/path``). A directory or hub repository may hold a LoRA adapter of peft instead of weights: that is a
model over a base, which its ``adapter_config.json`` names in one of these ways.
"""

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from crosspref.data.sources import PACKAGE, inside_package
from crosspref.errors import FileError, ModelError
from crosspref.escape import listed
from crosspref.models.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    SMALL_FILES,
    WEIGHTS,
    chosen_gguf,
    file_names,
    folder_names,
    hash_files,
    identity_of,
    is_adapter,
    is_kept,
    read_json,
    require_fetched,
    require_one_part,
    require_weights,
    weight_names,
)
from crosspref.models.hub import HubModel
from crosspref.models.tokenizers import require_tokenizer_of_base
from crosspref.paths import existing
from crosspref.recipe.sections import LoraSettings

OTHER_CACHE = "Set the environment variable CROSSPREF_CACHE to a folder for converted models."


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


def place_of_model(name: str) -> Path | HubModel:
    """Return the path or the hub's repository that a model's name stands for. Nothing is read or fetched.

    Raises:
        ModelError: there is no such path, and it is no hub id.
    """
    if name.startswith(PACKAGE):
        try:
            return inside_package(name)
        except LookupError as error:
            raise ModelError(f"The model {error.args[0]}") from error
    place = existing(name) or HubModel.of(name)
    if place is None:
        raise ModelError(
            f"The model {name!r} was not found: it is no existing path, and no hub id (owner/name) either. "
            "Give a directory with config.json and safetensors, a .gguf file, a hub id, or package:NAME/file."
        )
    return place


def locate_model(name: str, *, weights: bool = True) -> ModelFiles:
    """Find a model; a hub id is downloaded (only its small files when ``weights`` is False, but a GGUF file whole).

    Raises:
        ModelError: there is no such model, or the directory does not hold one.
    """
    path = place_of_model(name)
    if isinstance(path, HubModel):
        return _from_hub(path, weights)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(
                f"The model {name!r} is a file, but only .gguf files can be read alone; give its directory."
            )
        require_one_part(name, path.name)
        return ModelFiles(name, path.parent, path.name, hash_files([path]))
    return _from_directory(name, path)


def _from_directory(name: str, path: Path) -> ModelFiles:
    names, what = file_names(path), f"The directory {name!r}"
    require_fetched(what, path, names)
    if is_adapter(path, names):
        content = hash_files([path / ADAPTER_WEIGHTS]) if ADAPTER_WEIGHTS in names else ""
        return _over_base(name, path, content, names)
    weights = weight_names(path, names)
    if not weights and (file := chosen_gguf(what, f"{name.rstrip('/')}/", names)):
        require_one_part(name, file)
        return ModelFiles(name, path, file, hash_files([path / file]))
    _require_config(what, names | folder_names(path))
    require_weights(what, path, names)
    return ModelFiles(name, path, None, identity_of(path, weights))


def _require_config(what: str, names: Collection[str]) -> None:
    if "config.json" not in names:
        raise ModelError(f"{what} holds no config.json, so it is not a model. It holds: {listed(sorted(names))}")


def _from_hub(hub: HubModel, weights: bool) -> ModelFiles:
    """Fetch a model: its small files first, which say what its weights are."""
    directory = hub.fetch(SMALL_FILES)
    commit, what = directory.name, f"The hub's {hub.name!r}"
    on_hub = hub.listed(commit)
    names = set(on_hub or file_names(directory))
    whole, adapter = weight_names(directory, names), is_adapter(directory, names)
    gguf = hub.file or (None if whole or adapter else chosen_gguf(what, f"{hub.name}:", names))
    if gguf:
        return _gguf_from_hub(hub, commit, gguf)
    wanted = {*SMALL_FILES, *(file for file in names if "/" not in file and is_kept(file))}
    if weights:
        wanted.update([ADAPTER_WEIGHTS] if adapter else whole)
    hub.fetch(wanted, commit)
    if weights:
        names = file_names(directory)
    elif not on_hub:  # then nobody knows of the weights
        names |= {ADAPTER_WEIGHTS} if adapter else {*whole, WEIGHTS}
    # The commit identifies the content.
    identity = hashlib.sha256(f"{hub.repository}@{commit}".encode()).hexdigest()
    if adapter:
        return _over_base(hub.name, directory, identity, names, weights=weights)
    _require_config(what, names)
    require_weights(what, directory, names)
    return ModelFiles(hub.name, directory, None, identity)


def _gguf_from_hub(hub: HubModel, commit: str, file: str) -> ModelFiles:
    require_one_part(hub.name, file)
    path = hub.fetch([file], commit) / file
    if not path.is_file():
        found = [name for name in hub.listed(commit) if name.endswith(".gguf")]
        raise ModelError(f"The hub's {hub.repository!r} holds no {file}. It holds: {listed(sorted(found))}")
    identity = hashlib.sha256(f"{hub.repository}@{commit}:{file}".encode()).hexdigest()
    return ModelFiles(hub.name, path.parent, path.name, identity)


def _over_base(name: str, adapter: Path, content: str, names: Collection[str], *, weights: bool = True) -> ModelFiles:
    """Find the base of the adapter ``name``, whose directory holds ``names``; ``content`` is a hash of its weights."""
    config = read_json(adapter / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"The adapter {name!r} is of the kind {config.get('peft_type')!r}; only LORA can be read.")
    if ADAPTER_WEIGHTS not in names:
        raise ModelError(
            f"The adapter {name!r} holds no {ADAPTER_WEIGHTS}. Weights in other formats can run code when they are "
            f"loaded and are not read; save it again with a newer peft. It holds: {listed(sorted(names))}"
        )
    if pickled := [file for file in names if file.startswith("pytorch_model")]:
        raise ModelError(
            f"{name!r} holds an adapter beside whole weights in a format that is not read ({min(pickled)}), so it is "
            "not known which is meant. Convert them with transformers' save_pretrained, or take them away."
        )
    named = base_of_adapter(adapter)
    try:
        place = existing(named)
        is_below = place is not None and is_adapter(place, file_names(place))
        base = None if is_below else locate_model(named, weights=weights)
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
    if existing(adapter / named) is not None:
        return str((adapter / named).resolve())
    hub = HubModel.of(named)
    if revision and hub and not (hub.revision or hub.file) and existing(named) is None:
        return f"{named}@{revision}"
    return named


def require_different(policy: ModelFiles, reference: ModelFiles | None) -> None:
    """Raise ModelError if a policy is its own reference."""
    if reference is not None and policy.identity == reference.identity:
        raise ModelError(
            f"The policy {policy.name} and its reference {reference.name} are the same model, so that every implicit "
            "reward would be 0. Name the aligned model, and the one that it was aligned from (models.initial)."
        )


def require_fitting_lora(policy: ModelFiles, lora: LoraSettings) -> None:
    """Raise ModelError if the settings do not fit the policy's adapter, where it has one.

    If training continues with it, rank and scale must be its own. If it is merged, its base cannot be held in 4 bits.
    """
    if policy.adapter is None:
        return
    if lora.save == "merged":
        if lora.bits:
            raise ModelError(
                f"{policy.name} is an adapter, which lora.save: merged merges into whole weights; lora.bits: 4 "
                "holds them in 4 bits and cannot. Set lora.save: adapter, or leave lora.bits out."
            )
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
    named = config.get("id2label")
    labels = len(named) if isinstance(named, dict) else config.get("num_labels", 2)
    if labels != 1:
        kind = config.get("architectures") or "unknown"
        kind = ", ".join(map(str, kind)) if isinstance(kind, list) else kind
        raise ModelError(
            f"A reward model must have one output, but {files.name!r} ({kind}) has {labels} labels; a model that is no "
            "classifier counts as having 2. Set reward.reward_model to a sequence-classification model that was "
            "trained with num_labels 1."
        )


def cache_directory() -> Path:
    """Return where converted models are kept: ``$CROSSPREF_CACHE``, or ``crosspref`` in the user's cache folder.

    Raises:
        FileError: neither says where, and the user has no home.
    """
    chosen = os.environ.get("CROSSPREF_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crosspref"
    except RuntimeError as error:  # there is no HOME, and the system does not know the user
        raise FileError("The cache", "has no place: this user has no home directory", OTHER_CACHE) from error
