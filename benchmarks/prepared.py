"""What every line of `make bench` works on: two models that differ, prompts, and responses that were drawn once."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import workload
from timing import machine
from transformers import AutoModelForCausalLM

from crosspref.data.records import Pair, Prompt, Response, Score
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.engines.transformers.models import load_tokenizer, readable_directory
from crosspref.languages import ENGLISH
from crosspref.models.locate import ModelFiles, locate_model
from crosspref.recipe.schema import Recipe
from crosspref.stages.sample import sample
from crosspref.stages.score import score

RANK, SIZE = 16, 0.02
"""Rank of the policy's adapter, and the standard deviation of its made-up weights: a policy some nats from pi_I."""


SHORT = 512
"""Tokens of a prompt, for the lines that would take too long or too much memory with longer ones."""


def quiet(*_: Any) -> None:
    """Show no progress."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; picklable, since some lines are measured in processes of their own."""

    model: str
    prompts_from: str
    prompts: int
    responses: int
    new_tokens: int
    rounds: int
    sample_prompts: int
    iteration_prompts: int
    pairs: int
    dtype: str
    threads: int
    cache: Path

    @property
    def torch_dtype(self) -> torch.dtype:
        """The number format of all rivals."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


@dataclass(frozen=True, slots=True)
class Prepared:
    """The fixed workload. ``initial`` is pi_I; ``adapter`` and ``policy`` are one policy, as adapter and as weights."""

    options: Options
    initial: ModelFiles
    adapter: ModelFiles
    policy: ModelFiles
    prompts: list[Prompt]
    responses: list[Response]

    def recipe(self, **sections: Any) -> Recipe:
        """Return a recipe with crosspref's defaults, but for what the workload says and the sections given."""
        own = {
            "sample": {"n": self.options.responses, "max_new_tokens": self.options.new_tokens},
            # With so few new tokens most are truncated; and every prompt is to give a pair, as in the scripts.
            "select": {"truncated": "keep", "min_gap": 0.0},
            "resources": {"dtype": self.options.dtype, "device": "cpu", "threads": self.options.threads},
        }
        return workload.recipe(self.policy.name, self.initial.name, "none", **{**own, **sections})

    def engines(self) -> EngineFactory:
        """Return the engines of that recipe."""
        return EngineFactory(EngineSettings.of(self.recipe()))

    def tokenizer(self) -> Any:
        """Return the models' tokenizer, which builds prompts' ids."""
        return load_tokenizer(readable_directory(self.initial))

    def first(self, count: int) -> "Prepared":
        """Return the workload of the first prompts only."""
        prompts = self.prompts[:count]
        ids = {prompt.prompt_id for prompt in prompts}
        return dataclasses.replace(
            self, prompts=prompts, responses=[row for row in self.responses if row.prompt_id in ids]
        )

    def short(self) -> "Prepared":
        """Return the workload without its longest prompts, behind which TRL's logits would not fit into memory."""
        tokenizer = self.tokenizer()
        ids = {row.prompt_id for row in self.prompts if len(tokenizer.prompt_ids(row.instruction)) <= SHORT}
        return dataclasses.replace(
            self,
            prompts=[row for row in self.prompts if row.prompt_id in ids],
            responses=[row for row in self.responses if row.prompt_id in ids],
        )

    def with_responses(self, responses: list[Response]) -> "Prepared":
        """Return the workload with other responses to its prompts."""
        return dataclasses.replace(self, responses=responses)

    def rows(self) -> list[tuple[list[int], list[list[int]]]]:
        """Return for each prompt its ids and those of its responses, end of turn included, as crosspref counts them."""
        tokenizer = self.tokenizer()
        found: dict[str, list[list[int]]] = {prompt.prompt_id: [] for prompt in self.prompts}
        for row in self.responses:
            found[row.prompt_id].append(list(row.token_ids or ()))
        return [(tokenizer.prompt_ids(prompt.instruction), found[prompt.prompt_id]) for prompt in self.prompts]

    def tokens(self) -> int:
        """Return how many response tokens there are."""
        return sum(len(row.token_ids or ()) for row in self.responses)

    def pairs(self, count: int) -> list[Pair]:
        """Return the first two responses to each of the first prompts as pairs; which is better does not matter."""
        found = []
        for prompt in self.prompts[:count]:
            one, other = [row for row in self.responses if row.prompt_id == prompt.prompt_id][:2]
            user = [{"role": "user", "content": prompt.instruction}]
            chosen, rejected = ([{"role": "assistant", "content": row.text}] for row in (one, other))
            ids = one.token_ids, other.token_ids
            found.append(Pair(prompt.prompt_id, ENGLISH, user, chosen, rejected, 0, 1, *ids, None, None, None))
        return found


def rate(scorer: Any, work: Prepared) -> list[Score]:
    """Score the workload by crosspref's own stage."""
    settings = work.recipe().reward
    return score(
        work.responses, work.prompts, scorer, settings=settings, reward="multilingual", advance=lambda *_: None
    )


def draw(sampler: Any, work: Prepared, iteration: int) -> list[Response]:
    """Sample responses to the workload's prompts by crosspref's own stage."""
    n = work.options.responses
    return sample(work.prompts, sampler, n=n, seed=workload.SEED, iteration=iteration, advance=quiet)


def prepare(options: Options) -> Prepared:
    """Make the policy, take the prompts and draw the responses, or read what was made before."""
    # As a plain directory, which the adapter names as its base, too: else they would not share it.
    initial = locate_model(str(readable_directory(locate_model(options.model))))
    adapter, policy = make_policy(initial, options.cache)
    prompts = workload.english(options.prompts_from, options.prompts)
    work = Prepared(options, initial, adapter, policy, prompts, [])
    return dataclasses.replace(work, responses=drawn(work, options.cache / "workload.json"))


def make_policy(initial: ModelFiles, cache: Path) -> tuple[ModelFiles, ModelFiles]:
    """Write a policy that differs from pi_I, as a LoRA adapter of made-up weights and merged, if it is not there."""
    root = cache / "models" / initial.identity[:16]
    base, adapter, merged = readable_directory(initial), root / "adapter", root / "policy"
    if not (merged / "config.json").exists():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        lora = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, lora)
        torch.manual_seed(workload.SEED)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.copy_(SIZE * torch.randn_like(weight))
        model.save_pretrained(adapter)
        model.merge_and_unload().save_pretrained(merged)
        for pattern in ("tokenizer*", "*.jinja", "special_tokens_map.json", "vocab*", "merges.txt"):
            for file in base.glob(pattern):
                (merged / file.name).write_bytes(file.read_bytes())
    return locate_model(str(adapter)), locate_model(str(merged))


def drawn(work: Prepared, cache: Path) -> list[Response]:
    """Return the policy's responses to the prompts: those in the cache, unless they are of another workload."""
    options = work.options
    key = [work.policy.identity, options.responses, options.new_tokens, options.dtype, workload.SEED]
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


def facts(work: Prepared) -> dict[str, Any]:
    """Return on what was measured, without anything of the texts."""
    options, found = work.options, machine(work.options.threads)
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
    return {"machine": found, "settings": settings}
