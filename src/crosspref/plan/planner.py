"""The plan: what every phase of a recipe takes, put together from work, costs and speeds."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosspref.api import check_models
from crosspref.models.locate import ModelFiles
from crosspref.plan import accelerators
from crosspref.plan.accelerators import Accelerator
from crosspref.plan.costs import (
    DECODE_BANDWIDTH,
    DECODE_SHARE,
    SCORE_SHARE,
    TRAIN_SHARE,
    USABLE,
    Speeds,
    adapter_parameters,
    assumed_speeds,
    disk,
    flops,
    memory,
    training_memory,
)
from crosspref.plan.shapes import ModelShape, read_shape
from crosspref.plan.work import TYPICAL_SHARE, Lengths, PhaseWork, Texts, Work, plan_work
from crosspref.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Row:
    """One phase: tokens through a model, FLOPs, bytes of memory per device, whether they fit, seconds."""

    iteration: int
    phase: str
    tokens: float
    flops: float
    memory: float
    fits: bool | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All phases, what is kept on disk and needed there for a time (bytes), the price, and what this rests on.

    ``misfits`` says of every phase that does not fit what would help.
    """

    rows: list[Row]
    disk_kept: float
    disk_peak: float
    seconds: float | None
    price: float | None
    notes: list[str]
    misfits: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON can hold it, in tokens, FLOPs, bytes and seconds."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Device:
    """What a phase runs on: memory of one device in bytes, how many there are, and what they are called."""

    name: str
    memory: float | None
    count: int = 1


