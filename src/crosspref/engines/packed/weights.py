"""Linear layers whose weights lie as the processor's bfloat16 kernels read them.

Otherwise torch lays a weight out anew in every call, which for the few rows of a decoding step takes about as long as
the product itself. These are the functions that torch's own compiler calls, without what else it does.
"""

import functools
from typing import Any

import torch

from crosspref.engines.transformers.models import free_bytes

SHARE = 0.25
"""Of the free memory, that the weights may take once more."""
ROWS = 32
"""How many rows the layout is chosen for; it serves any number of them."""


def pack_weights(model: Any) -> bool:
    """Let a model on a CPU compute its linear layers from weights that are laid out once, and tell whether it does.

    The weights are held twice then, so it is not done where memory is short; nor where the processor does not compute
    in bfloat16. The model must not be trained afterwards.
    """
    layers = [module for module in model.modules() if type(module) is torch.nn.Linear]
    size = sum(layer.weight.nbytes for layer in layers)
    if any(layer.weight.dtype != torch.bfloat16 or layer.weight.device.type != "cpu" for layer in layers):
        return False
    if not _supported() or size > SHARE * free_bytes(torch.device("cpu")):
        return False
    with torch.inference_mode():
        for layer in layers:
            weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
            layer.forward = functools.partial(_linear, weight, layer.bias)  # type: ignore[method-assign]
    return True


def _supported() -> bool:
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    known = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    known = known and all(hasattr(torch.ops.mkldnn, name) for name in names)
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return found
