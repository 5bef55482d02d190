"""Carry a language model's English preference alignment into other languages, without preference data in them.

``align`` runs the whole method, ``ImplicitReward`` scores responses, ``solve_length_penalty`` solves Eq. 15, ``verify``
looks for damage in a run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspref.api import ImplicitReward, align, verify
    from crosspref.maths.length_penalty import solve_length_penalty

__version__ = "0.1.0"
__all__ = ["ImplicitReward", "align", "solve_length_penalty", "verify"]

_HOMES = {
    "align": "crosspref.api",
    "ImplicitReward": "crosspref.api",
    "solve_length_penalty": "crosspref.maths.length_penalty",
    "verify": "crosspref.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import crosspref`` stays light."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'crosspref' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
