"""Models that are LoRA adapters over a base: merged into it, or several over one base in memory."""

import contextlib
import copy
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file

from crosspref.data.sources import PACKAGE
from crosspref.engines.transformers.faults import reading, reason_of
from crosspref.engines.transformers.models import Loading, load_model, load_quantized, readable_directory
from crosspref.errors import ModelError, RecipeError
from crosspref.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json
from crosspref.models.hub import HubModel
from crosspref.models.locate import ModelFiles, base_of_adapter, require_fitting_lora
from crosspref.paths import expanded
from crosspref.recipe.sections import LoraSettings

POLICY, REFERENCE = "default", "reference"
"""What the adapters of one base are called in training; peft saves the first one without a folder of its own."""

View = tuple[Any, Callable[[], AbstractContextManager[None]]]
"""A causal language model, and a context in which its forward pass is that of one model of those that share it."""


def load_files(files: ModelFiles, loading: Loading) -> Any:
    """Load a model for inference as whole weights: an adapter is merged into its base.

    It is merged in float32, on the CPU, since the product of the adapters is lost in bfloat16.

    Raises:
        ModelError: the base or the adapter cannot be loaded, or they do not belong together.
    """
    directory = readable_directory(files)
    if files.adapter is None:
        return load_model(directory, loading)
    merged = add_adapter(load_model(directory, loading.exact), files.adapter, POLICY).merge_and_unload()
    return merged.requires_grad_(True).to(loading.dtype).to(loading.device).eval()  # peft froze the base


def load_views(models: Sequence[ModelFiles], loading: Loading) -> list[View]:
    """Load models for inference; those that are one base, or adapters over one, share it in memory.

    Raises:
        ModelError: as ``load_files``.
    """
    bases: dict[tuple[Path, str | None], Any] = {}
    for number, files in enumerate(models):
        if files.base not in bases:
            bases[files.base] = load_model(readable_directory(files), loading)
        if files.adapter is not None:
            bases[files.base] = add_adapter(bases[files.base], files.adapter, f"model_{number}")
    views: list[View] = []
    for number, files in enumerate(models):
        model = bases[files.base]
        if isinstance(model, peft.PeftModel):
            name = None if files.adapter is None else f"model_{number}"
            # The adapters are inside the base's layers, so they also work where only parts of the model are called.
            views.append((model.get_base_model(), partial(_using, model, name)))
        else:
            views.append((model, contextlib.nullcontext))
    return views


@contextlib.contextmanager
def _using(model: peft.PeftModel, name: str | None) -> Iterator[None]:
    """Let a model be the one with the adapter ``name``, or its base."""
    if name is None:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(name, inference_mode=True)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLinear) and _is_a_product(layer, name)]
    for layer in layers:
        layer.forward = partial(_add_to_weight, layer, name)  # an attribute hides the method of the class
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_a_product(layer: LoraLinear, name: str) -> bool:
    """Tell whether an adapter only adds a product of two matrices to a layer's weight."""
    plain = type(layer.base_layer) is torch.nn.Linear and not layer.fan_in_fan_out and not layer.merged
    return plain and name in layer.lora_A and name not in layer.lora_variant and layer.lora_B[name].bias is None


