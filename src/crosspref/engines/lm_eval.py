"""Multiple-choice tasks by lm-evaluation-harness: its prompts, likelihoods and metrics, on its data or one's own."""

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from lm_eval.api import task as harness_tasks
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from pydantic import StrictBool, StrictFloat, TypeAdapter
from tqdm import tqdm

from crosspref.engines import EngineSettings
from crosspref.engines.self_check import not_finite
from crosspref.engines.transformers.adapters import load_files
from crosspref.engines.transformers.chat import read_tokenizer
from crosspref.engines.transformers.models import Loading, free_memory, readable_directory
from crosspref.errors import AGAIN, DataError, FileError, LimitError, ModelError, explained
from crosspref.keys import without_token
from crosspref.models.locate import ModelFiles
from crosspref.run.kept import Kept
from crosspref.run.progress import Meter, Reporter
from crosspref.run.store import digest_of

FOLDERS = ("okapi", "arc", "hellaswag", "truthfulqa", "mmlu/default")
"""Where the tasks lie among the harness's; to read the thousands of others takes seconds."""

OWN_IDS = ("id", "ind")
"""Columns of an item that name it, in every language alike."""

Rows = Sequence[Mapping[str, Any]]

logging.getLogger("lm_eval").setLevel(logging.ERROR)
harness_tasks.tqdm = partial(tqdm, disable=True)  # it has no setting for the bar of each of MMLU's 57 subjects
datasets.disable_progress_bars()


class Harness:
    """The tasks that the installed harness has, and what measures a model on them. Close it at the end."""

    version: str = lm_eval.__version__

    def __init__(self) -> None:
        root = Path(lm_eval.__file__).parent / "tasks"
        self._manager = TaskManager(include_defaults=False, include_path=[root / folder for folder in FOLDERS])
        self._held = ExitStack()

    def has(self, name: str) -> bool:
        """Tell whether there is a task, or a group of tasks, of that name."""
        return name in self._manager.all_tasks

    def tasks(self, name: str, shots: int) -> list[Any]:
        """Return a task or the tasks of a group, on the data set that it names on the hub.

        ``shots`` is how many examples stand before each item.

        Raises:
            DataError: the data set cannot be fetched, or is not as the task expects it.
        """
        return self._load(name, name, shots)

    def tasks_of_files(self, name: str, rows: Rows, examples: Rows, shots: int) -> list[Any]:
        """Return a task on rows of one's own, with the columns of its data set, and on the examples before each.

        Raises:
            DataError: the rows are not as the task expects them.
        """
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="crosspref-nlp-")))
        splits = {"test": rows} | ({"examples": examples} if shots else {})
        for split, items in splits.items():
            pq.write_table(pa.Table.from_pylist(list(items)), folder / f"{split}.parquet")
        content = {
            "include": str(self._manager.task_index[name].yaml_path),
            "task": name,
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {split: str(folder / f"{split}.parquet") for split in splits},
                "cache_dir": str(folder / "cache"),
            },
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
        } | ({"fewshot_split": "examples"} if shots else {})
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return self._load(name, str(file), shots)

    def _load(self, name: str, what: str, shots: int) -> list[Any]:
        try:
            tasks = list(self._manager.load([what])["tasks"].values())
        except Exception as error:  # noqa: BLE001 - whatever a data set, or the way to it, makes the harness raise
            raise DataError(f"{name} cannot be set up: {_said(error)}") from None
        for task in tasks:
            task.set_config("num_fewshot", shots)
        return tasks

    def model(self, files: ModelFiles, settings: EngineSettings, batch_size: int, reporter: Reporter) -> "HarnessModel":
        """Load a model, an adapter merged into its base.

        Raises:
            ModelError: it cannot be loaded.
        """
        model = load_files(files, Loading.of(settings))
        tokenizer = read_tokenizer(readable_directory(files), settings.trust_remote_code)
        return HarnessModel(model, tokenizer, batch_size, reporter)

    def measure(
        self, model: "HarnessModel", tasks: Sequence[Any], limit: int | None
    ) -> tuple[dict[str, dict[str, float]], int]:
        """Return what each item of the tasks counts by each metric, from 0 to 1: metric -> item -> value.

        Also return how many choices did not fit into the model's context behind their prompt, which the harness then
        cuts on the left. ``limit`` takes only the first so many items of each task.

        Raises:
            DataError: an item is not as the task expects it.
            LimitError: the memory does not suffice.
            ModelError: a log-probability is NaN.
            FileError: what is finished cannot be kept.
        """
        named, label = {task.task_name: task for task in tasks}, model.label
        try:
            samples = evaluate(model, {"tasks": named}, limit=limit, bootstrap_iters=0, log_samples=True)["samples"]
        except (FileError, ModelError):  # what is finished cannot be kept, or there is nothing to measure
            raise
        except Exception as error:  # likewise
            fault = explained(error)
            if isinstance(fault, LimitError):
                advice = f"Set a smaller nlp.batch_size ({model.batch_size} now). {AGAIN}."
                raise LimitError(f"{label}: {fault.problem}", advice) from error
            raise DataError(f"{label} cannot be measured: {_said(error)}") from error
        values: dict[str, dict[str, float]] = {}
        for item, sample in _named(sample for name in named for sample in samples[name]):
            for metric in sample["metrics"]:
                values.setdefault(metric, {})[item] = float(sample[metric])
        return values, model.cut

    def close(self) -> None:
        """Remove the copies of files that tasks were set up on."""
        self._held.close()


