"""Loading models with transformers, and what their files say of them."""

import contextlib
import functools
import gc
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from tqdm import tqdm
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import GENERATION_CONFIG_NAME

from crosspref.data.records import Message
from crosspref.engines import EngineSettings
from crosspref.engines.transformers.chat import AS_IT_IS, ChatTokenizer, load_tokenizer, require_same_ids, stop_ids
from crosspref.engines.transformers.faults import find_device, reading
from crosspref.errors import ModelError, RecipeError
from crosspref.models.locate import OTHER_CACHE, ModelFiles, cache_directory, locate_model
from crosspref.models.tokenizers import have_same_files, require_same_tokenizer, require_tokenizer_of_base
from crosspref.paths import writing
from crosspref.recipe.sections import AskingSettings, SampleSettings
from crosspref.run.ranks import local_rank, processes

transformers.utils.logging.disable_progress_bar()
modeling_gguf_pytorch_utils.tqdm = functools.partial(tqdm, disable=True)  # there is no setting for its bar
transformers.utils.logging.set_verbosity_error()


CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Loading:
    """How models are loaded: to which device, in which number format, and whether code of their own may run."""

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    trust_remote_code: bool = False

    @classmethod
    def of(cls, settings: EngineSettings) -> "Loading":
        """Return what the settings ask for, and apply the thread setting.

        Unless they say otherwise, the number format is bfloat16 where the processor computes fast in it, else float32.
        """
        resources = settings.resources
        if resources.threads:
            torch.set_num_threads(resources.threads)
        device = find_device(resources.device) if resources.device != "auto" else _best_device()
        fast = resources.dtype == "auto" and _is_fast_in_bfloat16(device)
        dtype = torch.bfloat16 if fast or resources.dtype == "bfloat16" else torch.float32
        return cls(device, dtype, settings.trust_remote_code)

    @property
    def exact(self) -> "Loading":
        """The same in float32 on the CPU, as adapters are merged: in bfloat16 their product is lost."""
        return Loading(trust_remote_code=self.trust_remote_code)


def _best_device() -> torch.device:
    if not torch.cuda.is_available():
        return CPU
    return torch.device("cuda", local_rank()) if processes() > 1 else torch.device("cuda")


@functools.cache
def _is_fast_in_bfloat16(device: torch.device) -> bool:
    """Tell whether a GPU or the processor has bfloat16 instructions (x86: avx512_bf16 or amx_bf16; arm64: bf16)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    flags = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    wanted = {"bf16"} if platform.machine() in {"aarch64", "arm64"} else {"avx512_bf16", "amx_bf16"}
    return bool(flags & wanted)


def readable_directory(files: ModelFiles) -> Path:
    """Return a directory that ``from_pretrained`` reads; a GGUF file is converted once, into the cache.

    transformers loads GGUF files but refuses to save what it loaded that way, so the weights are moved into a fresh
    model of the same configuration. Of an adapter it is the base's directory.
    """
    if files.gguf_file is None:
        return files.directory
    if files.adapter is not None:
        directory = readable_directory(locate_model(str(files.directory / files.gguf_file)))
        require_tokenizer_of_base(files.name, files.adapter, directory)
        return directory
    target = _converted(files)
    if not target.is_dir():
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            _convert(files, temporary)
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # where another process was first, all is well
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # where the disk is full, that gives room back
    return target


def _convert(files: ModelFiles, output: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as transformers has them."""
    with writing(output, OTHER_CACHE):  # before the minutes that converting takes
        output.mkdir(parents=True, exist_ok=True)
    with _gguf_alone(files) as alone:
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=files.gguf_file)
        loaded = AutoModelForCausalLM.from_pretrained(alone, gguf_file=files.gguf_file, dtype=torch.float32)
        config = loaded.config
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        # Only the ids belong to the model: sampling settings come from the recipe.
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    with writing(output, OTHER_CACHE):
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)


@contextlib.contextmanager
def _gguf_alone(files: ModelFiles) -> Iterator[str]:
    """Read a GGUF file in a directory without what lies beside it, which is no part of the model.

    Raises:
        ModelError: it cannot be read.
    """
    name = files.gguf_file or ""
    with tempfile.TemporaryDirectory() as alone, reading("The GGUF model", files.directory / name):
        (Path(alone) / name).symlink_to((files.directory / name).resolve())
        yield alone


