"""The examination of a recipe before any work: what would stop it later, found in seconds, without a weight in memory.

It reads what a run will read, by the same functions: device, libraries, tokenizers, chat templates, configurations,
adapters, and the headers of the weights. Models are put on torch's device ``meta``, where weights have a name, a shape
and a number format, but no values. What only values can show, such as NaN, is found when a model is loaded.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from crosspref.data.prompts import load_prompts
from crosspref.data.records import Prompt, as_messages
from crosspref.engines import EngineSettings, require_library
from crosspref.engines.transformers import adapters, models
from crosspref.engines.transformers.asking import examine_asking
from crosspref.engines.transformers.chat import ChatTokenizer, load_tokenizer, read_tokenizer, stop_ids
from crosspref.engines.transformers.faults import reading, reason_of
from crosspref.errors import CrossprefError, DataError, ModelError, RecipeError, explained
from crosspref.models.files import ADAPTER_WEIGHTS
from crosspref.models.locate import ModelFiles, is_encoder_decoder
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import REFERENCE_FREE, SampleSettings, TrainSettings

META = torch.device("meta")
SPARE_TOKENS = 64
"""How many tokens a chat template may put around a conversation beyond those around a short one."""


class Examination:
    """Looks at everything that a recipe names; ``lines`` are what was found, and ``faults`` what would stop a run.

    A line begins with ``ok`` or, for what is worth a look but stops nothing, with ``note``.
    """

    def __init__(self, recipe: Recipe, files: Mapping[str, ModelFiles], *, convert: bool) -> None:
        """Take a recipe, its models by role as ``api.check_models`` returns them, and whether to convert GGUF files.

        That is what a run begins with. It may take minutes, and without it such a model is left out here.
        """
        self.convert = convert
        self.recipe, self.files, self.settings = recipe, files, EngineSettings.of(recipe)
        self.tokenizers: dict[str, ChatTokenizer] = {}
        self.models: dict[str, Any] = {}
        self.lines: list[str] = []
        self.faults: list[CrossprefError] = []
        checks: list[Callable[[], None]] = [
            self._libraries,
            *(lambda role=role: self._model(role) for role in files),
            self._asking,
            self._sampling,
            self._translating,
            *(lambda part=part: self._training(*part) for part in self._trainings()),
            self._device,
        ]
        for check in checks:
            try:
                check()
            except Exception as error:  # noqa: BLE001 - whatever else a library stumbles over
                fault = explained(error)
                self.faults.append(fault or ModelError(f"The models cannot be examined: {reason_of(error)}"))

    @property
    def policy(self) -> str:
        """The role of the model that answers first: the policy, or the initial model of which stage 0 makes one."""
        return "policy" if "policy" in self.files else "initial"

    def _libraries(self) -> None:
        """Look for the optional libraries that the recipe's choices need."""
        recipe = self.recipe
        loras = [section.lora for section in (recipe.align_english, recipe.train) if section is not None]
        needed = {
            "vllm": (recipe.sample.engine == "vllm", "sample.engine: vllm"),
            "openai": ("server" in (recipe.sample.engine, recipe.reward.engine), "The engine server"),
            "ray": (recipe.resources.executor == "ray", "resources.executor: ray"),
            "bitsandbytes": (any(lora is not None and lora.bits for lora in loras), "lora.bits: 4 (QLoRA)"),
            "gguf": (any(files.gguf_file for files in self.files.values()), "Reading GGUF files"),
        }
        for library, (is_needed, purpose) in needed.items():
            if is_needed:
                require_library(library, purpose)
                self.lines.append(f"ok    library {library}")

    def _model(self, role: str) -> None:
        """Load a model's tokenizer, its configuration, and the names and shapes of its weights."""
        files, asking = self.files[role], self.settings.asking
        if not (self.convert or models.is_readable(files)):
            if importlib.util.find_spec("gguf") is not None:  # else that is said already
                models.require_gguf(files)
            self.lines.append(f"note  model {role}: {files.name} is converted, and then examined, when the run begins")
            return
        if role == "translator" and is_encoder_decoder(files):
            read_tokenizer(files.directory, asking.trust_remote_code)
            self.models[role] = self._on_meta(files, AutoModelForSeq2SeqLM)
        else:
            self.tokenizers[role] = load_tokenizer(models.readable_directory(files), asking)
            kind = AutoModelForSequenceClassification if role == "reward model" else None
            self.models[role] = self._on_meta(files, kind)
            config = self.models[role].config
            models.require_embeddings(self.tokenizers[role], config, files.name)
            stop_ids(models.read_generation(models.readable_directory(files), config), self.tokenizers[role])
        model = self.models[role]
        self.lines.append(
            f"ok    model {role}: {files.name} ({type(model).__name__}, {model.num_parameters() / 1e6:,.1f} million "
            "parameters)"
        )
        if role == "policy" and "initial" in self.files:
            self.lines.append("ok    policy and initial model have the same tokenizer and chat template")

    def _on_meta(self, files: ModelFiles, kind: Any = None) -> Any:
        """Return a model without its values, with its adapter."""
        trusted, directory = self.settings.trust_remote_code, models.readable_directory(files)
        if any(directory.glob("*.safetensors")):
            model = models.load_model(directory, models.Loading(META, trust_remote_code=trusted), kind)
        else:  # the weights are not fetched from the hub yet
            config = models.read_config(directory, trusted)
            with reading("The configuration", directory), META:
                model = (kind or models.language_model(config)).from_config(config, trust_remote_code=trusted)
        if files.adapter is not None and (files.adapter / ADAPTER_WEIGHTS).is_file():
            adapters.add_adapter(model, files.adapter, adapters.POLICY)
        return model

    def _asking(self) -> None:
        if self.policy in self.tokenizers:
            self.lines += examine_asking(self.recipe, self.tokenizers[self.policy])

    def _sampling(self) -> None:
        """See that the policy's context has room for a prompt beside a response, and count the prompts that have none.

        A language whose prompts are all too long would be noticed late.
        """
        recipe, tokenizer = self.recipe, self.tokenizers.get(self.policy)
        if tokenizer is None or self.policy not in self.models:
            return  # a fault that is known
        longest = self._room(self.policy, recipe.sample, "sample.max_new_tokens")
        try:
            prompts = load_prompts(recipe.prompts, recipe.languages).prompts
        except DataError:
            return  # whoever reads them for the run says so
        too_long = [prompt for prompt in prompts if not _fits(prompt, tokenizer, longest)]
        for language in recipe.languages:
            count = sum(prompt.language == language for prompt in prompts)
            dropped = sum(prompt.language == language for prompt in too_long)
            text = f"{dropped} of {count} prompts in {language!r} are longer than the {longest:,.0f} tokens"
            if dropped and dropped == count:
                raise RecipeError(
                    f"{text} that have room beside a response of sample.max_new_tokens ({recipe.sample.max_new_tokens})"
                    f", with sample.max_prompt_tokens ({recipe.sample.max_prompt_tokens}), so none can be answered. "
                    "Change these settings, or name a model with a longer context.",
                    ("sample.max_new_tokens", "sample.max_prompt_tokens"),
                )
            if dropped:
                self.lines.append(f"note  {text} that a prompt may have, and will be dropped")

    def _translating(self) -> None:
        role = "translator" if "translator" in self.files else self.policy
        if self.recipe.needs_translations and role in self.tokenizers and role in self.models:
            tokens = self.recipe.translate.max_new_tokens
            sample = self.recipe.sample.model_copy(update={"max_new_tokens": tokens})
            self._room(role, sample, "translate.max_new_tokens")

    def _room(self, role: str, sample: SampleSettings, setting: str) -> float:
        return models.longest_prompt(sample, self.models[role].config, setting=setting)

    def _trainings(self) -> Iterator[tuple[str, str, TrainSettings]]:
        """Yield the role of a model that training starts from, the section of the recipe, and its settings."""
        if self.recipe.align_english is not None:
            yield "initial", "align_english", self.recipe.align_english
        if self.recipe.iterations:
            yield self.policy, "train", self.recipe.train

    def _training(self, role: str, section: str, training: TrainSettings) -> None:
        """See that a model can be trained, and has the modules that are to get adapters."""
        if role not in self.models:
            return  # a fault that is known
        files = self.files[role]
        quantizer = getattr(self.models[role], "hf_quantizer", None)
        if quantizer is not None and not getattr(quantizer.quantization_config, "dequantize", False):
            raise ModelError(
                f"The weights of {files.name} are quantised ({quantizer.quantization_config.quant_method}), and cannot "
                f"be trained. Name the original weights; {section}.lora.bits: 4 quantises them while training."
            )
        if training.lora is None:
            return
        whole = training.lora.model_copy(update={"bits": None})
        if adapters.is_continued(files, whole):
            adapters.load_trainable(files, whole, models.Loading(META))
        else:
            base = self._on_meta(ModelFiles(files.name, files.directory, files.gguf_file, files.identity))
            adapters.require_targets(base, whole, f"{section}.lora.target_modules")

    def _device(self) -> None:
        """Look for the device, and compare its memory with the weights, which are the least that has to fit."""
        if self.recipe.resources.executor == "ray":  # devices and memory are the workers'
            return
        loading = models.Loading.of(self.settings)
        device, is_gpu = loading.device, loading.device.type == "cuda"
        available = torch.cuda.mem_get_info(device)[1] if is_gpu else psutil.virtual_memory().total
        dtype = str(loading.dtype).removeprefix("torch.")
        self.lines.append(f"ok    device {device} with {available / 1e9:,.1f} GB, computing in {dtype}")
        for name, parameters in self._held_together():
            needed = parameters * loading.dtype.itemsize
            if needed > available:
                raise ModelError(
                    f"{name} does not fit: the weights alone take {needed / 1e9:,.1f} GB, and {device} has "
                    f"{available / 1e9:,.1f} GB. Use a smaller model, a larger device, or an engine that spreads the "
                    "model over several devices; `crosspref plan` says more."
                )

    def _held_together(self) -> Iterator[tuple[str, float]]:
        """Yield a name and the parameters of what has to be on one device, at the least."""
        recipe, policy = self.recipe, self.policy
        parameters = {role: model.num_parameters() for role, model in self.models.items()}
        samples_here = recipe.sample.engine == "transformers"
        scores_here = recipe.language_imbalance is None and recipe.reward.engine == "transformers"
        trains_here = recipe.resources.launch is None and not (recipe.train.lora and recipe.train.lora.bits)
        if policy in parameters and (samples_here or scores_here or trains_here):
            yield f"The policy {self.files[policy].name}", parameters[policy]
        # Models over one base share it; of a pi_0 that stage 0 will make it is not known yet.
        has_two = {"initial", "policy"} <= parameters.keys() and recipe.reward.algorithm not in REFERENCE_FREE
        if scores_here and has_two and self.files["policy"].base != self.files["initial"].base:
            both = parameters["policy"] + parameters["initial"]
            yield f"Scoring with {self.files['policy'].name} and its reference", both
        for role in ("translator", "reward model"):
            if role in parameters:
                yield f"The {role} {self.files[role].name}", parameters[role]


def _fits(prompt: Prompt, tokenizer: ChatTokenizer, longest: float) -> bool:
    """Tell whether a prompt has at most ``longest`` tokens; most are so short that nothing need be counted."""
    messages = as_messages(prompt.instruction)
    characters = sum(len(message["content"].encode()) for message in messages)
    if characters + SPARE_TOKENS * (1 + len(messages)) <= longest:  # a token is a byte at the least
        return True
    return len(tokenizer.prompt_ids(prompt.instruction)) <= longest
