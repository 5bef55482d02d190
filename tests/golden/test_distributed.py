"""Training in two gloo processes, which equals that in one; references that the pairs carry; 4-bit weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training import LORA, PAIRS, make_trainer, train

from crosspref.engines.training.distributed import real_items
from crosspref.engines.training.trainer import TrlTrainer
from crosspref.errors import MissingLibraryError, ModelError, RecipeError
from crosspref.recipe.files import FOLDER
from crosspref.stages.train import carrying

HERE = Path(__file__).parent
RECIPES = FOLDER / "distributed"
SETTINGS = {"batch_size": 4, "micro_batch_size": 1, "epochs": 2, "checkpoint_every": 3}
COUNT = 13
"""Pairs: the last of the four steps of an epoch holds a single one, which two processes have to share."""

Models = dict[str, tuple[Path, Path]]


def launch(folder: Path, model: Path, launcher: list[str], **changes: Any) -> dict[str, Any]:
    """Train in two processes and return the figures."""
    paths = [HERE, HERE.parent, HERE.parents[1] / "src"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    arguments = [str(HERE / "train_rank.py"), str(model), str(folder), json.dumps({**SETTINGS, **changes}), str(COUNT)]
    beside = Path(sys.executable).parent / launcher[0]
    done = subprocess.run(
        [str(beside), *launcher[1:], *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "figures.json").read_text())


TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2"]


def on_two_cpus(name: str, folder: Path) -> list[str]:
    """A ready configuration, with two processes and no GPU."""
    content = yaml.safe_load((RECIPES / name).read_text())
    content.update(num_processes=2, use_cpu=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(yaml.safe_dump(content))
    return ["accelerate", "launch", "--config_file", str(folder / name)]


def assert_same(folder: Path, figures: dict[str, Any], other: Path, expected: dict[str, Any]) -> None:
    assert len(figures["log"]) == len(expected["log"]) == 8
    for ours, theirs in zip(figures["log"], expected["log"], strict=True):
        for name in ("loss", "preference_loss", "nll_loss", "margin", "accuracy", "learning_rate"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), (name, ours["step"])
    weights, right = load_file(folder / "out" / "model.safetensors"), load_file(other / "out" / "model.safetensors")
    assert weights.keys() == right.keys()
    for name, tensor in right.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def single(tiny_models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The same training in one process."""
    folder = tmp_path_factory.mktemp("single")
    return folder, train(make_trainer(tiny_models["llama"][1], **SETTINGS), folder, PAIRS[:COUNT])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp.yaml", "fsdp2.yaml"])
def test_two_processes_train_as_one(
    name: str, single: tuple[Path, dict[str, Any]], tiny_models: Models, tmp_path: Path
) -> None:
    figures = launch(tmp_path, tiny_models["llama"][1], on_two_cpus(name, tmp_path / "config"))
    assert_same(tmp_path, figures, *single)
    sharded = list(tmp_path.glob("checkpoints/checkpoint-*/pytorch_model_fsdp_0"))
    assert bool(sharded) == (name == "fsdp2.yaml")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["ddp.yaml", "fsdp2.yaml"])
def test_two_processes_go_on_from_a_checkpoint(
    name: str, single: tuple[Path, dict[str, Any]], tiny_models: Models, tmp_path: Path
) -> None:
    launcher = on_two_cpus(name, tmp_path / "config")
    launch(tmp_path, tiny_models["llama"][1], launcher)
    first, last = tmp_path / "checkpoints" / "checkpoint-3", tmp_path / "checkpoints" / "checkpoint-6"
    for folder in (first, last):
        assert (folder / "crosspref_complete").exists()
    (last / "crosspref_complete").unlink()  # as if a kill had come
    untouched = (first / "trainer_state.json").stat().st_mtime_ns
    figures = launch(tmp_path, tiny_models["llama"][1], launcher)
    assert (first / "trainer_state.json").stat().st_mtime_ns == untouched
    assert_same(tmp_path, figures, *single)


