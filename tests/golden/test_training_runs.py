"""What a training leaves behind, and that a killed one ends as if it had not been killed."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from safetensors.torch import load_file, save_file
from training import END, LORA, KilledError, Models, train_until
from training import PAIRS as ALL_PAIRS
from training import make_trainer as make_any_trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from crosspref.data.records import Pair
from crosspref.engines.self_check import made_up_ids
from crosspref.engines.training import distributed
from crosspref.engines.training.distributed import WHOLE, last_checkpoint
from crosspref.engines.training.trainer import TrlTrainer, example_of
from crosspref.engines.transformers import adapters
from crosspref.engines.transformers.chat import load_tokenizer
from crosspref.errors import DataError, ModelError
from crosspref.models.locate import locate_model
from crosspref.models.tokenizers import tokenizer_identity
from crosspref.recipe.sections import LoraSettings

pytestmark = pytest.mark.slow

PAIRS = ALL_PAIRS[:14]
SMALL = {"batch_size": 4, "micro_batch_size": 2, "scheduler": "cosine", "warmup_ratio": 0.1, "max_grad_norm": 1.0}


def make_trainer(directory: Path, **changes: Any) -> TrlTrainer:
    return make_any_trainer(directory, **{**SMALL, **changes})


def text_pair(chosen: Sequence[int] | None, rejected: Sequence[int] | None) -> Pair:
    answers = [[{"role": "assistant", "content": text}] for text in ("Sí, así es.", "No.")]
    ids = [None if row is None else list(row) for row in (chosen, rejected)]
    return Pair("p", "es", [{"role": "user", "content": "¿Sí?"}], *answers, 0, 1, *ids, 0.5, 0.1, 0.0)


def train(trainer: TrlTrainer, folder: Path, pairs: Sequence[Pair] = PAIRS) -> dict[str, Any]:
    return trainer.train(pairs, folder / "out", folder / "checkpoints", lambda *_: None)


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


# Fourteen pairs in batches of four make four steps per pass, the last one of two pairs; eight steps in two passes.
@pytest.mark.parametrize(
    ("every", "killed_at", "lora", "method"),
    [
        pytest.param(2, [2], None, "dpo", id="before any checkpoint"),
        pytest.param(2, [2], LORA, "dpo", id="before any checkpoint, lora", marks=pytest.mark.nightly),
        pytest.param(3, [5], None, "dpo", id="inside a pass", marks=pytest.mark.nightly),
        pytest.param(3, [5], LORA, "dpo", id="inside a pass, lora"),
        pytest.param(4, [6], None, "dpo", id="between passes"),
        pytest.param(3, [4, 4], None, "dpo", id="twice"),
        pytest.param(3, [5], None, "kto", id="kto", marks=pytest.mark.nightly),
        pytest.param(3, [5], LORA, "kto", id="kto, lora"),
        pytest.param(4, [6], None, "kto", id="kto, between passes", marks=pytest.mark.nightly),
    ],
)
def test_a_killed_training_ends_with_the_same_weights(
    every: int, killed_at: list[int], lora: LoraSettings | None, method: str, tiny_models: Models, tmp_path: Path
) -> None:
    directory = tiny_models["llama"][1]
    changes = {"epochs": 2, "checkpoint_every": every, "lora": lora, "method": method}
    if method == "kto":
        # Twice as many examples as pairs, so as many steps. Without an NLL term, and faster, so that z_ref leaves 0.
        changes |= {"batch_size": 8, "nll_weight": 0.0, "learning_rate": 1e-2}
    expected = train(make_trainer(directory, **changes), tmp_path / "whole")
    assert expected["steps"] == 8

    folder = tmp_path / "killed"
    for steps in killed_at:
        train_until(make_trainer(directory, **changes), folder, steps, PAIRS)
        torch.manual_seed(sum(killed_at))  # another process has another state
    calls: list[tuple[int, int]] = []
    figures = make_trainer(directory, **changes).train(
        PAIRS, folder / "out", folder / "checkpoints", lambda *call: calls.append(call)
    )
    found, wanted = weights_of(folder / "out"), weights_of(tmp_path / "whole" / "out")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    start = weights_of(directory)
    assert any(not torch.equal(tensor, start[name]) for name, tensor in wanted.items())
    if method == "kto":
        assert max(entry["kl"] for entry in expected["log"]) > 0.1
    # The log is whole too, and the progress bar ends at all pairs.
    assert [entry["loss"] for entry in figures["log"]] == [entry["loss"] for entry in expected["log"]]
    assert sum(pairs for pairs, _ in calls) == 2 * len(PAIRS)
    # It resumed from a checkpoint, and did not begin again.
    assert len(calls) == 8 if every == 2 else len(calls) < 8


@pytest.mark.parametrize(("every", "kept"), [(4, {"checkpoint-4", "checkpoint-8"}), (5, {"checkpoint-5"}), (9, set())])
def test_no_checkpoint_is_written_only_since_training_ends(
    every: int, kept: set[str], tiny_models: Models, tmp_path: Path
) -> None:
    figures = train(make_trainer(tiny_models["llama"][1], epochs=2, checkpoint_every=every), tmp_path)
    assert figures["steps"] == 8
    assert {path.name for path in tmp_path.glob("checkpoints/checkpoint-*")} == kept


def test_an_old_checkpoint_is_followed_by_another(
    tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = train(make_trainer(tiny_models["llama"][1]), tmp_path / "usual")
    monkeypatch.setattr(distributed, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(distributed, "SAVING_SHARE", float("inf"))
    found = train(make_trainer(tiny_models["llama"][1]), tmp_path / "often")
    assert found == usual
    assert [path.name for path in sorted(tmp_path.glob("*/checkpoints/checkpoint-*"))] == [
        "checkpoint-2",
        "checkpoint-3",
    ]
    before, after = (weights_of(tmp_path / name / "out") for name in ("usual", "often"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_checkpoint_that_was_cut_off_is_removed_and_not_used(
    tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, changes = tiny_models["llama"][1], {"epochs": 2, "checkpoint_every": 2}
    train(make_trainer(directory, **changes), tmp_path / "whole")
    folder = tmp_path / "killed"
    original = distributed.Progress.on_save

    def on_save(self: Any, args: Any, state: Any, *rest: Any, **others: Any) -> None:
        if state.global_step == 4:
            raise KilledError
        original(self, args, state, *rest, **others)

    with monkeypatch.context() as patch:
        patch.setattr(distributed.Progress, "on_save", on_save)
        with pytest.raises(KilledError):
            train(make_trainer(directory, **changes), folder)
    whole, cut = folder / "checkpoints" / "checkpoint-2", folder / "checkpoints" / "checkpoint-4"
    assert (whole / WHOLE).exists()
    assert cut.exists()
    assert not (cut / WHOLE).exists()
    (cut / "model.safetensors").write_bytes(b"half")
    train(make_trainer(directory, **changes), folder)
    for name, tensor in weights_of(tmp_path / "whole" / "out").items():
        assert torch.equal(weights_of(folder / "out")[name], tensor), name


def test_last_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-9" / WHOLE).touch()
    (tmp_path / "checkpoint-10" / WHOLE).touch()
    (tmp_path / "checkpoint-11").write_text("no checkpoint of ours")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    left = {folder.name for folder in tmp_path.iterdir()}
    assert left == {"checkpoint-9", "checkpoint-10", "checkpoint-11", "checkpoint-best"}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_trained_directory_is_an_ordinary_model(
    lora: LoraSettings | None, tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits are those of the model that was trained, with its adapters if it has them."""
    directory, trained = tiny_models["llama"][1], []
    original = TrlTrainer._save

    def save(self: TrlTrainer, trainer: Any, output: Path) -> None:
        with torch.no_grad():
            model = trainer.accelerator.unwrap_model(trainer.model).eval()
            trained.append(model(input_ids=torch.arange(30)[None]).logits)
        original(self, trainer, output)

    monkeypatch.setattr(TrlTrainer, "_save", save)
    figures = train(make_trainer(directory, lora=lora, learning_rate=1e-2), tmp_path)
    assert (figures["pairs"], figures["too_long"], figures["steps"]) == (14, 0, 4)
    out = tmp_path / "out"
    assert {file.suffix for file in out.iterdir()} == {".safetensors", ".json", ".jinja"}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "checkpoints"}
    for source in directory.iterdir():
        if source.name.startswith("tokenizer") or source.name in ("chat_template.jinja", "generation_config.json"):
            assert (out / source.name).read_bytes() == source.read_bytes()
    assert tokenizer_identity(out) == tokenizer_identity(directory)
    chat = [{"role": "user", "content": "¿Qué?"}]
    texts = [AutoTokenizer.from_pretrained(path).apply_chat_template(chat, tokenize=False) for path in (out, directory)]
    assert texts[0] == texts[1]

    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model) is LlamaForCausalLM
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    with torch.no_grad():
        found, before = (each(input_ids=torch.arange(30)[None]).logits for each in (model, naive.load(directory)))
    torch.testing.assert_close(found, trained[0], rtol=0, atol=1e-3)
    assert float((found - before).abs().max()) > 0.1
    # The next iteration can start from it.
    assert locate_model(str(out)).identity != locate_model(str(directory)).identity


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_save_dtype(lora: LoraSettings | None, tiny_models: Models, tmp_path: Path) -> None:
    directory = tiny_models["llama"][1]
    for dtype in ("float32", "bfloat16"):
        train(make_trainer(directory, save_dtype=dtype, lora=lora), tmp_path / dtype)
    full, half = (weights_of(tmp_path / dtype / "out") for dtype in ("float32", "bfloat16"))
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    for name, tensor in full.items():
        assert torch.equal(half[name], tensor.bfloat16())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "bfloat16" / "out")
    assert model.dtype == torch.bfloat16


