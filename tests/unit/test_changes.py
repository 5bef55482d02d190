"""A changed recipe on an old run: what may change, what is refused, and what the refusal says."""

import os
from pathlib import Path
from typing import Any

import pytest
from made_runs import store

from crosspref.algorithm import phases
from crosspref.data.records import Prompt
from crosspref.errors import RunError
from crosspref.models.locate import ModelFiles
from crosspref.recipe.files import flatten, load_recipe, make_recipe, override
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import RewardName
from crosspref.run.job import SPEED, Job, store_rows
from crosspref.run.layout import RunDirectory
from crosspref.run.phases import affected_by
from crosspref.run.phases import settle_recipe as settle
from crosspref.run.store import Unit
from crosspref.stages.sample import Drawing, response_shards
from crosspref.stages.score import Scoring, score_shards

FREE = {
    *("iterations", "resources", "vllm", "server", "ray", "reward.also", "reward.reward_model"),
    *SPEED,
}
"""Settings and sections that may change at any time: how far to go, how to compute, and what to compare with."""
NOT_FREE = {"server.protocol", "resources.shard_prompts"}


def settle_recipe(run: RunDirectory, recipe: Recipe) -> None:
    settle(run, recipe, phases, lambda _: None)


def recipe(*changes: str, english: bool = True) -> Recipe:
    content: dict[str, Any] = {
        "models": {"initial": "base"} if english else {"initial": "base", "policy": "aligned"},
        "languages": ["en", "es"],
        "prompts": {"source": "prompts.jsonl"},
        "evaluate": {"prompts": "heldout.jsonl"},
    }
    if english:
        content["align_english"] = {"preferences": "english.jsonl", "lora": {}}
    for change in changes:
        override(content, change)
    return make_recipe(content)


def finish(run: RunDirectory, *places: str) -> None:
    for place in places:
        store(Unit(run.root / place), [], Prompt)


BEFORE_SAMPLING = (
    "prompts/en.parquet",
    "prompts/es.parquet",
    "prompts/dropped.parquet",
    "heldout/es.parquet",
    "iteration_0/policy",
    "iteration_0/evaluation/responses/es/00000000.parquet",
    "iteration_0/evaluation/scores/multilingual/es/00000000.parquet",
    "iteration_0/evaluation/measures.parquet",
)
ITERATION_1 = (
    "iteration_1/responses/en/00000000.parquet",
    "iteration_1/responses/en/00000064.parquet",
    "iteration_1/responses/es/00000000.parquet",
    "iteration_1/scores/crosslingual/en/00000000.parquet",
    "iteration_1/pairs/en.parquet",
    "iteration_1/policy",
    "iteration_1/evaluation/responses/es/00000000.parquet",
)
PI_0_EVALUATED = "evaluation of pi_0 (3 finished)"
FROM_SAMPLE = "sample (3 finished), score (1 finished), select (1 finished), train (1 finished), evaluate (1 finished)"
FROM_SCORE = FROM_SAMPLE.partition(", ")[2]
FROM_SELECT = FROM_SCORE.partition(", ")[2]
FROM_TRAIN = FROM_SELECT.partition(", ")[2]
FROM_PI_0 = f"align_english (1 finished), {PI_0_EVALUATED}, {FROM_SAMPLE}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # many small files, and no power is lost here
    directory = RunDirectory(tmp_path / "run")
    settle_recipe(directory, recipe())
    return directory


def contents(run: RunDirectory) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.root.rglob("*") if path.is_file()}


def test_the_resolved_recipe_is_written(run: RunDirectory) -> None:
    assert load_recipe(run.recipe) == recipe()


def test_nothing_changed(run: RunDirectory) -> None:
    finish(run, *BEFORE_SAMPLING, *ITERATION_1)
    before = contents(run)
    settle_recipe(run, load_recipe(run.recipe))
    settle_recipe(run, recipe())
    assert contents(run) == before


@pytest.mark.parametrize(
    "change",
    [
        "iterations=7",
        "resources.device=cuda",
        "resources.threads=2",
        "sample.batch_size=3",
        "reward.batch_tokens=99",
        "reward.also=[multilingual]",
        "translate.max_new_tokens=7",  # nothing is translated
        "train.micro_batch_size=2",
        "align_english.checkpoint_every=3",
    ],
)
def test_free_settings_change_at_any_time(run: RunDirectory, change: str) -> None:
    finish(run, *BEFORE_SAMPLING, *ITERATION_1)
    settle_recipe(run, recipe(change))
    assert load_recipe(run.recipe) == recipe(change) != recipe()