def _add_to_weight(layer: LoraLinear, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """Return the layer's output from the sum of its weight and the adapter, which is not kept.

    The cost of the sum does not depend on the number of tokens. The adapter beside the layer costs a third of a pass
    over many tokens, most of it for moving data.
    """
    base, second, first = layer.base_layer, layer.lora_B[name].weight, layer.lora_A[name].weight
    dtype = base.weight.dtype
    weight = torch.addmm(base.weight, second.to(dtype), first.to(dtype), alpha=layer.scaling[name])
    return torch.nn.functional.linear(inputs, weight, base.bias)


def add_adapter(model: Any, adapter: Path, name: str, *, trainable: bool = False) -> peft.PeftModel:
    """Load an adapter into a model, which becomes a ``PeftModel`` unless it is one.

    Raises:
        ModelError: it cannot be read, or is not of this model.
    """
    device = next(model.parameters()).device
    # safetensors reads nothing to the device meta, where values that are copied get lost.
    options = {"is_trainable": trainable, "torch_device": "cpu" if device.type == "meta" else str(device)}
    with reading("The adapter", adapter):
        config = peft.LoraConfig.from_pretrained(str(adapter))
        config.lora_dropout = 0.0  # policy and reference must be one model before the first step
        config.inference_mode = not trainable
        with safe_open(adapter / ADAPTER_WEIGHTS, "pt") as stored:  # before it may go over the base's own weights
            kept = {key for key in stored.keys() if not _is_of_base(key, stored, model)}  # noqa: SIM118 - no mapping
        if isinstance(model, peft.PeftModel):
            model.load_adapter(str(adapter), name, peft_config=config, **options)
        else:
            model = peft.PeftModel.from_pretrained(model, str(adapter), adapter_name=name, config=config, **options)
    require_untied(model, f"The adapter in {adapter}")
    wanted = set(peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    if wanted != kept:  # peft would leave what is missing random or zero, and only warn
        raise ModelError(
            f"The adapter in {adapter} is not one of its base: it has {len(kept - wanted)} weights that have no place "
            f"there and lacks {len(wanted - kept)}, such as {min(wanted ^ kept)}. Name the base it was trained on in "
            f"base_model_name_or_path in {adapter / ADAPTER_CONFIG}."
        )
    return model


def require_untied(model: peft.PeftModel, what: str) -> None:
    """Raise ModelError if an adapter is on one of two layers that are a single weight.

    Merged it changes both, and apart from the weight only one: sampling and scoring would be of two models.
    """
    base = model.get_base_model()
    layers = base.get_input_embeddings(), base.get_output_embeddings()
    are_one = None not in layers and layers[0].weight is layers[1].weight  # configurations say so in several places
    if are_one and any(isinstance(layer, LoraLayer) for layer in layers):
        raise ModelError(
            f"{what} changes the embedding or the output layer, which are one weight in its base, so "
            "that it means one model merged and another apart. Merge it into a base with tie_word_embeddings: false, "
            "or train one without embed_tokens and lm_head among its target_modules."
        )


def _is_of_base(key: str, stored: Any, model: Any) -> bool:
    """Tell whether a weight is the base's own, which peft writes too where an adapter is on the output layer."""
    if ".base_layer." not in key:
        return False
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    weights = {name.replace(".base_layer.", "."): weight for name, weight in base.state_dict().items()}
    weight = weights.get(key.removeprefix("base_model.model.").replace(".base_layer.", "."))
    if weight is not None and weight.is_meta:
        return bool(list(weight.shape) == stored.get_slice(key).get_shape())
    return weight is not None and torch.equal(stored.get_tensor(key).to(weight), weight)


def lora_config(settings: LoraSettings) -> peft.LoraConfig:
    """Return the settings as peft takes them."""
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=settings.target_modules,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def require_targets(model: Any, settings: LoraSettings, setting: str) -> None:
    """Put adapters into a causal language model without any, which is of no other use afterwards.

    It may lie on the device meta; ``setting`` is the dotted key of ``target_modules``, for messages.

    Raises:
        RecipeError: a name matches no module, or a module cannot have an adapter that is trained.
    """
    wanted = settings.target_modules
    try:
        adapted = peft.get_peft_model(model, lora_config(settings))
    except (NotImplementedError, TypeError, ValueError) as error:
        names = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else []
        is_meant = names and all(re.fullmatch(r"[\w.]+", name) for name in names)
        hint = f" A text is a regular expression of whole names; as names they are a list: [{', '.join(names)}]."
        raise RecipeError(
            f"{setting}: {wanted} cannot be used with a {type(model).__name__}: {reason_of(error)}"
            f"{hint if is_meant else ''} Its modules are called: {', '.join(_kinds_of_layers(model))}.",
            (setting,),
        ) from error
    found = adapted.targeted_module_names
    unmatched = [
        name
        for name in (wanted if isinstance(wanted, list) else [])
        if not any(module == name or module.endswith(f".{name}") for module in found)
    ]
    if unmatched:
        raise RecipeError(
            f"{setting}: a {type(model).__name__} has no module {', '.join(unmatched)}. Its modules are called: "
            f"{', '.join(_kinds_of_layers(model))}.",
            (setting,),
        )
    _require_trainable_tables(model, setting)


def _require_trainable_tables(model: Any, setting: str) -> None:
    """Raise RecipeError if an adapter is where training or merging would lose it.

    TRL computes log-probabilities from the output layer's weight alone, and merging an adapter into an embedding that
    is the output layer, too, changes both.
    """
    is_tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if isinstance(model.get_output_embeddings(), LoraLayer):
        reason = "the output layer, whose adapter would not be trained"
    elif is_tied and isinstance(model.get_input_embeddings(), LoraLayer):
        reason = "the embedding, which is the output layer, too, so that merging would make another model"
    else:
        return
    raise RecipeError(f"{setting} names {reason}. Leave it out, as all-linear does.", (setting,))


def _kinds_of_layers(model: Any) -> list[str]:
    """Return what a model calls its linear layers, without their numbers."""
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | LoraLayer)]
    return sorted({name.removesuffix(".base_layer").rpartition(".")[2] for name in layers})


