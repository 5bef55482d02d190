"""Trains on the pairs of ``training.py``, in each of the processes that a launcher starts; rank 0 writes the figures.

Arguments: the model, the folder for what is written, the train settings as JSON, and how many pairs.
"""

import json
import sys
from pathlib import Path

import torch
from training import PAIRS, make_trainer, train

from crosspref.run.ranks import is_main


def main() -> None:
    """Train."""
    model, folder, changes, count = sys.argv[1:]
    torch.set_num_threads(1)
    trainer = make_trainer(Path(model), **json.loads(changes))
    if is_main():
        (Path(folder) / "out").mkdir(parents=True, exist_ok=True)
    figures = train(trainer, Path(folder), PAIRS[: int(count)])
    if is_main():
        (Path(folder) / "figures.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
