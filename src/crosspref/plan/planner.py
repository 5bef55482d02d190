"""The plan: what every phase of a recipe takes, put together from work, costs and speeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from crosspref.api import check_models
from crosspref.models.locate import ModelFiles
from crosspref.plan.accelerators import Accelerator
from crosspref.plan.costs import (
    USABLE,
    Setup,
    Speeds,
    adapter_parameters,
    cache_tokens,
    disk,
    flops,
    memory,
    scored_models,
    training_memory,
)
from crosspref.plan.shapes import ModelShape, read_shape
from crosspref.plan.spread import Spread, read_spread
from crosspref.plan.work import TYPICAL_SHARE, Lengths, PhaseWork, Texts, Work, plan_work
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import TrainSettings


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """One phase: tokens through a model, FLOPs, bytes of memory per device, whether they fit, seconds.

    ``parts`` says what the memory holds.
    """

    iteration: int
    phase: str
    tokens: float
    flops: float
    memory: float
    parts: dict[str, float]
    fits: bool | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All phases, what is kept on disk and needed there for a time (bytes), the price, and what this rests on.

    ``misfits`` says for every phase that does not fit what would help.
    """

    rows: list[PhasePlan]
    disk_kept: float
    disk_peak: float
    seconds: float | None
    price: float | None
    notes: list[str]
    misfits: list[str]