def require_gguf(files: ModelFiles) -> None:
    """Raise ModelError unless a GGUF file is whole and of a kind that can be converted; no weight is read."""
    with _gguf_alone(files) as alone:
        AutoConfig.from_pretrained(alone, gguf_file=files.gguf_file)  # its reader looks for the end of each tensor


def is_readable(files: ModelFiles) -> bool:
    """Tell whether ``readable_directory`` has nothing to convert."""
    if files.gguf_file is None:
        return True
    base = files if files.adapter is None else locate_model(str(files.directory / files.gguf_file))
    return _converted(base).is_dir()


def _converted(files: ModelFiles) -> Path:
    return cache_directory() / "models" / f"{Path(files.gguf_file or '').stem}-{files.identity[:16]}"


def load_model(directory: Path, loading: Loading, kind: Any = None, **options: Any) -> Any:
    """Load a model for inference; only safetensors are read, and ``options`` are further arguments for that.

    ``kind`` is a class of transformers that chooses the model's; by default that of causal language models.

    Raises:
        ModelError: transformers cannot read it, or the files lack some of its weights or hold others.
        MissingLibraryError: a library is needed that one of crosspref's extras installs.
    """
    if loading.device.type == "meta":
        options["device_map"] = "meta"  # only the names and shapes of weights are read
    config = read_config(directory, loading.trust_remote_code)
    kind = kind or language_model(config)
    with reading("The model", directory):
        model, loaded = kind.from_pretrained(
            directory,
            dtype=loading.dtype,
            use_safetensors=True,
            trust_remote_code=loading.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below, where transformers only says that there are some
            # By itself transformers would lay an adapter over whole weights whose directory also has its files.
            adapter_kwargs={"subfolder": "none"},
            **options,
        )
        model = model.to(loading.device).eval()
        read_generation(directory, config)
    mismatched = sorted(loaded["mismatched_keys"])
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise ModelError(
            f"The weights in {directory} are not those of its config.json: {name} has the shape {tuple(stored)} "
            f"instead of {tuple(wanted)}, and {len(mismatched)} weights differ in all. Name a model whose files belong "
            "together."
        )
    missing = sorted(loaded["missing_keys"])
    if missing:  # transformers would fill them with random numbers, and only warn
        raise ModelError(
            f"The files in {directory} lack {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}, "
            "which would be random. Name a model of this kind whose files are complete."
        )
    return model


def language_model(config: Any) -> Any:
    """Return what chooses a language model's class. Some also see images, and transformers lists them elsewhere."""
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def load_quantized(directory: Path, loading: Loading) -> Any:
    """Load a causal language model with its linear layers in 4 bits, as QLoRA has them: nf4, doubly quantised.

    The weights of an ordinary model are quantised as they are read, on the device where they stay. The number format is
    that in which the layers compute, and of what is not quantised.
    """
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=loading.dtype,
    )
    model = load_model(directory, loading, quantization_config=config, device_map={"": loading.device})
    for layer in model.modules():
        # On a CPU with bfloat16 a first pass without gradients would lay weights out so that no gradient passes them.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model


