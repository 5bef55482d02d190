"""Files in the formats of alpaca_eval: instructions, outputs and annotations."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from crosspref.data.items import Item, Problems, id_of, unique
from crosspref.data.rows import Row, text_problem
from crosspref.data.sources import TEXT_COLUMNS, first_of
from crosspref.run.store import write_text

OUTPUTS, ANNOTATIONS = "model_outputs", "annotations"
"""Names of a language's file where each language has a folder."""


def read_items(rows: Sequence[Row], problems: Problems) -> list[Item]:
    """Return the instructions of one language; of an id that has two different ones, neither."""

    def items() -> Iterator[tuple[str, str, Item]]:
        for place, row in enumerate(rows):
            item_id, text = id_of(row), first_of(row, TEXT_COLUMNS)
            if item_id is None or not isinstance(text, str) or text_problem(text):
                problems.counts["items without id or text"] += 1
            else:
                yield item_id, text, Item(item_id, place, text)

    return list(unique(items(), problems).values())


def read_preference(value: object) -> float | None:
    """Return a preference in [1, 2], 1.5 for a tie (which is also written 0), or None where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if value == 0:
        return 1.5
    return float(value) if 1 <= value <= 2 else None


def write_json(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as alpaca_eval does: one JSON list."""
    write_text(path, json.dumps(rows, ensure_ascii=False, indent=2) + "\n")
