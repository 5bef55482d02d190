"""``crosspref train``: train a model on preference pairs (Eq. 11, 16)."""

import argparse
import contextlib
import json
import shutil

from crosspref.commands import TABLE, add_set, languages_of
from crosspref.data.records import Pair
from crosspref.data.tables import read_rows
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.errors import DataError
from crosspref.models.locate import locate_model
from crosspref.paths import require_named, require_writable
from crosspref.recipe.files import stage_settings
from crosspref.recipe.stages import TrainStage
from crosspref.run.job import asking_of
from crosspref.run.owned import held
from crosspref.run.progress import Reporter
from crosspref.run.ranks import is_main
from crosspref.run.store import Unit, publish_directory, write_text
from crosspref.stages.train import Training, say_left_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="the model that training starts from, and its own reference")
    parser.add_argument("--pairs", required=True, help=f"table of pairs {TABLE}")
    parser.add_argument("--reference", help="the training reference, if it is not the model itself")
    parser.add_argument(
        "--out",
        required=True,
        type=require_named,
        help="the directory for the trained model, which must not exist yet; OUT.training.json gets the losses",
    )
    add_set(parser)


def execute(options: argparse.Namespace) -> None:
    out = options.out
    if out.exists():
        raise DataError(f"{out} is there already, and is not overwritten. Name another --out, or remove it.")
    losses = require_writable(out.with_name(f"{out.name}.training.json"))
    pairs = read_rows(options.pairs, Pair)
    settings = stage_settings(TrainStage, {"languages": languages_of(pairs, options.pairs)}, options.overrides)
    start = locate_model(options.model)
    reference = locate_model(options.reference) if options.reference else None
    # Named by what determines the policy, so that checkpoints of other pairs or settings are never resumed.
    every = out.with_name(out.name + ".checkpoints")
    training = Training("train", settings.train, start, reference, asking_of(settings.models))
    reporter = Reporter()
    checkpoints = every / training.fingerprint(settings.seed, pairs).digest
    # Of processes that torchrun or accelerate started, one writes.
    with held(checkpoints) if is_main() else contextlib.nullcontext():
        temporary = Unit(checkpoints / "policy").temporary()
        trainer = EngineFactory(EngineSettings.of(settings)).trainer(start, settings.train, reference)
        with reporter.step("train", len(pairs) * settings.train.epochs) as meter:
            figures = trainer.train(pairs, temporary, checkpoints, meter.advance)
        publish_directory(temporary, out)
        say_left_out(reporter, training, figures)
        if is_main():
            write_text(losses, json.dumps(figures, indent=1))
            shutil.rmtree(checkpoints)
            with contextlib.suppress(OSError):  # it holds the checkpoints of another training, or somebody's files
                every.rmdir()
