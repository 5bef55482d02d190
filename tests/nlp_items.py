"""Items of the suite nlp, made up here: sums and sequences in the columns of the data sets on the hub."""

import random
from pathlib import Path
from typing import Any

from running import write_lines

NUMBERS = {
    "en": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "es": ["uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"],
}
TEXTS = {
    "en": ("What comes after {0}?", "Counting", "Somebody counts to {0}.", "then says {0}"),
    "es": ("¿Qué viene después de {0}?", "Contar", "Alguien cuenta hasta {0}.", "luego dice {0}"),
}
SUBJECTS = ("anatomy", "world_religions")
FIFTH = {"option_e": None}
"""Hardly any item has five options."""

Rows = list[dict[str, Any]]


def arc(language: str, question: str, options: list[str], place: int, number: int) -> dict[str, Any]:
    if language == "en":
        choices = {"text": options, "label": [*"ABCD"]}
        return {"id": f"q{number}", "question": question, "choices": choices, "answerKey": "ABCD"[place]}
    lettered = {f"option_{letter}": option for letter, option in zip("abcd", options, strict=True)}
    return {"id": f"q{number}", "instruction": question, **lettered, "answer": "ABCD"[place]}


def mmlu(language: str, question: str, options: list[str], place: int, number: int) -> dict[str, Any]:
    if language == "en":
        subject = SUBJECTS[number % len(SUBJECTS)]
        return {"question": question, "subject": subject, "choices": options, "answer": place}
    return arc(language, question, options, place, number)


def truthfulqa(language: str, question: str, options: list[str], place: int) -> dict[str, Any]:
    first = [options[place], *(option for option in options if option != options[place])]
    flat = {
        "mc1_targets_choices": first,
        "mc1_targets_labels": [1, 0, 0, 0],
        "mc2_targets_choices": [*first, f"¡{first[0]}!"],
        "mc2_targets_labels": [1, 0, 0, 0, 1],
    }
    if language != "en":
        return {"question": question, **flat}
    nested = {f"mc{n}_targets": {k: flat[f"mc{n}_targets_{k}"] for k in ("choices", "labels")} for n in (1, 2)}
    return {"question": question, **nested}


def make_items(language: str, count: int, seed: int = 0) -> dict[str, Rows]:
    """The rows of every task, by folder; the right answer stands at random, as in the data sets (MC1: at first)."""
    draw, numbers = random.Random(seed), NUMBERS[language]
    asked, title, told, said = TEXTS[language]
    found: dict[str, Rows] = {name: [] for name in ("arc", "hellaswag", "mmlu", "truthfulqa", "mmlu_examples")}
    for number in range(count):
        first = draw.randrange(len(numbers) - 1)
        wrong = draw.sample([other for other in range(len(numbers)) if other != first + 1], 3)
        place = draw.randrange(4)
        options = [numbers[other] for other in wrong]
        options.insert(place, numbers[first + 1])
        question = f"{number}. " + asked.format(numbers[first])
        found["arc"].append(arc(language, question, options, place, number) | ({} if language == "en" else FIFTH))
        found["mmlu"].append(mmlu(language, question, options, place, number))
        found["truthfulqa"].append(truthfulqa(language, question, options, place))
        found["hellaswag"].append(
            {
                "ind": number,
                "activity_label": title,
                "ctx_a": told.format(numbers[first]),
                "ctx_b": "",
                "endings": [said.format(option) for option in options],
                "label": str(place),
            }
        )
    for number in range(5 * len(SUBJECTS)):
        question, place = asked.format(numbers[number % 8]), number % 4
        found["mmlu_examples"].append(mmlu(language, question, numbers[:4], place, number))
    return found


def write_items(folder: Path, counts: dict[str, int]) -> Path:
    """Write a data folder of so many items of each task in each language."""
    for language, count in counts.items():
        for task, rows in make_items(language, count).items():
            write_lines(folder / task / f"{language}.jsonl", rows)
    return folder
