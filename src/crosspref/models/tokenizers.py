"""What the files of a tokenizer say, and whether two models have the same one, without loading it."""

import filecmp
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosspref.errors import ModelError
from crosspref.models.files import kept_files, read_json

VOCABULARIES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
"""Files that older tokenizers consist of."""

NO_VOCABULARIES = (
    "tokenizer",
    "special_tokens_map",
    "chat_template",
    "generation",
    "preprocessor",
    "processor",
    "video",
)
"""How other small files begin that say nothing of a vocabulary, or are compared by what they say."""


def tokenizer_identity(directory: Path) -> dict[str, str]:
    """Return hashes of what decides the token ids of a conversation: the tokenizer, its special tokens, the template.

    Only the parts of ``tokenizer.json`` that change an encoding count, so that a file written anew by another version
    of a library still compares equal. A tokenizer with code of its own may read any file.

    Raises:
        ModelError: the files do not hold what a tokenizer's hold.
    """
    try:
        parts = _parts(directory)
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"The tokenizer's files in {directory} are damaged: {error} ({type(error).__name__})."
        ) from error
    return {part: short_hash(json.dumps(said, sort_keys=True).encode()) for part, said in parts.items()}


def _parts(directory: Path) -> dict[str, Any]:
    config = read_json(directory / "tokenizer_config.json")
    tokens = {**read_json(directory / "special_tokens_map.json"), **config}
    template_file = directory / "chat_template.jinja"
    template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template", "")
    if isinstance(template, list):  # several by name, as older files have them; the conversation takes the default one
        template = {part.get("name"): part.get("template") for part in template}.get("default")
    tokenizer = read_json(directory / "tokenizer.json")
    content: dict[str, Any] = {}
    if tokenizer:
        content = {key: tokenizer.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        content["model"] = _settled(content["model"] or {})
    content["files"] = {file.name: short_hash(file.read_bytes()) for file in _files_read(directory, config, tokenizer)}
    return {
        "tokenizer": content,
        "end-of-sequence token": _token_text(tokens.get("eos_token")),
        "beginning-of-sequence token": _token_text(tokens.get("bos_token")),
        "chat template": template,
    }


def _files_read(directory: Path, config: dict[str, Any], tokenizer: dict[str, Any]) -> list[Path]:
    """Return the files of a tokenizer whose every byte counts."""
    files = kept_files(directory)
    if "AutoTokenizer" in (config.get("auto_map") or {}):
        return [
            file
            for file in files
            if file.name in VOCABULARIES or not file.name.startswith((*NO_VOCABULARIES, "modeling", "configuration"))
        ]
    if tokenizer:
        return []
    return [file for file in files if file.name in VOCABULARIES or file.suffix in {".model", ".tiktoken"}]


def _settled(model: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's model in one spelling: merges as text, and no options that are off, as older files omit."""
    settled = {name: value for name, value in model.items() if value is not None and value is not False and value != ""}
    if "merges" in model:
        settled["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return settled


def require_same_tokenizer(policy: Path, reference: Path, names: tuple[str, str]) -> None:
    """Raise ModelError unless both directories turn a conversation into the same token ids."""
    if have_same_files(policy, reference):  # as a trained policy's are, which are copied: no need to read what they say
        return
    require_no_difference(tokenizer_identity(policy), tokenizer_identity(reference), names)


def require_no_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Raise ModelError unless two tokenizers are equal in each part of what is known of them."""
    differing = [part for part in ours if ours[part] != theirs[part]]
    if differing:
        raise ModelError(
            f"The models {names[0]!r} and {names[1]!r} differ in: {', '.join(differing)}. The implicit reward compares "
            "the probabilities of the same token ids, so both need the same tokenizer and chat template. If the "
            "models are the right ones, copy the tokenizer files and chat_template.jinja of one to the other."
        )


def have_same_files(one: Path, other: Path) -> bool:
    """Tell whether two directories have the same small files beside their weights, to the letter, and any at all."""
    names = [[str(file.relative_to(folder)) for file in kept_files(folder)] for folder in (one, other)]
    if names[0] != names[1] or not names[0]:
        return False
    return filecmp.cmpfiles(one, other, names[0], shallow=False)[0] == names[0]


def _token_text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def require_tokenizer_of_base(name: str, adapter: Path, base: Path) -> None:
    """Raise ModelError if an adapter's directory has a tokenizer or chat template of its own that its base has not.

    The base's are used. Many adapters come with copies of them, which say nothing new.
    """
    ours, theirs, unsaid = (tokenizer_identity(folder) for folder in (adapter, base, adapter / "nothing"))
    differing = [part for part in ours if ours[part] not in (theirs[part], unsaid[part])]
    if differing:
        raise ModelError(
            f"The adapter {name!r} has another {' and '.join(differing)} than its base {base}. Both are asked with the "
            "base's. If the adapter's are the right ones, copy the tokenizer files and chat_template.jinja to the base."
        )


def short_hash(content: bytes) -> str:
    """Return a hash that tells contents apart."""
    return hashlib.sha256(content).hexdigest()[:16]