class Planner:
    """What is known of a recipe before anything is measured: its models' shapes and its texts.

    Raises:
        ModelError: a model is not there, or its size cannot be told.
        DataError: the prompts cannot be used.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        models = check_models(recipe)
        self.model: ModelFiles = models.get("policy") or models["initial"]
        self.shapes: dict[str, ModelShape] = {"model": read_shape(self.model)}
        for role in ("translator", "reward model"):
            if role in models:
                self.shapes[role] = read_shape(models[role])
        self.texts = Texts(recipe)

    @property
    def shape(self) -> ModelShape:
        """The shape of the policy."""
        return self.shapes["model"]

    def work(self, lengths: Lengths) -> list[PhaseWork]:
        """Return the work of every phase."""
        return plan_work(self.recipe, self.texts, lengths)

    def misfits(self, device: Device, width: int, phases: Sequence[PhaseWork]) -> list[str]:
        """Return for each kind of phase that does not fit into a device how much it needs, and what would help."""
        if device.memory is None:
            return []
        found: dict[str, str] = {}
        for phase in phases:
            for work in phase.parts:
                needed = self._memory(work, width)
                if needed > USABLE * device.memory and not self._fits_in_shards(work, device, width):
                    help_ = self._remedy(work, device, width)
                    found.setdefault(
                        f"{phase.phase} {work.kind}",
                        f"{phase.phase} ({work.kind}) needs about {needed / 1e9:,.1f} GB on {device.name}, which has "
                        f"{device.memory / 1e9:,.1f} GB. What helps: {help_}",
                    )
        return list(found.values())

    def plan(
        self, lengths: Lengths, speeds: Speeds | None, device: Device, width: int, price: float | None, notes: list[str]
    ) -> Plan:
        """Put the plan together; without speeds there are no hours."""
        phases = self.work(lengths)
        rows = []
        for phase in phases:
            needed = max(self._memory(work, width) for work in phase.parts)
            fits = None
            if device.memory is not None and needed:
                fits = all(
                    self._memory(work, width) <= USABLE * device.memory or self._fits_in_shards(work, device, width)
                    for work in phase.parts
                )
            seconds = None
            if speeds is not None:
                working = (speeds.seconds(work, self._shape(work), self.recipe, width) for work in phase.parts)
                heavy = any(work.kind != "light" for work in phase.parts)
                start = speeds.start.get(phase.phase, max(speeds.start.values(), default=0.0) if heavy else 0.0)
                seconds = start + sum(working) / device.count
            tokens = sum(work.tokens for work in phase.parts)
            count = sum(flops(work, self._shape(work), self.recipe) for work in phase.parts)
            rows.append(Row(phase.iteration, phase.phase, tokens, count, needed, fits, seconds))
        total = None if speeds is None else sum(row.seconds or 0.0 for row in rows)
        cost = None if total is None or price is None else total / 3600 * price * device.count
        converted = self.model.gguf_file is not None
        kept, peak = disk(self.shape, phases, converted)
        misfits = self.misfits(device, width, phases)
        return Plan(rows, kept, peak, total, cost, [*self._notes(lengths, width), *notes], misfits)

    def _shape(self, work: Work) -> ModelShape:
        role = {"translate": "translator", "rate": "reward model"}.get(work.kind, "model")
        return self.shapes.get(role, self.shape)

    def _memory(self, work: Work, width: int) -> float:
        return memory(work, self._shape(work), self.recipe, width)

    def _fits_in_shards(self, work: Work, device: Device, width: int) -> bool:
        """Tell whether training fits when the recipe's launcher spreads it over the devices."""
        if work.settings is None or device.memory is None or self.recipe.resources.launch is None:
            return False
        shared = training_memory(work, work.settings, self.shape, width, device.count)
        return shared <= USABLE * device.memory

    def _remedy(self, work: Work, device: Device, width: int) -> str:
        section = {"sample": "sample", "translate": "sample", "score": "reward"}.get(work.kind)
        if section is not None:
            least = self._shape(work).parameters * width * (2 if work.kind == "score" else 1)
            if device.memory is not None and least > USABLE * device.memory:
                return (
                    "the weights alone are too large for one device; name a larger one, or let a server or vLLM with "
                    f"vllm.tensor_parallel hold the model ({section}.engine)."
                )
            return f"a smaller {section}.batch_tokens, or resources.dtype: bfloat16."
        settings = work.settings
        if settings is None or device.memory is None:
            return "name a larger device."
        remedies = []
        if settings.lora is None:
            remedies.append("train.lora: {}")
        elif settings.lora.bits is None:
            remedies.append("train.lora.bits: 4")
        if not settings.gradient_checkpointing:
            remedies.append("train.gradient_checkpointing: true")
        if settings.micro_batch_size > 1:
            remedies.append("a smaller train.micro_batch_size")
        others = ", ".join(remedies)
        for count in (2, 4, 8, 16, 32, 64):
            each = training_memory(work, settings, self.shape, width, count)
            if each <= USABLE * device.memory:
                shared = f"FSDP or ZeRO-3 over {count} devices ({each / 1e9:,.1f} GB each), see resources.launch"
                return f"{others}, or {shared}." if others else f"{shared}."
        return f"{others}." if others else "name a larger device."

    def _notes(self, lengths: Lengths, width: int) -> list[str]:
        shape, recipe = self.shape, self.recipe
        source = "from its files' headers" if shape.exact else "from config.json, as its weights are not here"
        limit = recipe.sample.max_new_tokens
        if lengths.response:
            mean = sum(lengths.response.values()) / len(lengths.response)
            answers = f"{mean:,.0f} tokens on average, as measured"
        else:
            answers = f"{TYPICAL_SHARE * limit:,.0f} tokens, half of sample.max_new_tokens ({limit:,}; the upper bound)"
        prompts = "counted by the tokenizer" if lengths.per_byte else "taken to be a token per 4 bytes of UTF-8"
        trained = adapter_parameters(recipe.train, shape)
        adapters = f", adapters {trained / 1e6:,.1f} million" if trained else ""
        pairs = f"{lengths.pairs:.0%} of prompts" if lengths.pairs < 1 else "every prompt (the upper bound)"
        return [
            f"Model: {shape.parameters / 1e6:,.1f} million parameters{adapters}, {source}; {8 * width}-bit numbers but "
            "for full training, which is 32-bit.",
            f"Responses: {answers}. Prompts: {prompts}. Pairs: {pairs}.",
        ]


def assumptions(device: Accelerator, count: int) -> str:
    """Return in a sentence what hours on an accelerator rest on."""
    return (
        f"Hours: {device.tflops:,.0f} TFLOPS of {device.name} ({accelerators.LOOKED_UP}), of which scoring is taken to "
        f"reach {SCORE_SHARE:.0%} and training {TRAIN_SHARE:.0%}; sampling {DECODE_BANDWIDTH:.0%} of the memory's "
        f"bandwidth and {DECODE_SHARE:.0%}; a minute per phase to start"
        + (f"; {count} devices all at work" if count > 1 else "")
        + ". This is rough, by a factor of 2 or 3: --probe there, or --from RUN, measures instead."
    )


def planned_speeds(found: tuple[Accelerator, int] | None) -> Speeds | None:
    """Return the speeds assumed of the hardware that was named, if they are known."""
    return None if found is None else assumed_speeds(found[0])