def _named(samples: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    """Yield each item under its own id, else under the harness's hash of it; the k-th of one name is NAME#k."""
    seen = Counter[str]()
    for sample in samples:
        ids = (sample["doc"].get(column) for column in OWN_IDS)
        name = next((str(value) for value in ids if value not in (None, "")), sample["doc_hash"][:20])
        seen[name] += 1
        yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), sample


def _said(error: Exception) -> str:
    lines = without_token(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


_ANSWER = TypeAdapter(tuple[StrictFloat, StrictBool])


class HarnessModel(HFLM):  # type: ignore[misc]
    """A loaded model as the harness asks it; shows its progress and keeps what is finished, as everything here does."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, reporter: Reporter) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.reporter, self.cut = reporter, 0
        self.label, self.kept = "", Kept(lambda *_: None)

    def begin(self, label: str, kept: Kept) -> None:
        """Say what the next work is called, and what keeps its answers."""
        kept.require(_check_answer)
        self.label, self.kept = label, kept

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-probability (nats) of each continuation, and whether it is the likeliest one."""
        with self.reporter.step(self.label, len(requests)) as meter:
            self._answers = _Answers(meter)
            self.set_cache_hook(self._answers)
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            self.kept.keep(self._answers.take())
        return answers

    def _loglikelihood_tokens(self, requests: list[Any], *given: Any, **named: Any) -> list[tuple[float, bool]]:
        """Leave out what was answered before, and count what is too long, of which the harness only logs a line."""
        self.cut = sum(len(prompt) + len(choice) > self.max_length + 1 for _, prompt, choice in requests)
        names = [digest_of(request) for request, _, _ in requests]
        before = {name: (value, is_likeliest) for name, (value, is_likeliest) in self.kept.items.items()}
        left = [request for name, request in zip(names, requests, strict=True) if name not in before]
        self._answers.meter.advance(len(requests) - len(left))
        answers = iter(super()._loglikelihood_tokens(left, *given, **named) if left else ())
        return [before[name] if name in before else next(answers) for name in names]

    def _model_call(self, *given: Any, **named: Any) -> Any:
        """Keep the batches before this one.

        Rows change with what stands beside them, by rounding. The harness cuts the requests, longest first, into
        batches, so without those of the first batches it makes the same further ones.
        """
        self.kept.keep(self._answers.take())
        return super()._model_call(*given, **named)

    def close(self) -> None:
        """Give the memory back."""
        self._model = None
        free_memory()


def _check_answer(_name: str, answer: object) -> None:
    """Raise ValueError unless a kept answer is one that ``_Answers`` takes."""
    value, _ = _ANSWER.validate_python(answer)
    if not value < math.inf:
        raise ValueError("it is no log-probability")


class _Answers:
    """Stands where the harness tells a cache of each answer: counts them, and holds those that are not kept yet."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._new: dict[str, tuple[float, bool]] = {}

    def add_partial(self, _kind: str, request: tuple[str, str], answer: tuple[float, bool]) -> None:
        """Take the answer to a request: its prompt and its choice. Of NaN the harness would take the first choice."""
        if not answer[0] < math.inf:  # which NaN is not
            raise not_finite("measuring tasks")
        self.meter.advance(1)
        self._new[digest_of(request)] = answer

    def take(self) -> dict[str, tuple[float, bool]]:
        """Return what was answered since the last time."""
        taken, self._new = self._new, {}
        return taken
