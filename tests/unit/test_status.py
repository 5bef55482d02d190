"""Where a run is: which phases are done, and how many tables of each."""

from pathlib import Path
from typing import Any

import made_runs

from crosspref import api
from crosspref.data.records import Prompt
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Unit

MADE_POLICY = {"models": {"initial": "base"}, "align_english": {"preferences": "english.jsonl"}}


def begin(root: Path, **sections: Any) -> RunDirectory:
    usual = {"iterations": 2, "resources": {"shard_prompts": 4}, "evaluate": {"prompts": "heldout.jsonl"}}
    return made_runs.begin(root, **{**MADE_POLICY, **usual, **sections})


def finish(run: RunDirectory, *places: str, rows: int = 1) -> None:
    for place in places:
        made_runs.store(Unit(run.root / place), [Prompt(str(number), "es", "?") for number in range(rows)], Prompt)


def states(run: RunDirectory) -> list[tuple[int, str, int, int | None]]:
    statuses = api.status(run.root)
    return [(status.phase.iteration, status.phase.name, status.done, status.total) for status in statuses]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    assert states(begin(tmp_path)) == [
        (0, "prompts", 0, 6),
        (0, "align_english", 0, 1),
        (0, "evaluate", 0, None),
        *(
            (iteration, phase, 0, total)
            for iteration in (1, 2)
            for phase, total in (("sample", None), ("score", None), ("select", 2), ("train", 1), ("evaluate", None))
        ),
    ]
    assert not any(status.is_done for status in api.status(begin(tmp_path).root))


def test_a_run_in_the_middle(tmp_path: Path) -> None:
    run = begin(tmp_path)
    # 9 prompts are 3 shards of at most 4 in each language; 4 held-out ones are 1 shard, so 2 languages have 2 shards
    # of responses, 2 of scores, and there is one table of measures.
    finish(run, "prompts/en.parquet", "prompts/es.parquet", rows=9)
    finish(run, "heldout/en.parquet", "heldout/es.parquet", rows=4)
    finish(run, "prompts/dropped.parquet", "heldout/dropped.parquet", "iteration_0/policy")
    evaluation = [
        f"iteration_0/evaluation/{kind}/{tag}/0.parquet"
        for kind in ("responses", "scores/multilingual")
        for tag in ("en", "es")
    ]
    finish(run, *evaluation, "iteration_0/evaluation/measures.parquet")
    finish(run, *(f"iteration_1/responses/{tag}/{shard}.parquet" for tag in ("en", "es") for shard in range(3)))
    finish(run, "iteration_1/scores/crosslingual/en/0.parquet")
    Unit(run.root / "iteration_1/scores/crosslingual/en/4.parquet").write_rows([], Prompt)  # killed before its marker
    found = {(iteration, phase): (done, total) for iteration, phase, done, total in states(run)}
    assert found == {
        (0, "prompts"): (6, 6),
        (0, "align_english"): (1, 1),
        (0, "evaluate"): (5, 5),
        (1, "sample"): (6, 6),
        (1, "score"): (1, 6),
        (1, "select"): (0, 2),
        (1, "train"): (0, 1),
        (1, "evaluate"): (0, 5),
        (2, "sample"): (0, 6),
        (2, "score"): (0, 6),
        (2, "select"): (0, 2),
        (2, "train"): (0, 1),
        (2, "evaluate"): (0, 5),
    }
    first = next(status for status in api.status(run.root) if not status.is_done)
    assert (first.phase.iteration, first.phase.name) == (1, "score")


def test_a_run_with_a_given_policy_and_without_evaluation(tmp_path: Path) -> None:
    run = begin(tmp_path, models={"initial": "a", "policy": "b"}, align_english=None, evaluate={}, iterations=1)
    assert states(run) == [
        (0, "prompts", 0, 3),
        (1, "sample", 0, None),
        (1, "score", 0, None),
        (1, "select", 0, 2),
        (1, "train", 0, 1),
    ]


def test_a_reference_that_is_computed_before_training_is_a_phase(tmp_path: Path) -> None:
    carried = {"precompute_reference": True}
    run = begin(tmp_path, iterations=1, train=carried, align_english={"preferences": "a.jsonl", **carried}, evaluate={})
    finish(run, "iteration_0/referenced_pairs/en.parquet", "iteration_1/referenced_pairs/en.parquet")
    found = [state for state in states(run) if state[1] in ("reference", "align_english", "train")]
    assert found == [
        (0, "reference", 1, 1),
        (0, "align_english", 0, 1),
        (1, "reference", 1, 2),
        (1, "train", 0, 1),
    ]
