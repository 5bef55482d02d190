"""``crosspref train``: train a model on preference pairs (Eq. 11, 16)."""

import argparse
from pathlib import Path

from crosspref.commands import TABLE, Commands, add_set, languages_of, stage_engines


def add(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    text = "train a model on preference pairs (Eq. 11, 16); if it was stopped, the same command resumes it"
    parser = commands.add_parser("train", help=text, description=text)
    parser.add_argument("--model", required=True, help="the model that training starts from, and its own reference")
    parser.add_argument("--pairs", required=True, help=f"table of pairs {TABLE}")
    parser.add_argument("--reference", help="the training reference, if it is not the model itself")
    parser.add_argument("--out", required=True, help="the directory for the trained model, which must not exist yet")
    add_set(parser)
    parser.set_defaults(command=_train)


def _train(options: argparse.Namespace) -> None:
    import shutil

    from crosspref.data.records import Pair
    from crosspref.data.tables import read_rows
    from crosspref.errors import DataError
    from crosspref.models.locate import locate_model
    from crosspref.recipe.files import stage_settings
    from crosspref.recipe.stages import TrainStage
    from crosspref.run.progress import Reporter
    from crosspref.run.ranks import is_main
    from crosspref.run.store import Unit, publish_directory
    from crosspref.stages.train import Training

    out = Path(options.out)
    if out.exists():
        raise DataError(f"{out} is there already, and is not overwritten. Name another --out, or remove it.")
    pairs = read_rows(options.pairs, Pair)
    settings = stage_settings(TrainStage, {"languages": languages_of(pairs, options.pairs)}, options.overrides)
    start = locate_model(options.model)
    reference = locate_model(options.reference) if options.reference else None
    # Named by what determines the policy, so that checkpoints of other pairs or settings are never resumed.
    every = out.with_name(out.name + ".checkpoints")
    checkpoints = every / Training("train", settings.train, start, reference).fingerprint(settings.seed, pairs).digest
    temporary = Unit(checkpoints / "policy").temporary()
    trainer = stage_engines(settings).trainer(start, settings.train, reference)
    with Reporter().step("train", len(pairs) * settings.train.epochs) as meter:
        trainer.train(pairs, temporary, checkpoints, meter.advance)
    publish_directory(temporary, out)
    if is_main():  # of processes that torchrun or accelerate started
        shutil.rmtree(every)
