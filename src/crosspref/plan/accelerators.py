"""Accelerators that a plan can name. Prices are not here: they differ several times over between sellers."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from crosspref.errors import RecipeError

LOOKED_UP = "published specifications, collected in November 2026"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of device and how many of them: memory in GB (10^9 bytes), dense bfloat16 TFLOPS, bandwidth in TB/s.

    What is not known is None: without TFLOPS there are no hours, and without memory nothing says what fits.
    """

    name: str
    memory: float | None = None
    tflops: float | None = None
    bandwidth: float | None = None
    count: int = 1

    @property
    def bytes(self) -> float:
        """The memory of one device in bytes; infinite if it is not known."""
        return math.inf if self.memory is None else self.memory * 1e9


ACCELERATORS = {
    device.name: device
    for device in (
        Accelerator("A100-40GB", 40, 312, 1.555),
        Accelerator("A100-80GB", 80, 312, 2.039),
        Accelerator("H100-SXM", 80, 989, 3.35),
        Accelerator("H200", 141, 989, 4.8),
        Accelerator("L4", 24, 121, 0.3),
        Accelerator("L40S", 48, 362, 0.864),
        Accelerator("RTX-4090", 24, 165, 1.008),
        Accelerator("MI300X", 192, 1307, 5.3),
    )
}
"""Without sparsity, and with sums in float32. Published figures, not measured here; a plan takes a share of them."""

_NAMED = re.compile(r"(?P<name>.+?)(?:x(?P<count>[1-9]\d*))?", re.IGNORECASE)


def find_hardware(
    named: str | None, memory: float | None = None, tflops: float | None = None, bandwidth: float | None = None
) -> Accelerator | None:
    """Return the accelerators of ``NAME`` or ``NAMExCOUNT``, or None; numbers that are given replace the table's.

    Raises:
        RecipeError: there is no accelerator of that name, and memory or TFLOPS are not given.
    """
    given = {"memory": memory, "tflops": tflops, "bandwidth": bandwidth}
    numbers: dict[str, Any] = {name: value for name, value in given.items() if value}
    if named is None:
        return Accelerator("own numbers", **numbers) if numbers else None
    known = {name.lower(): device for name, device in ACCELERATORS.items()}
    name, count, device = named.strip(), 1, known.get(named.strip().lower())
    if device is None and (match := _NAMED.fullmatch(name)) is not None:
        name, count = match["name"], int(match["count"] or 1)
        device = known.get(name.lower())
    if device is None and not (memory and tflops):
        raise RecipeError(
            f"The hardware {name!r} is not known. Known: {', '.join(ACCELERATORS)}, each also with a number behind it, "
            "such as H100-SXMx8. For any other device give --memory GB and --tflops T."
        )
    return replace(device or Accelerator(name), count=count, **numbers)
