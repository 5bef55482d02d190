"""The size and shape of a model, from its configuration and the headers of its files; no weight is read."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosspref.data.rows import parse_json
from crosspref.errors import MissingLibraryError, ModelError
from crosspref.models.files import file_names, read_json, weight_names
from crosspref.models.locate import ModelFiles

_HEADER_LIMIT = 100 << 20
"""Bytes above which safetensors itself takes a header for damage."""

_GGUF_SIZES = {
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "num_hidden_layers": "block_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}
"""What a config.json calls sizes, and what GGUF calls them behind the name of the architecture."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the cost of a model depends on.

    ``parameters`` are all of them; ``active`` those that one token is multiplied with: not an input embedding that is
    a table of its own, and of experts only those that a token is sent to. ``linear`` is the sum of inputs and outputs
    over all matrices that an adapter may stand beside. ``exact`` is False where the numbers come from config.json.
    """

    parameters: int
    active: int
    linear: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    vocabulary: int
    exact: bool = True

    @property
    def tables(self) -> int:
        """About how many parameters the input embedding and the output layer have."""
        table = self.vocabulary * self.hidden
        return table * (2 if self.parameters - self.active >= table else 1)

    @property
    def flops_per_token(self) -> float:
        """FLOPs of one token's forward pass without attention: a multiplication and an addition per parameter."""
        return 2.0 * self.active

    @property
    def flops_per_square(self) -> float:
        """FLOPs of attention over a row, per squared token of its length: each token looks at those before it."""
        return 2.0 * self.layers * self.heads * self.head_size

    @property
    def cache_values(self) -> int:
        """Keys and values that are kept per token."""
        return 2 * self.layers * self.kv_heads * self.head_size


def read_shape(files: ModelFiles) -> ModelShape:
    """Return the shape of a model from its headers, or of one whose weights are not here from its configuration.

    Raises:
        ModelError: the configuration does not say what is needed, or a header is damaged.
        MissingLibraryError: it is a GGUF file, and the library that reads their headers is not installed.
    """
    if files.gguf_file is not None:
        return _from_gguf(files.directory / files.gguf_file, files.name)
    config = read_json(files.directory / "config.json")
    config = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    names = file_names(files.directory)
    weights = [files.directory / name for name in weight_names(files.directory, names) if name in names]
    tensors = {name: shape for path in weights for name, shape in safetensors_shapes(path).items()}
    return shape_of(config, tensors, files.name)


def safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor of a safetensors file, from the JSON that the file begins with."""
    try:
        with path.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _HEADER_LIMIT:
                raise ValueError(f"its header would have {size} bytes")
            header = parse_json(stream.read(size))
        shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
        return {name: [int(size) for size in shape] for name, shape in shapes.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{path} is no safetensors file, or is damaged: {error}") from error


def shape_of(config: dict[str, Any], tensors: dict[str, list[int]], name: str) -> ModelShape:
    """Return the shape that a configuration and its tensors' shapes describe; without tensors it is worked out."""

    def value(*names: str, default: int | None = None) -> int:
        number = next((config[name] for name in names if config.get(name) is not None), default)
        if not isinstance(number, int) or number < (default is None):
            raise ModelError(f"The config.json of {name} does not say {names[0]}, so its cost cannot be planned.")
        return number

    hidden = value("hidden_size", "n_embd", "d_model")
    heads = value("num_attention_heads", "n_head")
    vocabulary = value("vocab_size")
    layers, kv_heads = value("num_hidden_layers", "n_layer"), value("num_key_value_heads", default=heads)
    head_size = value("head_dim", default=hidden // heads)
    experts = max(1, value("num_local_experts", "num_experts", "n_routed_experts", default=1))
    used = value("num_experts_per_tok", default=1)
    exact = bool(tensors)
    if not exact:
        width = value("intermediate_size", "n_inner", default=4 * hidden)
        attention = {"q": [heads * head_size, hidden], "o": [hidden, heads * head_size]}
        attention |= {part: [kv_heads * head_size, hidden] for part in "kv"}
        block = "mlp.experts" if experts > 1 else "mlp"
        tensors = {f"{layer}.{part}.weight": shape for layer in range(layers) for part, shape in attention.items()}
        for layer in range(layers):
            for expert in range(experts):
                tensors |= {f"{layer}.{block}.{expert}.{part}.weight": [width, hidden] for part in ("gate", "up")}
                tensors[f"{layer}.{block}.{expert}.down.weight"] = [hidden, width]
        tensors["embed_tokens.weight"] = [vocabulary, hidden]
        if not config.get("tie_word_embeddings", False):
            tensors["lm_head.weight"] = [vocabulary, hidden]
    sizes = {name: math.prod(shape) for name, shape in tensors.items()}
    inputs = [name for name in tensors if "embed" in name or "wte" in name]
    outputs = [name for name in tensors if "lm_head" in name or name == "output.weight"]
    tables, untied = {*inputs, *outputs}, bool(outputs)
    routed = sum(size for name, size in sizes.items() if "experts." in name or "_exps" in name)
    parameters = sum(sizes.values())
    active = parameters - (sum(sizes[name] for name in inputs) if untied else 0)
    active -= routed - routed * used // experts
    linear = sum(sum(shape) for name, shape in tensors.items() if len(shape) == 2 and name not in tables)
    return ModelShape(parameters, active, linear, layers, heads, kv_heads, head_size, hidden, vocabulary, exact)


def _from_gguf(path: Path, name: str) -> ModelShape:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingLibraryError("gguf", f"Reading {path.name}", "pip install 'crosspref[gguf]'") from error
    try:
        reader = GGUFReader(path)
        kind = reader.fields["general.architecture"].contents()
        entries = {name: reader.fields.get(f"{kind}.{key}") for name, key in _GGUF_SIZES.items()}
        sizes = {name: int(entry.contents()) for name, entry in entries.items() if entry}
        tensors = {tensor.name: [int(size) for size in tensor.shape] for tensor in reader.tensors}
    except Exception as error:  # the reader takes the file at its word
        raise ModelError(f"{path} is no GGUF file, or is damaged: {error} ({type(error).__name__}).") from error
    # GGUF calls the input embedding token_embd, and its shapes are the other way round, which no number here sees.
    config = {**sizes, "vocab_size": max(tensors.get("token_embd.weight", [0]))}
    return shape_of(config, {key.replace("token_embd", "embed_tokens"): shape for key, shape in tensors.items()}, name)