def test_weights_that_overflow_when_they_are_rounded_are_not_saved(tiny_models: Models, tmp_path: Path) -> None:
    """The largest numbers of float32 are infinite in bfloat16."""
    directory = shutil.copytree(tiny_models["llama"][1], tmp_path / "start")
    weights = load_file(directory / "model.safetensors")
    examples = [example for example in make_trainer(directory)._examples(PAIRS) if example is not None]
    used = {token for example in examples for ids in example.values() for token in ids}
    unused = max(set(range(len(weights["model.embed_tokens.weight"]))) - used - {*made_up_ids(naive.load(directory))})
    weights["model.embed_tokens.weight"][unused, 0] = torch.finfo(torch.float32).max
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="embed_tokens"):
        train(make_trainer(directory, save_dtype="bfloat16"), tmp_path)
    assert not (tmp_path / "out").exists()
    train(make_trainer(directory), tmp_path / "whole")


def test_pairs_that_are_too_long_are_dropped_and_counted(tiny_models: Models, tmp_path: Path) -> None:
    directory = tiny_models["llama"][1]
    prompt = len(naive.prompt_ids(directory, "¿Sí?"))
    # The longer of both responses decides, whichever it is.
    pairs = [
        text_pair(range(10, 20), range(10, 15)),  # fits to the token
        text_pair(range(10, 21), range(10, 15)),
        text_pair(range(10, 15), range(10, 21)),
        text_pair(range(10, 15), range(10, 20)),
    ]
    figures = train(make_trainer(directory, max_length=prompt + 10), tmp_path, pairs)
    assert (figures["pairs"], figures["too_long"], figures["steps"]) == (2, 2, 1)
    model = naive.load(directory)
    with torch.no_grad():
        nll = [
            -float(naive.token_logprobs(model, naive.prompt_ids(directory, "¿Sí?"), pair.chosen_token_ids or []).mean())
            for pair in (pairs[0], pairs[3])
        ]
    assert figures["log"][0]["nll_loss"] == pytest.approx(sum(nll) / 2, abs=1e-4)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_training_of_one_step_changes_the_weights(method: str, tiny_models: Models, tmp_path: Path) -> None:
    """A warm-up would begin with a learning rate of 0."""
    directory = tiny_models["llama"][1]
    figures = train(make_trainer(directory, method=method, batch_size=32, micro_batch_size=4, epochs=1), tmp_path)
    assert figures["steps"] == 1
    before, after = (load_file(folder / "model.safetensors") for folder in (directory, tmp_path / "out"))
    assert not all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_without_a_pair_that_fits_there_is_nothing_to_train(tiny_models: Models, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"14.*train\.max_length \(3 "):
        train(make_trainer(tiny_models["llama"][1], max_length=3), tmp_path)
    with pytest.raises(DataError):
        train(make_trainer(tiny_models["llama"][1]), tmp_path, [])
    assert not (tmp_path / "out").exists()