@pytest.mark.parametrize(
    ("change", "old", "new", "lost"),
    [
        ("sample.temperature=0.5", 0.9, 0.5, f"{PI_0_EVALUATED}, {FROM_SAMPLE}"),
        ("sample.n=4", 10, 4, FROM_SAMPLE),
        ("reward.beta=0.2", 0.1, 0.2, f"evaluation of pi_0 (2 finished), {FROM_SCORE}"),
        ("length_penalty.mode=none", "optimal", "none", FROM_SELECT),
        ("select.min_gap=0.0", None, 0.0, FROM_SELECT),
        ("reward.name=multilingual", "crosslingual", "multilingual", FROM_SELECT),
        ("reward.reference=previous", "initial", "previous", FROM_SCORE),
        ("train.method=kto", "dpo", "kto", FROM_TRAIN),
        ("train.learning_rate=1e-6", 5e-7, 1e-6, FROM_TRAIN),
        ("evaluate.n=8", 4, 8, f"{PI_0_EVALUATED}, evaluate (1 finished)"),
        (
            "evaluate.prompts=others.jsonl",
            "heldout.jsonl",
            "others.jsonl",
            f"held-out prompts (1 finished), {PI_0_EVALUATED}, evaluate (1 finished)",
        ),
        ("resources.shard_prompts=8", 64, 8, f"{PI_0_EVALUATED}, {FROM_SAMPLE}"),
        ("align_english.lora.rank=4", 16, 4, FROM_PI_0),
        ("models.initial=other", "base", "other", FROM_PI_0),
        ("seed=1", 42, 1, FROM_PI_0),
        (
            "languages=[en, es, fr]",
            ["en", "es"],
            ["en", "es", "fr"],
            f"prompts (3 finished), held-out prompts (1 finished), {PI_0_EVALUATED}, {FROM_SAMPLE}",
        ),
    ],
)
def test_what_a_change_would_invalidate(run: RunDirectory, change: str, old: Any, new: Any, lost: str) -> None:
    finish(run, *BEFORE_SAMPLING, *ITERATION_1)
    before = contents(run)
    with pytest.raises(RunError) as caught:
        settle_recipe(run, recipe(change))
    head, *lines, foot = str(caught.value).splitlines()
    assert head == f"The recipe has changed since the run in {run.root} was begun:"
    assert lines == [f"  - {change.partition('=')[0]}: {old!r} -> {new!r} would invalidate {lost}"]
    assert str(run.recipe) in foot
    assert foot.startswith("Nothing was touched. Use a new run directory, or set these back")
    assert contents(run) == before


def test_every_change_is_listed_and_free_ones_are_not(run: RunDirectory) -> None:
    finish(run, *BEFORE_SAMPLING, *ITERATION_1)
    with pytest.raises(RunError) as caught:
        settle_recipe(run, recipe("seed=1", "sample.n=4", "iterations=3"))
    text = str(caught.value)
    assert "  - seed: 42 -> 1" in text
    assert "  - sample.n: 10 -> 4" in text
    assert "iterations" not in text


@pytest.mark.parametrize(
    "change",
    ["sample.n=4", "length_penalty.mode=none", "select.truncated=keep", "train.nll_weight=0.5", "train.lora={}"],
)
def test_a_change_of_stages_not_begun_is_accepted(run: RunDirectory, change: str) -> None:
    # pi_0 is evaluated already, but none of these has a part in that.
    finish(run, *BEFORE_SAMPLING)
    settle_recipe(run, recipe(change))
    assert load_recipe(run.recipe) == recipe(change)


def test_a_run_that_only_has_prompts_takes_any_change_but_theirs(run: RunDirectory) -> None:
    finish(run, "prompts/en.parquet")
    settle_recipe(run, recipe("seed=1", "reward.beta=0.2", "align_english.beta=0.3"))
    with pytest.raises(RunError, match=r"prompts\.limit: None -> 3 would invalidate prompts \(1 finished\)\nNothing"):
        settle_recipe(run, recipe("seed=1", "reward.beta=0.2", "align_english.beta=0.3", "prompts.limit=3"))


def test_an_evaluation_can_be_added_to_a_run_without_one(run: RunDirectory) -> None:
    settle_recipe(run, recipe("evaluate.prompts=null"))
    finish(run, "prompts/en.parquet", *ITERATION_1[:-1])
    settle_recipe(run, recipe())
    assert load_recipe(run.recipe) == recipe()


def test_pi_0_by_another_way_is_a_change(run: RunDirectory) -> None:
    finish(run, "iteration_0/policy")
    with pytest.raises(RunError, match=r"models\.policy: None -> 'aligned' would invalidate align_english \(1 finish"):
        settle_recipe(run, recipe(english=False))


