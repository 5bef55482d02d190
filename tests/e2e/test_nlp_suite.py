"""`crosspref evaluate RUN_OR_MODEL --suite nlp`: tiny models, items made up here, and the harness by itself."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from nlp_items import SUBJECTS, make_items, write_items
from running import ForkServer, Models, Run, assert_one_message, assert_stopped, succeeded, table, write_lines
from tiny import make_adapter

from crosspref.run.store import Unit
from crosspref.suites.nlp.results import ItemScore

lm_eval = pytest.importorskip("lm_eval")

TASKS = ("arc", "hellaswag", "mmlu", "truthfulqa")
FOLDERS = ("arc", "hellaswag", "truthfulqa", "mmlu/default", "okapi/*")
RATES = {("arc", "acc"), ("arc", "acc_norm"), ("hellaswag", "acc"), ("hellaswag", "acc_norm"), ("mmlu", "acc"),
         ("truthfulqa", "mc1"), ("truthfulqa", "mc2")}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Items in two languages, and the settings that name them."""
    write_items(tmp_path / "data", {"en": 12, "es": 9})
    settings = {
        "nlp": {"data": str(tmp_path / "data"), "batch_size": 4},
        "resources": {"device": "cpu", "dtype": "float32", "threads": 1},
        "resamples": 100,
    }
    (tmp_path / "evaluation.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return tmp_path


def arguments(place: Path, model: Path, *more: str | Path) -> list[str | Path]:
    return ["evaluate", model, "--suite", "nlp", "--with", place / "evaluation.yaml", *more]


def stored(folder: Path) -> dict[str, tuple[int, bytes]]:
    paths = sorted((folder / "nlp" / "items").rglob("*.parquet*"))
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


class Oracle:
    """The harness by itself, on task files of its own format that name the items as JSON."""

    def __init__(self, folder: Path, counts: dict[str, int]) -> None:
        self.folder = folder
        folder.mkdir()
        for language, count in counts.items():
            rows = make_items(language, count)
            if language == "en":
                self.write("arc_challenge", rows["arc"])
                self.write("hellaswag", rows["hellaswag"])
                for subject in SUBJECTS:
                    own = [
                        [row for row in rows[name] if row["subject"] == subject] for name in ("mmlu", "mmlu_examples")
                    ]
                    self.write(f"mmlu_{subject}", *own)
                group = {"group": "mmlu", "task": [f"mmlu_{subject}" for subject in SUBJECTS],
                         "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}  # fmt: skip
                (folder / "mmlu.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
                self.write("truthfulqa_mc1", rows["truthfulqa"])
                self.write("truthfulqa_mc2", rows["truthfulqa"])
            else:
                self.write(f"arc_{language}", [row | {"option_e": ""} for row in rows["arc"]])
                self.write(f"hellaswag_{language}", rows["hellaswag"])
                self.write(f"m_mmlu_{language}", rows["mmlu"], rows["mmlu_examples"])
                self.write(f"truthfulqa_{language}_mc1", rows["truthfulqa"])
                self.write(f"truthfulqa_{language}_mc2", rows["truthfulqa"])

    def write(self, name: str, rows: list[dict[str, Any]], examples: list[dict[str, Any]] | None = None) -> None:
        tasks = Path(lm_eval.__file__).parent / "tasks"
        (base,) = [path for folder in FOLDERS for path in tasks.glob(f"{folder}/{name}.yaml")]
        files = {"test": str(write_lines(self.folder / f"{name}.jsonl", rows))}
        if examples:
            files["shots"] = str(write_lines(self.folder / f"{name}_shots.jsonl", examples))
        task = {"include": str(base), "task": name, "dataset_path": "json", "dataset_name": None,
                "dataset_kwargs": {"data_files": files, "cache_dir": str(self.folder / "cache")},
                "training_split": None, "validation_split": None, "test_split": "test",
                **({"fewshot_split": "shots"} if examples else {})}  # fmt: skip
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")

    def results(self, model: Path, names: list[str], shots: int | None = None) -> dict[str, dict[str, Any]]:
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(self.folder), include_defaults=False)
        found = lm_eval.simple_evaluate(
            model="hf", model_args={"pretrained": str(model), "dtype": "float32"}, tasks=names, num_fewshot=shots,
            device="cpu", batch_size=4, bootstrap_iters=0, task_manager=manager,
        )  # fmt: skip
        return found["results"] | (found.get("groups") or {})


def test_a_model_reaches_what_the_harness_by_itself_says(command: Run, models: Models, place: Path) -> None:
    out = place / "out"
    output, errors = succeeded(command(*arguments(place, models[1], "--out", out)))
    assert "it/s]" not in errors  # the harness's own bars
    rows = {(row.language, row.task, row.measure): row for row in table(out, "nlp/scores")}
    assert {key[1:] for key in rows} == RATES
    oracle = Oracle(place / "oracle", {"en": 12, "es": 9})
    plain = ["arc_challenge", "arc_es", "hellaswag", "hellaswag_es"]
    plain += [f"truthfulqa_{name}" for name in ("mc1", "mc2", "es_mc1", "es_mc2")]
    expected = oracle.results(models[1], plain) | oracle.results(models[1], ["mmlu", "m_mmlu_es"], 5)
    names = {"en": ("arc_challenge", "hellaswag", "mmlu", "truthfulqa"),
             "es": ("arc_es", "hellaswag_es", "m_mmlu_es", "truthfulqa_es")}  # fmt: skip
    for language, of_tasks in names.items():
        for task, name in zip(TASKS, of_tasks, strict=True):
            for measure in [measure for known, measure in RATES if known == task]:
                own = rows[language, task, measure]
                found = expected[f"{name}_{measure}" if task == "truthfulqa" else name]
                metric = "acc" if task == "truthfulqa" else measure
                assert own.score == pytest.approx(100 * found[f"{metric},none"], abs=1e-6), (language, task, measure)
                assert own.n == {"en": 12, "es": 9}[language]
                assert own.low <= own.score <= own.high
    for task, measure in RATES:
        both = [rows[language, task, measure].score for language in names]
        assert rows["mean", task, measure].score == pytest.approx(sum(both) / 2)
    about = json.loads((out / "nlp" / "scores.json").read_text(encoding="utf-8"))
    assert about["lm_eval"] == lm_eval.__version__
    assert about["tasks"]["mmlu"]["num_fewshot"] == 5
    assert about["tasks"]["truthfulqa"]["names"]["es"] == ["truthfulqa_es_mc1", "truthfulqa_es_mc2"]
    assert len(about["rows"]) == len(rows)
    assert "Not measured" not in output
    assert (out / "nlp.md").read_text(encoding="utf-8").startswith("# NLP tasks: ARC challenge")


def test_a_run_is_compared_with_its_start_and_again_computes_nothing(command: Run, done: Path, place: Path) -> None:
    run = place / "run"
    shutil.copytree(done, run)
    chosen = ("--set", "nlp.tasks=[arc, truthfulqa]")
    output, _ = succeeded(command(*arguments(place, run, *chosen)))
    folder = run / "evaluation"
    before = stored(folder)
    assert len(before) == 2 * 3 * 2 * 2  # files and markers, of three models, two languages and two tasks
    code, again, errors = command(*arguments(place, run, *chosen))
    assert (code, again) == (0, output), errors
    assert "loading the model" not in errors
    assert stored(folder) == before
    changes = table(folder, "nlp/changes")
    pairs = [("pi_0", "pi_I"), ("pi_1", "pi_I"), ("pi_1", "pi_0")]
    rates = ["arc acc", "arc acc_norm", "truthfulqa mc1", "truthfulqa mc2"]
    assert {(row.model, row.other, row.rate, row.language) for row in changes} == {
        (*pair, rate, language) for pair in pairs for rate in rates for language in ("en", "es", "mean")
    }
    scores = table(folder, "nlp/scores")
    by_score = {(row.model, row.language, f"{row.task} {row.measure}"): row.score for row in scores}
    for row in changes:
        both = [by_score[model, row.language, row.rate] for model in (row.model, row.other)]
        assert row.difference == pytest.approx(both[0] - both[1], abs=1e-9)
        assert row.n == {"en": 12, "es": 9, "mean": 21}[row.language]
    assert "Alignment tax" in output
    items: list[ItemScore] = Unit(folder / "nlp" / "items" / "pi_0" / "es" / "truthfulqa.parquet").rows(ItemScore)
    mc2 = [row.value for row in items if row.measure == "mc2"]
    assert 100 * sum(mc2) / 9 == pytest.approx(by_score["pi_0", "es", "truthfulqa mc2"])

    # More tasks are added to what is there, and results of another model are not taken for this one's.
    succeeded(command(*arguments(place, run, "--languages", "es", "--set", "nlp.limit=4")))
    assert {row.n for row in table(folder, "nlp/scores")} == {4}
    assert {name: content for name, content in stored(folder).items() if name in before} == before
    marker = folder / "nlp" / "items" / "pi_0" / "es" / "arc.parquet.done.json"
    assert json.loads(marker.read_text(encoding="utf-8"))["parts"]["lm_eval"] == lm_eval.__version__
    write_lines(place / "data" / "arc" / "es.jsonl", make_items("es", 9, seed=1)["arc"])
    code, _, errors = command(*arguments(place, run, *chosen))
    assert code == 1
    assert "items: it was made with" in errors
    assert f"rm {marker.with_name('arc.parquet')}" in errors.replace("pi_I", "pi_0")


def test_killed_in_the_middle_it_goes_on_and_computes_nothing_twice(
    forks: ForkServer, models: Models, place: Path
) -> None:
    write_items(place / "data", {"en": 40, "es": 40})
    command, out = arguments(place, models[1], "--out", place / "out"), place / "out"
    # While it runs, only names are looked at: a file that is still being written is gone a moment later.
    forks.spawn(*command, log=place / "log").kill_when(lambda: list(out.rglob("*.done.json")))
    before = stored(out)
    kept = {
        name: content for name, content in before.items() if f"{name.removesuffix('.done.json')}.done.json" in before
    }
    forks.run(*command, log=place / "log")
    after = stored(out)
    assert len(after) == 2 * 2 * 4 > len(kept)
    assert {name: after[name] for name in kept} == kept
    process = forks.run(*command, log=place / "again")
    assert "loading the model" not in process.output()
    assert stored(out) == after


def test_what_is_missing_or_broken_is_said_and_the_rest_comes_out(command: Run, models: Models, place: Path) -> None:
    data, out = place / "data", place / "out"
    rows = make_items("es", 9)
    broken = [*rows["arc"], {**rows["arc"][0], "answer": "E"}, {**rows["arc"][1], "instruction": " "}]
    write_lines(data / "arc" / "es.jsonl", broken)
    (data / "hellaswag" / "es.jsonl").write_bytes("{}".encode("utf-16"))
    (data / "mmlu_examples" / "es.jsonl").unlink()
    english = make_items("en", 12)["mmlu"]
    long = {**english[0], "question": "Why? " * 600}  # of a context of 1,024 tokens
    write_lines(data / "mmlu" / "en.jsonl", [long, *english[1:], {**english[0], "subject": "alchemy"}])
    output, _ = succeeded(command(*arguments(place, models[1], "--languages", "en,es,sw,fr", "--out", out)))
    flat = " ".join(output.split())
    for text in (
        "Not measured: sw: lm-evaluation-harness 0.4.13 has no arc_sw, no hellaswag_sw, no m_mmlu_sw, no truthfulqa_sw",
        "has no arc/fr.jsonl, no hellaswag/fr.jsonl",
        "es.jsonl is UTF-16",
        "Not measured: es mmlu: mmlu needs 5 examples before each item",
        "es arc: 1 rows of arc without a usable answer, 1 rows of arc without a usable instruction",
        f"{models[1]} en mmlu: 4 choices longer than the model's context, cut on the left",
        "en mmlu: 1 rows of a subject that the harness has not (mmlu_alchemy)",
    ):
        assert text in flat, f"{text!r} is not in {output}"
    assert {(row.language, row.task): row.n for row in table(out, "nlp/scores")} == {
        ("en", "arc"): 12, ("en", "hellaswag"): 12, ("en", "mmlu"): 12, ("en", "truthfulqa"): 12,
        ("es", "arc"): 9, ("es", "truthfulqa"): 9, ("mean", "arc"): 21, ("mean", "truthfulqa"): 21,
    }  # fmt: skip


def test_a_model_that_is_not_here_does_not_keep_the_others_from_being_measured(
    command: Run, done: Path, place: Path
) -> None:
    run = place / "run"
    shutil.copytree(done, run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["models"]["initial"] = "nowhere/pi_I"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    output, _ = succeeded(command(*arguments(place, run, "--set", "nlp.tasks=[arc]", "--languages", "es")))
    assert [row.model for row in table(run / "evaluation", "nlp/scores")] == ["pi_0", "pi_0", "pi_1", "pi_1"]
    assert "Not measured: pi_I: pi_I is to be measured, but is not here." in " ".join(output.split())


def test_an_adapter_is_measured_over_its_base(command: Run, models: Models, place: Path) -> None:
    adapter = make_adapter(models[0], place / "adapter", size=0.5)
    found = []
    for name, model in (("base", models[0]), ("adapted", adapter)):
        given = arguments(place, model, "--set", "nlp.tasks=[truthfulqa]", "--out", place / name)
        succeeded(command(*given))
        found.append([row.score for row in table(place / name, "nlp/scores") if row.measure == "mc2"])
    assert all(one != pytest.approx(other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--languages", "sw,th"), "nlp: nothing could be measured."),
        (("--set", "nlp.data=null"), "--languages en,es"),
        (("--set", "nlp.data={place}/none"), "has no file of a task and language, such as arc/es.jsonl"),
        (("--set", "nlp.tasks=[gsm8k]"), "nlp.tasks"),
        (("--judge", "replay", "verdicts.jsonl"), "asks no judge"),
        # There is no hub for the tests.
        (("--set", "nlp.data=null", "--languages", "es", "--set", "nlp.tasks=[arc]"), "arc_es cannot be set up"),
    ],
)
def test_what_is_wrong_is_said(command: Run, models: Models, place: Path, given: tuple[str, ...], said: str) -> None:
    more = [part.format(place=place) for part in given]
    assert_stopped(command(*arguments(place, models[1], "--out", place / "out", *more)), said)


def test_without_the_library_it_is_said_what_installs_it(
    command: Run, models: Models, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "crosspref.engines.lm_eval", raising=False)
    answer = command(*arguments(place, models[1], "--out", place / "out"))
    assert_one_message(answer, "'lm_eval'", "pip install 'crosspref[eval]'")
