"""One model in one language: its answers, a baseline's, and what a judge said of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crosspref.data.items import Item
from crosspref.suites.judge.questions import Question
from crosspref.suites.judge.verdicts import Verdict
from crosspref.suites.xalpaca.rates import Compared


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline's answers in one language, by item id, and who gave them."""

    name: str
    outputs: Mapping[str, str]


@dataclass
class Cell:
    """One model in one language: its answers beside the baseline's, and what the judge said of them."""

    model: str
    language: str
    items: Sequence[Item]
    baseline: Baseline
    outputs: Mapping[str, str]
    questions: dict[str, Question] = field(default_factory=dict)
    preferences: dict[str, float | None] = field(default_factory=dict)
    verdicts: dict[str, Verdict | None] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    annotator: str = ""
    date: str = ""

    def both(self) -> list[Item]:
        """Return the items that both have answered."""
        return [item for item in self.items if item.item_id in self.outputs and item.item_id in self.baseline.outputs]

    def compared(self) -> list[Compared]:
        """Return the items that were judged, those whose verdict could not be read among them."""
        return [
            Compared(
                item.item_id,
                item.place,
                self.preferences[item.item_id],
                len(self.outputs[item.item_id]),
                len(self.baseline.outputs[item.item_id]),
            )
            for item in self.both()
            if item.item_id in self.preferences
        ]