def test_pairs_of_text_end_their_turn_and_sampled_ids_stay_as_they_are(tiny_models: Models) -> None:
    directory = tiny_models["llama"][1]
    tokenizer, plain = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    text = [plain(words, add_special_tokens=False)["input_ids"] for words in ("Sí, así es.", "No.")]
    prompt = naive.prompt_ids(directory, "¿Sí?")
    assert example_of(text_pair(None, None), tokenizer) == {
        "prompt_ids": prompt,
        "chosen_ids": [*text[0], END],
        "rejected_ids": [*text[1], END],
    }
    # Cut at the token limit, so without an end-of-turn token: none is added.
    assert example_of(text_pair([50, 51], [60]), tokenizer) == {
        "prompt_ids": prompt,
        "chosen_ids": [50, 51],
        "rejected_ids": [60],
    }


def test_a_head_that_is_not_understood_is_not_trained(
    tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = adapters.load_model

    def load(*arguments: Any) -> Any:
        model = original(*arguments)
        forward = model.forward

        def louder(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            output.logits = output.logits * 1.5
            return output

        model.forward = louder
        return model

    monkeypatch.setattr(adapters, "load_model", load)
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be trained, since its output layer does more"):
        train(make_trainer(tiny_models["llama"][1]), tmp_path)