def context_length(config: Any) -> float:
    """Return how many tokens a model takes, or infinity if its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf


def require_embeddings(tokenizer: ChatTokenizer, config: Any, name: str) -> None:
    """Raise ModelError if a model has no embedding for a token that every conversation has, or that a text may have.

    Added tokens that no conversation has, such as one for images, may be without.
    """
    rows = vocabulary_of(config)
    chat: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    needed = [
        *tokenizer.chat_ids(chat, finished=True),
        *tokenizer.prompt_ids("a"),
        tokenizer.end_of_turn,
        tokenizer.pad,
    ]
    added = tokenizer.tokenizer.added_tokens_decoder
    needed += [token for token in tokenizer.tokenizer.get_vocab().values() if token not in added]
    without = max(needed)
    if without >= rows:
        raise ModelError(
            f"The tokenizer of {name} has the token {tokenizer.tokenizer.convert_ids_to_tokens(without)!r} with the id "
            f"{without}, but the model has embeddings for {rows} tokens, 0 to {rows - 1}. Use the tokenizer that "
            "the model was trained with, or resize the model's embeddings and train them."
        )


def vocabulary_of(config: Any) -> int:
    """Return for how many tokens a model has embeddings."""
    return int(config.get_text_config().vocab_size)


def longest_prompt(
    settings: SampleSettings, config: Any, context: int | None = None, setting: str = "max_new_tokens"
) -> float:
    """Return how many tokens a prompt may have: what the settings allow, if a response then fits into the context.

    ``context`` is the server's context length, if known; ``setting`` is what a message calls the limit of a response.

    Raises:
        RecipeError: a response may be as long as the context, so that no prompt has room beside it.
    """
    context_tokens = min(context_length(config), context or math.inf)
    if settings.max_new_tokens >= context_tokens:
        raise RecipeError(
            f"{setting} ({settings.max_new_tokens}) leaves no room for a prompt in the model's context of "
            f"{context_tokens} tokens. Set a smaller {setting}.",
            (setting,),
        )
    return min(settings.max_prompt_tokens, context_tokens - settings.max_new_tokens)


def even_length(config: Any) -> float:
    """Return how many tokens a row may have before its length changes how positions are embedded.

    Rotary embeddings of the kinds longrope and dynamic do that, for the row's own prompt and for all rows beside it.
    """
    rotary = getattr(config, "rope_parameters", None) or {}
    kinds = [rotary, *(part for part in rotary.values() if isinstance(part, dict))]  # one, or one per kind of layer
    if not any(kind.get("rope_type") in {"dynamic", "longrope"} for kind in kinds):
        return math.inf
    limits = [kind.get("original_max_position_embeddings") for kind in kinds]
    return min(limit for limit in (*limits, getattr(config, "max_position_embeddings", None), math.inf) if limit)


def read_config(directory: Path, trust_remote_code: bool = False) -> Any:
    """Return a model's configuration.

    Raises:
        ModelError: it cannot be read, or asks for code from the hub that nobody trusts.
    """
    with reading("The configuration", directory):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    kernel = next((name for part in parts if "/" in (name := str(getattr(part, "_attn_implementation", "")))), None)
    if kernel and not trust_remote_code:  # transformers would fetch and run it
        raise ModelError(
            f"The config.json in {directory} has attention computed by code from the hub, {kernel!r}. Take it out of "
            "that file; or, if you trust its authors, set trust_remote_code: true."
        )
    return config


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a model's files say of it; for engines that hold its weights elsewhere."""

    directory: Path
    tokenizer: ChatTokenizer
    config: Any
    stops: list[int]


def describe_model(files: ModelFiles, asking: AskingSettings = AS_IT_IS) -> ModelDescription:
    """Read a model's tokenizer and configuration without its weights.

    Raises:
        ModelError: transformers cannot read them.
    """
    directory = readable_directory(files)
    tokenizer = load_tokenizer(directory, asking)
    config = read_config(directory, asking.trust_remote_code)
    require_embeddings(tokenizer, config, files.name)
    return ModelDescription(directory, tokenizer, config, stop_ids(read_generation(directory, config), tokenizer))


def read_generation(directory: Path, config: Any) -> Any:
    """Return a model's generation configuration: that of its file or, where there is none, of its configuration.

    transformers by itself takes a broken file for none, so that responses would end elsewhere.

    Raises:
        ModelError: the file cannot be read.
    """
    if not (directory / GENERATION_CONFIG_NAME).is_file():
        return GenerationConfig.from_model_config(config)
    with reading(f"The {GENERATION_CONFIG_NAME}", directory):
        return GenerationConfig.from_pretrained(directory)


def comparable_directories(policy: ModelFiles, reference: ModelFiles | None, asking: AskingSettings) -> list[Path]:
    """Return the models' directories.

    Raises:
        ModelError: the two differ in tokenizer or chat template, so that they read a prompt differently.
    """
    directories = [readable_directory(files) for files in (policy, reference) if files is not None]
    if reference is not None:
        names = policy.name, reference.name
        require_same_tokenizer(directories[0], directories[1], names)
        if not have_same_files(directories[0], directories[1]):
            require_same_ids(load_tokenizer(directories[0], asking), load_tokenizer(directories[1], asking), names)
    return directories


def free_memory() -> None:
    """Give memory of models that nobody holds any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> float:
    """Return how much memory of a device is free, in bytes."""
    return float(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)