class Planner:
    """What is known of a recipe before anything is measured: its models' shapes and its texts.

    ``width`` is bytes per value of the models' number format.

    Raises:
        ModelError: a model is not there, or its size cannot be told.
        DataError: the prompts cannot be used.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.width = recipe, 4 if recipe.resources.dtype == "float32" else 2
        models = check_models(recipe)
        self.model: ModelFiles = models.get("policy") or models["initial"]
        self.shapes: dict[str, ModelShape] = {"model": read_shape(self.model)}
        for role in ("translator", "reward model"):
            if role in models:
                self.shapes[role] = read_shape(models[role])
        self.texts, self.spread = Texts(recipe), read_spread(recipe)
        policy, initial = models.get("policy"), models.get("initial")
        made = [section.lora for section in (recipe.align_english, recipe.train) if section]
        # Adapters over pi_I, given or made here, share its weights with it.
        starts_shared = policy is None or (initial is not None and policy.base == initial.base)
        self.shares_base = starts_shared and all(lora and lora.save == "adapter" for lora in made)

    @property
    def shape(self) -> ModelShape:
        """The shape of the policy."""
        return self.shapes["model"]

    def work(self, lengths: Lengths, device: Accelerator) -> list[PhaseWork]:
        """Return the work of every phase."""
        return plan_work(self.recipe, self.texts, lengths, cache_tokens(self.shape, self._setup(device), device))

    def _setup(self, device: Accelerator) -> Setup:
        count = None if device.memory is None else device.count
        scoring = min(scored_models(self.recipe), 1 if self.shares_base else 2)
        return Setup(self.recipe, self.width, self.spread.on(count), scoring)

    def misfits(self, device: Accelerator, phases: Sequence[PhaseWork]) -> list[str]:
        """Return for each kind of work that does not fit into a device how much it needs, and what would help."""
        misfits: dict[str, str] = {}
        for phase in phases:
            for work in phase.parts:
                name = f"{phase.phase} ({work.kind})"
                if name not in misfits and not self._fits(work, device):
                    misfits[name] = (
                        f"{name} needs about {self._memory(work, device) / 1e9:,.1f} GB on {device.name}, which has "
                        f"{device.memory:,.1f} GB. What helps: {self._remedy(work, device)}"
                    )
        return list(misfits.values())

    def plan(
        self, lengths: Lengths, speeds: Speeds | None, device: Accelerator, price: float | None, notes: list[str]
    ) -> Plan:
        """Put the plan together; without speeds there are no hours."""
        phases = self.work(lengths, device)
        rows = []
        for phase in phases:
            largest = max(phase.parts, key=lambda work: self._memory(work, device))
            parts = memory(largest, self._shape(largest), self._setup(device))
            needed = sum(parts.values())
            unknown = device.memory is None or not needed
            fits = None if unknown else all(self._fits(work, device) for work in phase.parts)
            seconds = None if speeds is None else self._seconds(phase, speeds, device)
            tokens = sum(work.tokens for work in phase.parts)
            count = sum(flops(work, self._shape(work), self.recipe) for work in phase.parts)
            rows.append(PhasePlan(phase.iteration, phase.phase, tokens, count, needed, parts, fits, seconds))
        total = None if speeds is None else sum(row.seconds or 0.0 for row in rows)
        cost = None if total is None or price is None else total / 3600 * price * device.count
        kept, peak = disk(self.shape, phases, converted=self.model.gguf_file is not None)
        misfits = self.misfits(device, phases)
        return Plan(rows, kept, peak, total, cost, [*self._notes(lengths, device), *notes], misfits)

    def _seconds(self, phase: PhaseWork, speeds: Speeds, device: Accelerator) -> float:
        working = sum(
            speeds.seconds(work, self._shape(work), self.recipe, self.width)
            / (1 if speeds.together else self.devices(work, device))
            for work in phase.parts
        )
        heavy = any(work.kind != "light" for work in phase.parts)
        longest = max(speeds.start.values(), default=0.0) if heavy else 0.0
        return speeds.start.get(phase.phase, longest) + working

    def devices(self, work: Work, device: Accelerator) -> int:
        """Return how many of the devices some work is done on."""
        recipe, vllm = self.recipe, work.kind == "sample" and self.recipe.sample.engine == "vllm"
        engines = {"sample": recipe.sample.engine, "score": recipe.reward.engine}
        if engines.get(work.kind) == "server":
            return device.count  # it is taken to be served by all of them
        if work.kind == "train":
            return self.spread.on(device.count).devices or 1
        if work.kind == "reference" or recipe.resources.executor == "local":
            return min(device.count, recipe.vllm.tensor_parallel if vllm else 1)
        return min(device.count, max(1, int(recipe.ray.workers * max(1, recipe.ray.gpus_per_worker))))

    def _shape(self, work: Work) -> ModelShape:
        role = {"translate": "translator", "rate": "reward model"}.get(work.kind, "model")
        return self.shapes.get(role, self.shape)

    def _memory(self, work: Work, device: Accelerator) -> float:
        return sum(memory(work, self._shape(work), self._setup(device)).values())

    def _fits(self, work: Work, device: Accelerator) -> bool:
        is_vllm = work.kind == "sample" and self.recipe.sample.engine == "vllm"
        return self._memory(work, device) <= (self.recipe.vllm.memory if is_vllm else USABLE) * device.bytes

    def _remedy(self, work: Work, device: Accelerator) -> str:
        if work.settings is not None:
            return f"{', '.join(self._training_remedies(work, work.settings, device)) or 'name a larger device'}."
        section = {"sample": "sample", "translate": "sample", "score": "reward"}.get(work.kind)
        if section is not None:
            models = self._setup(device).scoring if work.kind == "score" else 1
            least = self._shape(work).parameters * self.width * models
            if least > USABLE * device.bytes:
                return (
                    "the weights alone are too large for one device; name a larger one, or let a server or vLLM with "
                    f"vllm.tensor_parallel hold the model ({section}.engine)."
                )
            if work.kind == "sample" and self.recipe.sample.engine == "vllm":
                return "a smaller sample.max_prompt_tokens or sample.max_new_tokens, or a larger vllm.memory."
            return f"a smaller {section}.batch_tokens, or resources.dtype: bfloat16."
        return "name a larger device."

    def _training_remedies(self, work: Work, settings: TrainSettings, device: Accelerator) -> list[str]:
        remedies = []
        if settings.lora is None:
            remedies.append("train.lora: {}")
        elif settings.lora.bits is None:
            remedies.append("train.lora.bits: 4")
        if not settings.gradient_checkpointing:
            remedies.append("train.gradient_checkpointing: true")
        if settings.micro_batch_size > 1:
            remedies.append("a smaller train.micro_batch_size")
        for count in (2, 4, 8, 16, 32, 64):
            setup = replace(self._setup(device), spread=Spread("FSDP", count))
            each = sum(training_memory(work, settings, self.shape, setup).values())
            if each <= USABLE * device.bytes:
                shared = f"FSDP or ZeRO-3 over {count} devices ({each / 1e9:,.1f} GB each), see resources.launch"
                remedies.append(f"or {shared}" if remedies else shared)
                break
        return remedies

    def _notes(self, lengths: Lengths, device: Accelerator) -> list[str]:
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
        spread = self._setup(device).spread
        training = f"Training: {spread.kind}" + (f" on {spread.devices} devices." if spread.devices != 1 else ".")
        if spread.unread is not None:
            training += f" {spread.unread} cannot be read here; it is planned as what needs the most memory."
        return [
            f"Model: {shape.parameters / 1e6:,.1f} million parameters{adapters}, {source}; {8 * self.width}-bit "
            "numbers but for full training, which is 32-bit.",
            f"Responses: {answers}. Prompts: {prompts}. Pairs: {pairs}. {training}",
        ]


def expected_seconds(recipe: Recipe) -> dict[tuple[str, int], float]:
    """Return about how long each phase takes, by (name, iteration), on two cores without bfloat16.

    Only the proportions count. Empty if the recipe's models or prompts cannot be read.
    """
    cores = Speeds(read=1 / 8e9, decode=1 / 30e9, score=1 / 60e9, train=1 / 60e9)
    try:
        planner = Planner(recipe)
        planner.width = 4
        plan = planner.plan(Lengths(), cores, Accelerator("two cores"), None, [])
    except Exception:  # noqa: BLE001 - no run stops for an estimate; what is wrong is said by who needs it
        return {}
    return {(row.phase, row.iteration): row.seconds or 0.0 for row in plan.rows}
