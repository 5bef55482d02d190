"""Runs of thousands of shards: what is done is found quickly, and selecting reads them in parts."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_runs import store as store_made

from crosspref import api, paths
from crosspref.data.records import Prompt, Response, Score
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.recipe.files import dump_recipe, make_recipe
from crosspref.run import store
from crosspref.run.job import Job, store_rows
from crosspref.run.layout import RunDirectory
from crosspref.run.progress import Reporter
from crosspref.run.store import write_text
from crosspref.stages.sample import Drawing, response_shards, sample_prompts
from crosspref.stages.score import Scoring, reward_reference, score_responses, score_shards
from crosspref.stages.select import phase as select_phase
from crosspref.stages.select.select import PairRules, select


@pytest.fixture
def job(tiny_models: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run whose shards have one prompt each."""
    monkeypatch.setattr(paths, "flush", lambda path: None)  # the disk's own time
    initial, aligned = tiny_models["llama"]
    recipe = make_recipe(
        {
            "models": {"initial": str(initial), "policy": str(aligned)},
            "languages": ["en"],
            "prompts": {"source": "made-up"},
            "select": {"min_gap": 0},
            "resources": {"shard_prompts": 1},
        }
    )
    run = RunDirectory(tmp_path / "run")
    write_text(run.recipe, dump_recipe(recipe))
    return Job(recipe, run, EngineFactory(EngineSettings.of(recipe)), Reporter())


def fill(job: Job, prompts: int, rows: bool) -> tuple[list[Response], list[Score]]:
    """Finish all shards of prompts, responses and scores, with three made-up responses to a prompt if ``rows``."""
    random = np.random.default_rng(0)
    names = [f"p{number}" for number in range(prompts)]
    store_rows(job.run.prompts.unit("en"), [Prompt(name, "en", f"Say {name}.") for name in names], Prompt, {})
    places, model = job.run.iteration(1), job.policy(0)
    responses: list[Response] = []
    scores: list[Score] = []
    for shard in response_shards(job, places.responses, model, Drawing(job.recipe.sample.n, job.recipe.seed, 1)):
        own = [
            Response(prompt.prompt_id, "en", sample, "word " * random.integers(0, 4), [sample], "stop", 1)
            for prompt in shard.prompts
            for sample in range(3 if rows else 0)
        ]
        store_made(shard.unit, own, Response, shard.fingerprint)
        responses += own
    scoring = Scoring("crosslingual", places.scores("crosslingual"), places.responses)
    for shard in score_shards(job, scoring, (model, reward_reference(job, 1)), job.recipe.reward):
        own_scores = [
            Score(row.prompt_id, "en", row.sample, "crosslingual", -1.0, -2.0, 1, len(row.text), random.normal())
            for row in responses
            if row.prompt_id == shard.prompts[0].prompt_id
        ]
        store_made(shard.unit, own_scores[::-1], Score, shard.fingerprint)
        scores += own_scores
    return responses, scores


def rules(job: Job, names: list[str]) -> PairRules:
    instructions = {name: f"Say {name}." for name in names}
    return PairRules("en", instructions, job.recipe.length_penalty, job.recipe.select)


def took(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_what_is_done_is_found_quickly(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2000
    fill(job, count, rows=False)
    monkeypatch.setattr(EngineFactory, "_build", lambda *_: pytest.fail("a model was loaded for what is done"))
    seconds = {
        "sample": took(lambda: sample_prompts(job, 1)),
        "score": took(lambda: score_responses(job, 1)),
        "status": took(lambda: api.status(job.run.root)),
    }
    # Measured 0.4 s on an idle machine; what grew with the square of the number would take minutes.
    assert sum(seconds.values()) < 8, seconds
    [sample, score] = [
        status
        for status in api.status(job.run.root)
        if status.phase.iteration == 1 and status.phase.name in {"sample", "score"}
    ]
    assert sample.done == score.done == count


def test_parts_of_shards_give_what_all_rows_at_once_give(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    responses, scores = fill(job, 40, rows=True)
    places = job.run.iteration(1)
    # Three shards to a part, so that there are many.
    monkeypatch.setattr(select_phase, "PART_BYTES", 3 * places.responses.units("en")[0].path.stat().st_size)
    assert len(select_phase._parts(places, "en", "crosslingual")) > 10
    select_phase.make_pairs(job, 1)
    expected = select(responses, scores, rules(job, [f"p{number}" for number in range(40)]))
    assert 10 < len(expected.pairs) < 40
    assert places.pairs.rows("en") == expected.pairs
    assert places.dropped.rows("en") == expected.dropped
    assert places.pairs.unit("en").read_marker()["figures"]["alpha"] == expected.alpha


def test_prompts_that_come_in_another_order_than_their_parts(job: Job) -> None:
    responses, scores = fill(job, 12, rows=True)
    names = [f"p{number}" for number in range(12)]
    both = [select(responses, scores, rules(job, order)) for order in (names, names[::-1])]
    assert both[0].alpha == both[1].alpha
    assert both[0].pairs == sorted(both[1].pairs, key=lambda pair: names.index(pair.prompt_id))
    assert [pair.prompt_id for pair in both[1].pairs] == [
        name for name in names[::-1] if name in {p.prompt_id for p in both[0].pairs}
    ]


def test_a_damaged_shard_is_named(job: Job) -> None:
    fill(job, 3, rows=True)
    path = job.run.iteration(1).responses.unit("en", 1).path
    path.write_bytes(b"PAR1 cut")
    with pytest.raises(store.RunError, match=r"00000001\.parquet cannot be read"):
        select_phase.make_pairs(job, 1)
    assert not job.run.iteration(1).pairs.unit("en").path.exists()
