"""The tasks of the suite ``nlp``: what lm-evaluation-harness calls them in each language, and what they measure."""

from dataclasses import dataclass
from typing import Literal

from crosspref.languages import ENGLISH

TaskName = Literal["arc", "hellaswag", "mmlu", "truthfulqa"]
TITLES: dict[TaskName, str] = {
    "arc": "ARC challenge",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU, 5-shot",
    "truthfulqa": "TruthfulQA",
}
SHOTS: dict[TaskName, int] = {"mmlu": 5}
"""Examples before each item, as in the paper (Table 14); none where nothing is said."""

ENGLISH_MMLU = "mmlu"
"""It is a group of one task per subject, ``mmlu_anatomy`` and so on, each with examples of its own."""

HUB: dict[TaskName, tuple[str, str]] = {
    "arc": ("allenai/ai2_arc", "alexandrainst/m_arc"),
    "hellaswag": ("Rowan/hellaswag", "alexandrainst/m_hellaswag"),
    "mmlu": ("cais/mmlu", "alexandrainst/m_mmlu"),
    "truthfulqa": ("truthfulqa/truthful_qa", "alexandrainst/m_truthfulqa"),
}
"""The data sets that the harness fetches where there are no files: English's, and all other languages'."""


@dataclass(frozen=True, slots=True)
class Part:
    """A task, or group of tasks, of the harness; ``measures`` says what its metrics are called here."""

    name: str
    measures: dict[str, str]


def parts_of(task: TaskName, language: str) -> tuple[Part, ...]:
    """Return what the harness must have for a task in a language."""
    english = language == ENGLISH
    if task == "arc":
        return (Part("arc_challenge" if english else f"arc_{language}", {"acc": "acc", "acc_norm": "acc_norm"}),)
    if task == "hellaswag":
        return (Part("hellaswag" if english else f"hellaswag_{language}", {"acc": "acc", "acc_norm": "acc_norm"}),)
    if task == "mmlu":
        return (Part(ENGLISH_MMLU if english else f"m_mmlu_{language}", {"acc": "acc"}),)
    stem = "truthfulqa" if english else f"truthfulqa_{language}"
    return tuple(Part(f"{stem}_{measure}", {"acc": measure}) for measure in ("mc1", "mc2"))