@pytest.mark.slow
def test_kto_estimates_z_over_all_processes(tiny_models: Models, tmp_path: Path) -> None:
    expected = train(
        make_trainer(tiny_models["llama"][1], **SETTINGS, method="kto", learning_rate=1e-2),
        tmp_path / "one",
        PAIRS[:COUNT],
    )
    figures = launch(tmp_path / "two", tiny_models["llama"][1], TORCHRUN, method="kto", learning_rate=1e-2)
    ours, theirs = (
        [[step[name] for name in ("loss", "kl", "margin")] for step in f["log"]] for f in (figures, expected)
    )
    assert any(step[1] > 0 for step in theirs)
    assert ours == [pytest.approx(step, abs=2e-5) for step in theirs]


def test_items_that_fill_up_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    real = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        real[rank] = [real_items(2, 2, step, 11, 2).tolist() for step in (0, 1)]
    # Micro-batches in turn: 0 1 | 2 3 | 4 5 | 6 7, then 8 9 | 10 and one that fills up.
    assert real["0"] == [[[True, True]] * 2, [[True, True], [False, False]]]
    assert real["1"] == [[[True, True]] * 2, [[True, False], [False, False]]]


def test_a_batch_that_cannot_be_dealt_out(tiny_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match=r"batch_size 16 cannot be dealt out to 3 processes .* multiple of 12"):
        make_trainer(tiny_models["llama"][1])


@pytest.mark.slow
def test_pairs_that_carry_their_reference(
    single: tuple[Path, dict[str, Any]], tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_models["llama"][1], **SETTINGS, precompute_reference=True)
    found = trainer.reference_logprobs(PAIRS[:COUNT], lambda *_: None)
    pairs = [carrying(*both) for both in zip(PAIRS[:COUNT], found, strict=True)]
    loads, original = [], TrlTrainer._load

    def count(self: TrlTrainer, *arguments: Any) -> Any:
        loads.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(TrlTrainer, "_load", count)
    assert_same(tmp_path, train(trainer, tmp_path, pairs), *single)
    assert len(loads) == 1


@pytest.mark.slow
def test_a_stale_reference_is_found(tiny_models: Models, tmp_path: Path) -> None:
    other = make_trainer(tiny_models["llama"][0], **SETTINGS, precompute_reference=True)
    found = other.reference_logprobs(PAIRS[:4], lambda *_: None)
    pairs = [carrying(*both) for both in zip(PAIRS[:4], found, strict=True)]
    trainer = make_trainer(tiny_models["llama"][1], **SETTINGS, precompute_reference=True)
    with pytest.raises(ModelError, match="policy and its reference differ"):
        train(trainer, tmp_path, pairs)


@pytest.mark.slow
def test_another_reference_may_be_carried_too(tiny_models: Models, tmp_path: Path) -> None:
    initial, policy = tiny_models["llama"]
    usual = train(make_trainer(policy, reference=initial), tmp_path / "usual")
    carried = train(make_trainer(policy, reference=initial, precompute_reference=True), tmp_path / "carried")
    assert [step["loss"] for step in carried["log"]] == pytest.approx([step["loss"] for step in usual["log"]], abs=1e-5)


def test_four_bits_without_bitsandbytes(tiny_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'crosspref\[qlora\]'"):
        make_trainer(tiny_models["llama"][1], lora=LORA.model_copy(update={"bits": 4}))


@pytest.mark.slow
def test_four_bits(tiny_models: Models, tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    trainer = make_trainer(tiny_models["llama"][1], lora=LORA.model_copy(update={"bits": 4}), epochs=3)
    model = trainer._load(trainer.policy, trainer.loading)
    held = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(held) == 14  # seven in each of two layers; not the output layer
    assert all(module.weight.quant_state.nested for module in held)
    model.eval()(input_ids=torch.tensor([[5, 6]]))  # after a pass without gradients, they must still pass
    first = model.model.embed_tokens.weight.new_ones(1, 3, held[0].in_features).requires_grad_()
    held[0](first).sum().backward()
    assert first.grad.abs().sum() > 0
    losses = [step["loss"] for step in train(trainer, tmp_path)["log"]]
    assert losses[-1] < losses[0]
    assert (tmp_path / "out" / "model.safetensors").exists()
