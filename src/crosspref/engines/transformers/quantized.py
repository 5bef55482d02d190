"""Models whose frozen weights are held in 4 bits, for QLoRA (bitsandbytes)."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from crosspref.engines.transformers.models import load_model
from crosspref.errors import MissingLibraryError


def require_bitsandbytes() -> None:
    """Raise MissingLibraryError where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingLibraryError("bitsandbytes", "train.lora.bits: 4 (QLoRA)", "pip install 'crosspref[qlora]'")


def load_quantized(directory: Path, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False) -> Any:
    """Load a causal language model with its linear layers in 4 bits, as QLoRA has them: nf4, doubly quantised.

    Args:
        directory: an ordinary model; its weights are quantised as they are read.
        dtype: the number format in which the layers compute, and of what is not quantised.
        device: where it lies; such a model is not moved afterwards.
        trust_remote_code: whether code of the model's own may run.
    """
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            *args, quantization_config=config, device_map={"": device}, **kwargs
        )

    kind = SimpleNamespace(from_pretrained=from_pretrained)
    model = load_model(directory, dtype, device, trust_remote_code, kind=kind)
    for layer in model.modules():
        # On a CPU with bfloat16 a first pass without gradients would lay weights out so that no gradient passes them.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model
