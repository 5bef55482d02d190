"""The ready configurations, read and validated by the libraries that they are for. Untried on a GPU."""

import json

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from crosspref.recipe.files import FOLDER

RECIPES = FOLDER / "distributed"
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def test_every_configuration_is_known_here() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name: str) -> None:
    config = load_config_from_file(str(RECIPES / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    assert config.num_processes == 8
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
    if name.startswith("zero"):
        assert (RECIPES / config.deepspeed_config["deepspeed_config_file"]).is_file()


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_reads_it(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    runtime = pytest.importorskip("deepspeed.runtime.config")
    content = json.loads((RECIPES / f"zero{stage}.json").read_text())
    # What transformers puts in for "auto", from the recipe.
    content.update(train_micro_batch_size_per_gpu=4, gradient_accumulation_steps=2, train_batch_size=8)
    content.update(gradient_clipping=1.0, bf16={"enabled": True})
    config = runtime.DeepSpeedConfig(content)
    assert config.zero_optimization_stage == stage
    assert config.zero_enabled
    assert (config.train_batch_size, config.gradient_accumulation_steps) == (8, 2)
    assert config.bfloat16_config.enabled
