"""The harness as it is installed: which tasks it has in which languages, and what it makes of rows of one's own."""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console

from crosspref.languages import LANGUAGES
from crosspref.suites.nlp.tasks import HUB, SHOTS, TITLES, TaskName, parts_of

pytest.importorskip("lm_eval")

from nlp_items import make_items

from crosspref.engines import EngineSettings, find_engine
from crosspref.errors import DataError, ModelError
from crosspref.models.locate import locate_model
from crosspref.recipe.sections import ResourceSettings
from crosspref.run.kept import Kept
from crosspref.run.progress import Reporter

TASKS = get_args(TaskName)


@pytest.fixture(scope="module")
def harness() -> Iterator[Any]:
    made = find_engine("harness", "lm_eval")()
    yield made
    made.close()


def missing(harness: Any, language: str) -> list[str]:
    return [task for task in TASKS if not all(harness.has(part.name) for part in parts_of(task, language))]


def test_languages_that_it_has(harness: Any) -> None:
    there = {task: [tag for tag in LANGUAGES if task not in missing(harness, tag)] for task in TASKS}
    # English counts in all four; the harness has an m_mmlu_en too, which is not English's own.
    assert {task: len(tags) for task, tags in there.items()} == {
        "arc": 32, "hellaswag": 31, "mmlu": 34, "truthfulqa": 32,
    }  # fmt: skip
    for language in ("en", "de", "es", "fr", "ru", "bn"):
        assert missing(harness, language) == []
    for language in ("sw", "th"):
        assert missing(harness, language) == [*TASKS]
    assert missing(harness, "zh") == ["hellaswag"]


def test_every_task_is_described() -> None:
    assert set(TASKS) == set(TITLES) == set(HUB)


def set_up(harness: Any, task: TaskName, language: str, count: int = 4) -> dict[str, Any]:
    rows, shots = make_items(language, count), SHOTS.get(task, 0)
    return {
        part.name: harness.tasks_of_files(part.name, rows[task], rows.get(f"{task}_examples", []), shots)[0]
        for part in parts_of(task, language)
    }


def prompts(task: Any) -> list[tuple[str, str]]:
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return [instance.args for instance in task.instances]


@pytest.mark.parametrize("task", TASKS)
def test_its_own_prompts_are_made_of_the_rows(harness: Any, task: TaskName) -> None:
    rows = make_items("es", 4)[task]
    for made in set_up(harness, task, "es").values():
        asked = prompts(made)
        per_item = len(asked) // 4
        assert per_item == {"arc": 4, "hellaswag": 4, "mmlu": 4, "truthfulqa": len(asked) // 4}[task]
        for number, row in enumerate(rows):
            text = str(row.get("instruction") or row.get("question") or row["ctx_a"])
            assert all(text in context for context, _ in asked[per_item * number : per_item * (number + 1)])


def test_five_examples_stand_before_each_item_of_mmlu(harness: Any) -> None:
    (task,) = set_up(harness, "mmlu", "es").values()
    examples = make_items("es", 4)["mmlu_examples"]
    for context, continuation in prompts(task):
        assert context.count("\nAnswer:") == 6
        assert continuation in (" A", " B", " C", " D")
        for row in examples[:5]:
            assert f"{row['instruction']}\nA. {row['option_a']}" in context


def test_the_metrics_are_those_that_it_is_said_to_have(harness: Any) -> None:
    for task in TASKS:
        for part, made in zip(parts_of(task, "es"), set_up(harness, task, "es").values(), strict=True):
            assert {metric["metric"] for metric in made.config.metric_list} == set(part.measures)


def test_rows_of_another_kind_are_refused_as_data(harness: Any) -> None:
    with pytest.raises(DataError, match="arc_es cannot be set up: KeyError"):
        harness.tasks_of_files("arc_es", [{"id": "1", "instruction": "What?"}], [], 0)


def test_a_model_of_nan_is_not_measured(harness: Any, models: tuple[Path, Path]) -> None:
    """Of choices that are all NaN the first one would be the likeliest."""
    settings = EngineSettings(resources=ResourceSettings(device="cpu", dtype="float32"))
    model = harness.model(locate_model(str(models[1])), settings, 4, Reporter(Console(file=io.StringIO())))
    tasks = list(set_up(harness, "arc", "es").values())
    values, _ = harness.measure(model, tasks, None)
    assert len(values["acc"]) == 4
    model._model.lm_head.weight.data[:, 0] = math.nan
    model.begin("again", Kept(lambda *_: None))
    with pytest.raises(ModelError, match="not finite"):
        harness.measure(model, tasks, None)
