"""The methods against TRL's own trainers, where a step of TRL's is one micro-batch."""

from pathlib import Path
from typing import Any

import datasets
import naive
import pytest
import torch
from training import PAIRS, Models, Watch, assert_close, make_trainer, train, watch
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from crosspref.engines.training.kto import kto_examples
from crosspref.engines.training.trainer import example_of
from crosspref.engines.transformers.chat import load_tokenizer

pytestmark = pytest.mark.slow

TEN = PAIRS[:10]
WEIGHTS = {"desirable_weight": 1.4, "undesirable_weight": 0.7}


class GivenIds:
    """Lets a trainer of TRL take token ids that are there already."""

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        return dataset


class TheirDpo(GivenIds, DPOTrainer):
    """TRL's trainer of losses on pairs."""


class TheirKto(GivenIds, KTOTrainer):
    """TRL's trainer of KTO."""


def their_step(
    method: str, start: Path, reference: Path, folder: Path, **settings: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradients of TRL's first step, which takes everything at once."""
    tokenizer, watcher = load_tokenizer(start), Watch()
    rows: list[dict[str, Any]] = [example_of(pair, tokenizer) for pair in TEN]
    config: Any = DPOConfig
    if method == "kto":
        config = KTOConfig
        settings["train_sampling_strategy"] = "sequential"
        names = {"response_ids": "completion_ids", "kl_response_ids": "KL_completion_ids", "desirable": "label"}
        examples = kto_examples(rows, longest=4096)
        rows = [{names.get(name, name): value for name, value in example.items()} for example in examples]
    arguments = config(
        output_dir=str(folder),
        per_device_train_batch_size=len(rows),
        learning_rate=1e-3,
        max_grad_norm=1e9,
        max_length=None,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        max_steps=1,
        logging_steps=1,
        **settings,
    )
    trainer = (TheirKto if method == "kto" else TheirDpo)(
        model=naive.load(start),
        ref_model=naive.load(reference),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer.tokenizer,
        callbacks=[watcher],
    )
    trainer.train()
    return trainer.state.log_history[0]["loss"], watcher.gradients[0]


@pytest.mark.parametrize(
    ("method", "theirs", "ours"),
    [
        ("dpo", {"loss_type": ["sigmoid"]}, {}),
        ("ipo", {"loss_type": ["ipo"]}, {}),
        ("kto", {}, {}),
        ("kto", WEIGHTS, WEIGHTS),
    ],
    ids=["dpo", "ipo", "kto", "kto-weighted"],
)
def test_loss_and_gradients_are_those_of_trl(
    method: str,
    theirs: dict[str, Any],
    ours: dict[str, Any],
    tiny_models: Models,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = tiny_models["llama"][1]
    loss, gradients = their_step(method, start, reference, tmp_path / "trl", beta=0.3, **theirs)
    watcher = watch(monkeypatch)
    changes = {"beta": 0.3, "nll_weight": 0.0, "batch_size": 20, "micro_batch_size": 5, **ours}
    trainer = make_trainer(start, method=method, reference=reference, **changes)
    [entry] = train(trainer, tmp_path, TEN)["log"]
    assert entry["loss"] == pytest.approx(loss, abs=1e-4)
    assert entry.get("kl", 1) > 0.1
    assert_close(watcher.gradients[0], gradients, 1e-3)
