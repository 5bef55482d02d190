"""What work costs: FLOPs, memory per device, disk, seconds. Pure arithmetic over shapes, settings and speeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from crosspref.plan.accelerators import LOOKED_UP, Accelerator
from crosspref.plan.shapes import ModelShape
from crosspref.plan.work import PhaseWork, Work, reference_models
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import REFERENCE_FREE, TrainSettings

USABLE = 0.9
"""Share of a device's memory that a phase may need: the rest is for the runtime and for what is cut to pieces."""
LOGITS_BYTES = 128 << 20
"""As in training: float32 logits at a time."""
ADAM_BYTES = 16
"""Bytes per trained parameter in float32: its weight, its gradient and AdamW's two moments."""
ACTIVATION_VALUES = 34
"""Values of the hidden width that one layer keeps per token for going back, with fused attention."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """What one device does, whatever the model: measured, or assumed of an accelerator.

    ``read`` is seconds per byte of weights that a decoding step reads, ``decode`` seconds per FLOP of its rows;
    ``score`` and ``train`` are seconds per FLOP. ``start`` is the seconds that a phase takes beside its work: its
    process, its imports, loading and storing models.
    """

    read: float
    decode: float
    score: float
    train: float
    start: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, work: Work, shape: ModelShape, recipe: Recipe, bytes_per_value: int) -> float:
        """Return how long some work takes on one device, without its start."""
        if work.kind in ("sample", "translate"):
            reading = self.score * work.read  # a prompt goes through at once, as in scoring
            per_step = self.read * shape.parameters * bytes_per_value
            return work.steps * per_step + (reading + work.row_steps * self.decode) * shape.flops_per_token
        speed = self.train if work.kind == "train" else self.score
        return speed * flops(work, shape, recipe)


DECODE_BANDWIDTH, DECODE_SHARE, SCORE_SHARE, TRAIN_SHARE = 0.25, 0.2, 0.4, 0.35
"""Assumed shares of a device's memory bandwidth and peak that the phases reach; a probe or a run replaces them."""


def assumed_speeds(device: Accelerator) -> Speeds | None:
    """Return what an accelerator is assumed to do; None if its TFLOPS are not known."""
    if device.tflops is None:
        return None
    peak = device.tflops * 1e12
    read = 0.0 if device.bandwidth is None else 1 / (DECODE_BANDWIDTH * device.bandwidth * 1e12)
    start = dict.fromkeys(("align_english", "sample", "translate", "score", "reference", "train", "evaluate"), 60.0)
    return Speeds(read, 1 / (DECODE_SHARE * peak), 1 / (SCORE_SHARE * peak), 1 / (TRAIN_SHARE * peak), start)


def assumptions(device: Accelerator) -> str:
    """Say in a sentence what hours on an accelerator rest on."""
    return (
        f"Hours: {device.tflops:,.0f} TFLOPS of {device.name} ({LOOKED_UP}), of which scoring is taken to "
        f"reach {SCORE_SHARE:.0%} and training {TRAIN_SHARE:.0%}; sampling {DECODE_BANDWIDTH:.0%} of the memory's "
        f"bandwidth and {DECODE_SHARE:.0%}; a minute per phase to start"
        + (f"; {device.count} devices all at work" if device.count > 1 else "")
        + ". This is rough, by a factor of 2 or 3: --probe there, or --from RUN, measures instead."
    )


def flops(work: Work, shape: ModelShape, recipe: Recipe) -> float:
    """Return the FLOPs of some work, over all models that take part in it.

    Training goes forward and back, which is three times forward, or twice where the weights are frozen beside
    adapters, and once more with gradient checkpointing; its reference goes forward once. KTO estimates z_ref from as
    much again, through both of them.
    """
    forward = work.tokens * shape.flops_per_token + work.squares * shape.flops_per_square
    settings = work.settings
    if work.kind == "score":
        return forward * scored_models(recipe)
    if settings is not None:
        times = (2 if settings.lora else 3) + settings.gradient_checkpointing
        mismatched = 2 if settings.method == "kto" else 0
        references = settings.method not in REFERENCE_FREE and not settings.precompute_reference
        return forward * (times + references + mismatched)
    return forward


def scored_models(recipe: Recipe) -> int:
    """Return how many models a reward compares."""
    return 1 if recipe.reward.algorithm in REFERENCE_FREE else 2


def memory(work: Work, shape: ModelShape, recipe: Recipe, width: int) -> float:
    """Return about how many bytes of device memory some work needs; ``width`` is bytes per value of the dtype.

    Work that a server does needs none here.
    """
    if work.kind in ("sample", "translate"):
        if work.kind == "sample" and recipe.sample.engine == "server":
            return 0.0
        cache = work.rows * work.width * shape.cache_values * width
        return shape.parameters * width + cache + 3 * 4 * work.rows * shape.vocabulary
    if work.kind in ("rate", "reference"):
        return shape.parameters * width * 1.1
    if work.kind == "score":
        if recipe.reward.engine == "server":
            return 0.0
        batch = max(work.width, min(recipe.reward.batch_tokens, work.rows * work.width))
        passing = batch * shape.hidden * width * 8
        return scored_models(recipe) * shape.parameters * width + passing + (recipe.reward.logits_megabytes << 20)
    if work.settings is not None:
        return training_memory(work, work.settings, shape, width)
    return 0.0


def adapter_parameters(settings: TrainSettings, shape: ModelShape) -> int:
    """Return the parameters of adapters beside every linear layer; fewer, if the settings name fewer layers."""
    return settings.lora.rank * shape.linear if settings.lora else 0


def training_memory(work: Work, settings: TrainSettings, shape: ModelShape, width: int, shards: int = 1) -> float:
    """Return the bytes per device that training needs; ``shards`` devices share weights, gradients and moments."""
    rows = 2 * settings.micro_batch_size
    kept = 2 if settings.gradient_checkpointing else ACTIVATION_VALUES
    values = shape.layers * kept + (ACTIVATION_VALUES if settings.gradient_checkpointing else 0)
    activations = rows * work.width * shape.hidden * width * values
    frozen, trained = 0.0, float(shape.parameters)
    value = 4
    if settings.lora is not None:
        value = width
        base = 0.6 if settings.lora.bits == 4 else width
        frozen, trained = shape.parameters * base, float(adapter_parameters(settings, shape))
    weights = frozen + trained * ADAM_BYTES + reference_models(settings) * shape.parameters * value
    return weights / shards + activations + 3 * LOGITS_BYTES


def disk(shape: ModelShape, phases: list[PhaseWork], converted: bool) -> tuple[float, float]:
    """Return the bytes that stay, and those that are needed beside them while a model is trained.

    A response and its score are taken to be 6 bytes per token and 150 bytes beside: a million made-up ones of 60 random
    tokens and 200 random letters, which compress badly, took 454 MB.
    """
    kept = 4.0 * shape.parameters if converted else 0.0
    peak = 0.0
    for phase in phases:
        for work in phase.parts:
            if work.kind in ("sample", "translate"):
                kept += work.units * 150 + 6 * work.written
            if work.settings is None:
                continue
            settings = work.settings
            kept += work.units * 150 + 6 * work.written
            trained = adapter_parameters(settings, shape) or shape.parameters
            adapter = settings.lora is not None and settings.lora.save == "adapter"
            stored = trained if adapter else shape.parameters
            kept += stored * (2 if settings.save_dtype == "bfloat16" else 4)
            # Two checkpoints, each with weights and AdamW's two moments in float32.
            peak = max(peak, 2.0 * 12 * trained)
    return kept, peak
