"""Run directories that tests make by hand, with the store's own writers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosspref.recipe.files import dump_recipe, make_recipe
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Fingerprint, Unit, write_text

MADE = Fingerprint({"made": "by hand"})


def begin(root: Path, **sections: Any) -> RunDirectory:
    """Write a run that has nothing but its recipe."""
    content = {
        "models": {"initial": "base", "policy": "aligned"},
        "languages": ["en", "es"],
        "prompts": {"source": "prompts.jsonl"},
    }
    run = RunDirectory(root)
    write_text(run.recipe, dump_recipe(make_recipe({**content, **sections})))
    return run


def store(unit: Unit, rows: Sequence[Any], kind: type, fingerprint: Fingerprint = MADE) -> None:
    """Write a table and its marker."""
    unit.write_rows(rows, kind)
    unit.finish(fingerprint, len(rows))
