"""Accelerators that a plan can name. Prices are not here: they differ several times over between sellers."""

import re
from dataclasses import dataclass

from crosspref.errors import RecipeError

LOOKED_UP = "published specifications, collected in November 2026"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of device: memory in GB (10^9 bytes), dense bfloat16 TFLOPS, memory bandwidth in TB/s.

    What is not known is None: without TFLOPS no hours can be told, without memory not what fits.
    """

    name: str
    memory: float | None
    tflops: float | None
    bandwidth: float | None


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

_NAMED = re.compile(r"^(?P<name>.+?)(?:x(?P<count>[1-9]\d*))?$", re.IGNORECASE)


def find_hardware(
    named: str | None, memory: float | None = None, tflops: float | None = None, bandwidth: float | None = None
) -> tuple[Accelerator, int] | None:
    """Return the accelerator of ``NAME`` or ``NAMExCOUNT`` and how many there are; own numbers replace the table's.

    Raises:
        RecipeError: there is no accelerator of that name, and no own numbers.
    """
    own = (memory, tflops, bandwidth)
    if named is None:
        return (Accelerator("own numbers", *own), 1) if any(own) else None
    known = {name.lower(): device for name, device in ACCELERATORS.items()}
    text, count, device = named.strip(), 1, known.get(named.strip().lower())
    if device is None and (match := _NAMED.match(text)) is not None:
        text, count = match["name"], int(match["count"] or 1)
        device = known.get(text.lower())
    if device is None and not (memory and tflops):
        raise RecipeError(
            f"The hardware {text!r} is not known. Known: {', '.join(ACCELERATORS)}, each also with a number behind it, "
            "such as H100-SXMx8. For any other device give --memory GB and --tflops T."
        )
    base = device or Accelerator(text, None, None, None)
    return Accelerator(base.name, memory or base.memory, tflops or base.tflops, bandwidth or base.bandwidth), count