def is_continued(policy: ModelFiles, settings: LoraSettings | None) -> bool:
    """Tell whether training continues the policy's own adapter instead of adding one to merged weights."""
    return policy.adapter is not None and settings is not None and settings.save == "adapter"


def load_trainable(policy: ModelFiles, settings: LoraSettings, loading: Loading) -> peft.PeftModel:
    """Load a policy whose own adapter is trained further; its base is frozen.

    Raises:
        ModelError: as ``load_files``, or the settings ask for other adapters than the policy has.
    """
    assert policy.adapter is not None  # noqa: S101 - see is_continued
    require_fitting_lora(policy, settings)
    base = (load_quantized if settings.bits else load_model)(readable_directory(policy), loading)
    model = add_adapter(base, policy.adapter, POLICY, trainable=True)
    model.add_adapter("probe", lora_config(settings))
    shapes = [
        {key: weight.shape for key, weight in peft.get_peft_model_state_dict(model, adapter_name=name).items()}
        for name in (POLICY, "probe")
    ]
    model.delete_adapter("probe")
    differing = {key.rpartition(".lora_")[0] for key in dict(shapes[0].items() ^ shapes[1].items())}
    if differing:
        raise ModelError(
            f"{policy.name} has adapters in other modules than lora.target_modules asks for "
            f"({settings.target_modules}), such as {min(differing)}. Training goes on with the policy's own adapter "
            "where lora.save is adapter: name its modules, or set lora.save: merged for a new one over merged weights."
        )
    return model


def save_adapter(
    model: peft.PeftModel,
    start: ModelFiles,
    output: Path,
    dtype: torch.dtype,
    gathered: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the trained adapter; it names its base so that ``locate_model`` finds it again.

    ``gathered`` are the model's weights where each process holds a part of them only.
    """
    weights = peft.get_peft_model_state_dict(
        model, state_dict=gathered, adapter_name=POLICY, save_embedding_layers=False
    )
    output.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in weights.items()},
        output / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    config = copy.copy(model.peft_config[POLICY])
    config.base_model_name_or_path, config.revision = name_of_base(start, output)
    config.inference_mode = True
    config.save_pretrained(str(output))


def name_of_base(start: ModelFiles, output: Path) -> tuple[str, str | None]:
    """Return how an adapter in ``output`` names its base, and the base's revision on the hub.

    A base inside the run is named from the adapter's directory, so that a run may move as a whole. Other paths are
    absolute; names of packages and of the hub stay as they are.
    """
    named = start.name if start.adapter is None else base_of_adapter(start.adapter)
    if named.startswith(PACKAGE):
        return named, None
    path = expanded(named)
    if path.exists():
        before = None if start.adapter is None else read_json(start.adapter / ADAPTER_CONFIG)["base_model_name_or_path"]
        in_run = before is not None and not Path(before).is_absolute() and not Path(start.name).exists()
        return (os.path.relpath(path.resolve(), output.resolve()) if in_run else str(path.absolute())), None
    if hub := HubModel.of(named):
        return (hub.repository, hub.revision) if hub.file is None else (named, None)
    return os.path.relpath(start.directory.resolve(), output.resolve()), None  # pi_0, pi_1 ...: a policy of the run