def test_every_setting_is_classified() -> None:
    known = [recipe("train.lora={}"), recipe(english=False), recipe("reward.also=[multilingual]")]
    listed = [phase for one in known for phase in phases(one)]
    settings = {key for one in known for key in flatten(one)}
    assert len(settings) > 60
    for key in settings - {"translate.max_new_tokens", "translate.model", "translate.truncated"}:
        is_free = {key, key.partition(".")[0]} & FREE and key not in NOT_FREE
        assert bool(is_free) != bool(affected_by(listed, key)), key
    # Nothing is named that is no setting any more.
    sections = {key.partition(".")[0] for key in settings}
    named = {name for phase in listed for output in phase.outputs for name in (*output.settings, *output.without)}
    lora = {name for name in named if name.endswith(".lora")}
    assert {*named, *FREE} - lora <= {*settings, *sections}
    assert sections == set(Recipe.model_fields)


def test_translations_depend_on_their_settings_where_there_are_any() -> None:
    assert affected_by(phases(recipe()), "translate.max_new_tokens") == []
    affected = affected_by(phases(recipe("reward.name=translated")), "translate.max_new_tokens")
    assert [phase.name for phase, _ in affected][:4] == ["translate", "score", "select", "train"]


def test_a_reference_that_is_computed_before_depends_on_what_it_is_computed_from() -> None:
    listed = phases(recipe("train.precompute_reference=true"))
    for key, expected in (("train.max_length", True), ("train.beta", False), ("select.min_gap", True)):
        first = [phase.name for phase, _ in affected_by(listed, key) if phase.iteration == 1]
        assert ("reference" in first) == expected, key
        assert "train" in first


def test_a_chain_of_inputs_is_followed_into_later_iterations() -> None:
    affected = affected_by(phases(recipe()), "train.beta")
    assert [(phase.name, phase.iteration) for phase, _ in affected][:3] == [
        ("train", 1), ("evaluate", 1), ("evaluate", 1),
    ]  # fmt: skip
    assert ("sample", 2) in {(phase.name, phase.iteration) for phase, _ in affected}


def test_outputs_depend_on_every_setting_in_their_fingerprints(run: RunDirectory) -> None:
    given = recipe(english=False)  # no stage 0, whose policy would pass its own settings on
    for language in ("en", "es"):
        store_rows(run.prompts.unit(language), [Prompt("p", language, "?")], Prompt, {})
    job, places = Job(given, run, None, None), run.iteration(1)  # type: ignore[arg-type]
    policy, initial = (ModelFiles(name, run.root, None, name) for name in ("pi_0", "pi_I"))
    responses = response_shards(job, places.responses, policy, Drawing(4, given.seed, 1))
    for shard in responses:
        shard.unit.finish(shard.fingerprint, 0)
    scoring = Scoring("crosslingual", places.scores("crosslingual"), places.responses)
    scores = score_shards(job, scoring, (policy, initial), given.reward)
    outputs = {output.name: output for phase in phases(given) for output in phase.outputs if phase.iteration == 1}
    # What a fingerprint calls otherwise, and what no setting decides.
    settings = {"n": "sample.n", "greedy": "language_imbalance", "iteration": None, "reward": None}
    for name, shards in (("responses", responses), ("scores", scores)):
        for key in shards[0].fingerprint.settings:
            setting = settings.get(key, key)
            assert setting is None or outputs[name].depends_on(setting), f"{name} depend on {key}"
        for setting in ("models.policy", "resources.shard_prompts"):
            assert outputs[name].depends_on(setting)


@pytest.mark.parametrize(
    ("prefix", "spanish"),
    [
        ("null", {}),
        ("Only {language}!", {"reward.prefix": "Only Spanish!"}),
        ("{es: Solo español.}", {"reward.prefix": "Solo español."}),
        ("{fr: Seulement français.}", {}),
    ],
)
def test_a_prefix_is_in_the_fingerprints_of_what_is_scored_behind_it(
    run: RunDirectory, prefix: str, spanish: dict[str, str]
) -> None:
    given = recipe(f"reward.prefix={prefix}", english=False)
    for language in ("en", "es"):
        store_rows(run.prompts.unit(language), [Prompt("p", language, "?")], Prompt, {})
    job, places = Job(given, run, None, None), run.iteration(1)  # type: ignore[arg-type]
    models = ModelFiles("pi_0", run.root, None, "pi_0"), ModelFiles("pi_I", run.root, None, "pi_I")
    for shard in response_shards(job, places.responses, models[0], Drawing(4, given.seed, 1)):
        shard.unit.finish(shard.fingerprint, 0)

    def settings(reward: RewardName) -> list[dict[str, Any]]:
        scoring = Scoring(reward, places.scores(reward), places.responses)
        shards = score_shards(job, scoring, models, given.reward)
        parts = [shard.fingerprint.settings for shard in shards]
        return [{key: part[key] for key in part if key == "reward.prefix"} for part in parts]

    assert settings("crosslingual") == [{}, spanish]
    assert settings("multilingual") == [{}, {}]
