"""People as judges: the sheet that they fill in, and how their votes are read and counted."""

import csv
import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from crosspref.data.rows import READERS, Row, columns_of, read_file, read_id
from crosspref.errors import DataError
from crosspref.maths.statistics import nominal_alpha
from crosspref.reports.table import inert
from crosspref.run.store import write_text
from crosspref.suites.reward_accuracy.judges import PEOPLE, Judged, Outcome
from crosspref.suites.reward_accuracy.pairs import Comparison

COLUMNS = ("id", "language", "prompt", "answer_a", "answer_b", "choice", "annotator")
CHOICES = {"a": 1.0, "b": 0.0, "tie": 0.5}
ALONE = "-"
"""The annotator of a vote that names none."""


def write_sheet(path: Path, pairs: Iterable[Comparison]) -> bool:
    """Write the sheet with an empty ``choice`` for every pair; tell whether that was done.

    One in which somebody has already made a choice, or that cannot be read, stays as it is.
    """
    if path.exists() and _is_begun(path):
        return False
    text = io.StringIO()
    # All of it quoted: a carriage return in an answer would end the row otherwise.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for pair in sorted(pairs, key=lambda pair: (pair.language, pair.pair_id)):
        texts = (inert(value) for value in (pair.instruction, pair.answer_a, pair.answer_b))
        writer.writerow([pair.pair_id, pair.language, *texts, "", ""])
    # The mark in front tells spreadsheets that it is UTF-8.
    write_text(path, "\ufeff" + text.getvalue())
    return True


def _is_begun(path: Path) -> bool:
    try:
        rows = read_file(path, str(path))
    except DataError:
        return True
    return any(row.values.get("choice") != "" for row in rows)


class Votes:
    """The votes of a file: who chose what of which pair, and what of the file could not be used.

    Raises:
        DataError: the file cannot be read as a whole, or has no columns id and choice.
    """

    def __init__(self, source: str) -> None:
        path = Path(source).expanduser()
        self.source, self.problems = source, Counter[str]()
        self.by_pair: dict[str, dict[str, float]] = {}
        if path.suffix.lower() not in READERS or not path.is_file():
            kinds = ", ".join(READERS)
            raise DataError(f"reward_accuracy.votes: {source} is no file, or of none of the kinds {kinds}.")
        rows = read_file(path, source)
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        known = columns_of(rows)
        if rows and not {"id", "choice"} <= set(known):
            raise DataError(
                f"reward_accuracy.votes: {source} needs the columns id and choice; it has "
                f"{', '.join(map(repr, known)) or 'none'}. Save it with commas between columns, as UTF-8."
            )
        contradicting = set()
        for row in rows:
            found = self._read(row)
            if found is not None:
                pair_id, annotator, choice = found
                first = self.by_pair.setdefault(pair_id, {}).setdefault(annotator, choice)
                if first != choice:
                    contradicting.add((pair_id, annotator))
        for pair_id, annotator in contradicting:
            del self.by_pair[pair_id][annotator]
        self.problems["pairs of which one person said two things"] += len(contradicting)

    def _read(self, row: Row) -> tuple[str, str, float] | None:
        if row.broken:
            self.problems["broken rows"] += 1
            return None
        choice = str(row.values.get("choice") or "").strip().lower()
        pair_id = read_id(row.values.get("id"))
        if not choice:
            return None  # nobody has come to it yet
        if pair_id is None or choice not in CHOICES:
            self.problems["rows without id" if pair_id is None else "choices other than a, b and tie"] += 1
            return None
        return pair_id.strip(), str(row.values.get("annotator") or "").strip() or ALONE, CHOICES[choice]

    def judged(self, pairs: Sequence[Comparison]) -> Judged:
        """Return what most annotators of each pair chose; where no choice has the most votes, it is a tie."""
        ids = {pair.pair_id for pair in pairs}
        votes = {pair_id: list(of.values()) for pair_id, of in self.by_pair.items() if of and pair_id in ids}
        problems = self.problems.copy()
        problems["pairs that are not in this sample"] = sum(bool(of) for of in self.by_pair.values()) - len(votes)
        names = {name for pair_id in votes for name in self.by_pair[pair_id]}
        count = len(names)
        about = {
            "file": self.source,
            "sha256": self.digest,
            "annotators": count,
            "votes": sum(map(len, votes.values())),
            **agreement(votes.values()),
            "problems": {reason: number for reason, number in problems.items() if number},
        }
        outcomes = {pair_id: Outcome(_most(found)) for pair_id, found in votes.items()}
        return Judged(PEOPLE, f"{count} annotator{'' if count == 1 else 's'}", outcomes, about=about)


def _most(votes: Sequence[float]) -> float:
    counts = Counter(votes).most_common(2)
    return 0.5 if len(counts) == 2 and counts[0][1] == counts[1][1] else counts[0][0]


def agreement(votes: Iterable[Sequence[float]]) -> dict[str, float | int | None]:
    """Return how far several who judged the same pairs agree: over how many pairs, in what share, and the alpha."""
    shared = [found for found in votes if len(found) > 1]
    if not shared:
        return {"shared_pairs": 0, "agreement": None, "alpha": None}
    alike, alpha = nominal_alpha(shared)
    return {"shared_pairs": len(shared), "agreement": alike, "alpha": None if math.isnan(alpha) else alpha}
