"""What work costs: FLOPs, memory per device, disk, seconds. Pure arithmetic over shapes, settings and speeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from crosspref.plan.accelerators import LOOKED_UP, Accelerator
from crosspref.plan.shapes import ModelShape
from crosspref.plan.spread import Spread
from crosspref.plan.work import PhaseWork, Work, reference_models
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import REFERENCE_FREE, TrainSettings

USABLE = 0.9
"""Share of a device's memory that a phase may need: the rest is for the runtime and for what is cut to pieces."""
LOGITS_BYTES = 128 << 20
"""As in training: float32 logits at a time."""
VLLM_BYTES = 2e9
"""What vLLM needs beside weights and cache: a batch's activations and its recorded graphs."""
QUANTIZED_BYTES = 0.52
"""Bytes per weight of a linear layer in 4 bits, doubly quantised: 4.127 bits."""
ACTIVATION_VALUES = 34
"""Values of the hidden width that one layer keeps per token for going back, with fused attention."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """What one device does, whatever the model: measured, or assumed of an accelerator.

    ``read`` is seconds per byte of weights that a decoding step reads, ``decode`` seconds per FLOP of its rows;
    ``score`` and ``train`` are seconds per FLOP. ``start`` is the seconds that a phase takes beside its work: its
    process, its imports, loading and storing models. ``together``: it is what all devices of a run did, not one.
    """

    read: float
    decode: float
    score: float
    train: float
    start: Mapping[str, float] = field(default_factory=dict)
    together: bool = False

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
        + (f"; of {device.count} devices those that the recipe puts to work" if device.count > 1 else "")
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


@dataclass(frozen=True, slots=True)
class Setup:
    """Where work is done: how training is spread, and how many of a reward's models are in memory at once.

    ``width`` is bytes per value of the number format.
    """

    recipe: Recipe
    width: int
    spread: Spread
    scoring: int


def memory(work: Work, shape: ModelShape, setup: Setup) -> dict[str, float]:
    """Return about how many bytes of one device's memory some work needs, by what they hold.

    Work that a server does needs none here.
    """
    recipe, width = setup.recipe, setup.width
    weights = {"weights": float(shape.parameters * width)}
    engine = recipe.sample.engine if work.kind == "sample" else "transformers"
    if work.kind in ("sample", "translate") and engine == "transformers":
        cache = work.rows * work.width * shape.cache_values * width
        return {**weights, "cache": cache, "logits": 3.0 * 4 * work.rows * shape.vocabulary}
    if work.kind == "sample" and engine == "vllm":
        # It takes vllm.memory whatever it needs, and refuses to start without room for the longest row.
        longest = recipe.sample.max_prompt_tokens + recipe.sample.max_new_tokens
        parts = {**weights, "cache": float(longest * shape.cache_values * width)}
        return {**{part: size / recipe.vllm.tensor_parallel for part, size in parts.items()}, "vLLM": VLLM_BYTES}
    if work.kind in ("rate", "reference"):
        return {"weights": weights["weights"] * 1.1}
    if work.kind == "score" and recipe.reward.engine == "transformers":
        batch = max(work.width, min(recipe.reward.batch_tokens, work.rows * work.width))
        passing = batch * shape.hidden * width * 8.0
        logits = float(recipe.reward.logits_megabytes << 20)
        return {"weights": setup.scoring * weights["weights"], "activations": passing, "logits": logits}
    if work.settings is not None:
        return training_memory(work, work.settings, shape, setup)
    return {}


def cache_tokens(shape: ModelShape, setup: Setup, device: Accelerator) -> float:
    """Return for how many tokens vLLM has room on a device, or on those that share a copy of the model."""
    vllm = setup.recipe.vllm
    room = (vllm.memory * device.bytes - VLLM_BYTES) * vllm.tensor_parallel - shape.parameters * setup.width
    return room / (shape.cache_values * setup.width)


def adapter_parameters(settings: TrainSettings, shape: ModelShape) -> int:
    """Return the parameters of adapters beside every linear layer; fewer, if the settings name fewer layers."""
    return settings.lora.rank * shape.linear if settings.lora else 0


def training_memory(work: Work, settings: TrainSettings, shape: ModelShape, setup: Setup) -> dict[str, float]:
    """Return the bytes that training needs on each device, by what they hold.

    Full training keeps weights, gradients and AdamW's two moments in float32, and computes in another number format
    with a copy of the weights: of all of them at the end of going forward (autocast, DeepSpeed), or of two layers and
    of the embeddings, which FSDP gathers. There, gradients are gathered in both formats. LoRA's base is frozen.
    """
    width, spread = setup.width, setup.spread
    quantized = settings.lora is not None and settings.lora.bits == 4
    frozen, trained = 0.0, float(shape.parameters)
    if settings.lora is not None:
        linear = shape.parameters - shape.tables
        frozen = linear * QUANTIZED_BYTES + shape.tables * width if quantized else float(shape.parameters * width)
        trained = float(adapter_parameters(settings, shape))
    base = frozen or 4 * trained  # of a second model, the reference
    shards = {part: spread.shards(part) for part in ("weights", "gradients", "optimizer")}
    parts = {
        # bitsandbytes' weights are bytes, which FSDP cannot cut up.
        "weights": frozen / (1 if quantized else shards["weights"]) + 4 * trained / shards["weights"],
        "gradients": 4 * trained / shards["gradients"],
        "optimizer": 8 * trained / shards["optimizer"],
        "reference": reference_models(settings) * base / shards["weights"],
    }
    if spread.kind == "DDP":
        parts["gradients"] *= 2  # its buckets are a second copy
    elif spread.kind in ("ZeRO-1", "ZeRO-2"):  # each device has the copy whole, and float32 of its share
        parts["weights"] = frozen + 4 * trained / shards["optimizer"]
        parts["reference"] = float(reference_models(settings) * shape.parameters * width)  # which DeepSpeed rounds
        parts["gradients"] += 4 * trained / shards["optimizer"]
    if spread.kind != "FSDP" and width < 4:
        parts["copy"] = trained * width / shards["weights"]
    if spread.shards("weights") > 1:
        gathered = 2 * shape.parameters / shape.layers + shape.tables
        parts["gathered"] = gathered * (width if settings.lora else 2 * width + 4)
    if spread.kind == "FSDP":
        parts["reference"] += reference_models(settings) * shape.parameters * width  # it is gathered whole
        parts["gathered"] += shape.parameters * width * spread.keeps_gathered
    return {part: size for part, size in parts.items() if size} | _passing(work, settings, shape, width)


def _passing(work: Work, settings: TrainSettings, shape: ModelShape, width: int) -> dict[str, float]:
    """Return the bytes of what a micro-batch leaves behind for going back."""
    rows = 2 * settings.micro_batch_size
    kept = 2 if settings.gradient_checkpointing else ACTIVATION_VALUES
    values = shape.layers * kept + (ACTIVATION_VALUES if settings.gradient_checkpointing else 0)
    return {"activations": rows * work.width * shape.hidden * width * values, "logits": 3.0 * LOGITS_BYTES}


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
