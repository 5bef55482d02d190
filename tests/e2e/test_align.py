"""`crosspref.align` on a real (tiny) model: what lies in the run directory is complete, consistent, and stays."""

import json
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from running import Models, assert_same_run, by_key, crosspref, files, measures, rows, small_recipe, times, write_recipe
from safetensors.torch import load_file

from crosspref import align, verify
from crosspref.data.records import derive_seed
from crosspref.models.locate import locate_model
from crosspref.run.layout import RunDirectory

LANGUAGES = ("en", "es", "ru")
ITERATIONS = (1, 2)


@pytest.fixture(scope="module")
def recipe(models: Models, held_out: Path) -> dict[str, Any]:
    """Two iterations from a given pi_0, full training."""
    return small_recipe(
        *models,
        languages=list(LANGUAGES),
        iterations=2,
        evaluate={"prompts": str(held_out), "n": 2, "resamples": 100},
    )


@pytest.fixture(scope="module")
def run(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("align") / "run"
    assert align(recipe, run) == run / "iteration_2" / "policy"
    return run


def marker(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.with_name(path.name + ".done.json").read_text(encoding="utf-8"))
    return content


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in directory.glob("*.safetensors") for name, tensor in sorted(load_file(file).items())
    }


def test_the_run_is_whole(run: Path) -> None:
    assert verify(run).damages == []


def test_every_prompt_is_there_in_every_language(run: Path) -> None:
    prompts = by_key(rows(run / "prompts"))
    assert {key[1] for key in prompts} == set(LANGUAGES)
    assert len(prompts) == 5 * len(LANGUAGES)
    assert all(row.instruction.strip() for row in prompts.values())


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_each_prompt_has_n_scored_responses(run: Path, iteration: int) -> None:
    folder = run / f"iteration_{iteration}"
    prompts, responses = by_key(rows(run / "prompts")), by_key(rows(folder / "responses"))
    assert responses.keys() == {(*key, sample) for key in prompts for sample in range(3)}
    assert all(row.seed == derive_seed(42, iteration, *key) for key, row in responses.items())
    assert {row.finish_reason for row in responses.values()} == {"stop", "length"}
    scores = by_key(rows(folder / "scores"))
    assert scores.keys() == responses.keys()
    for key, score in scores.items():
        assert score.reward == "crosslingual"
        assert score.tokens == len(responses[key].token_ids)
        assert score.characters == len(responses[key].text)
        assert score.implicit_reward == pytest.approx(0.1 * (score.policy_logprob - score.reference_logprob))


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_pairs_hold_the_texts_and_the_penalised_rewards_of_their_responses(run: Path, iteration: int) -> None:
    folder = run / f"iteration_{iteration}"
    prompts = by_key(rows(run / "prompts"))
    responses, scores = by_key(rows(folder / "responses")), by_key(rows(folder / "scores"))
    for (prompt_id, language), pair in by_key(rows(folder / "pairs")).items():
        assert pair.alpha == marker(folder / "pairs" / f"{language}.parquet")["figures"]["alpha"]
        assert pair.prompt == [{"role": "user", "content": prompts[prompt_id, language].instruction}]
        for side in ("chosen", "rejected"):
            key = prompt_id, language, getattr(pair, f"{side}_sample")
            assert getattr(pair, side) == [{"role": "assistant", "content": responses[key].text}]
            assert getattr(pair, f"{side}_token_ids") == responses[key].token_ids
            reward = scores[key].implicit_reward - pair.alpha * scores[key].characters
            assert getattr(pair, f"{side}_reward") == reward
        assert pair.chosen_reward > pair.rejected_reward


def test_each_iteration_samples_from_the_newest_policy_and_scores_against_the_initial_model(
    run: Path, models: Models
) -> None:
    initial, pi_0 = (locate_model(str(path)).identity for path in models)
    pi_1 = marker(run / "iteration_1" / "policy")["digest"]
    for iteration, newest in ((1, pi_0), (2, pi_1)):
        folder = run / f"iteration_{iteration}"
        for path in folder.glob("responses/*/*.parquet"):
            assert marker(path)["parts"]["policy"] == newest
        for path in folder.glob("scores/*/*.parquet"):
            parts = marker(path)["parts"]
            assert (parts["policy"], parts["reference"]) == (newest, initial)
            assert parts["responses"] == marker(folder / "responses" / path.parent.name / path.name)["digest"]
        assert marker(folder / "policy")["parts"]["start"] == newest


def test_scores_of_the_second_iteration_are_those_of_its_policy(run: Path, models: Models) -> None:
    """Not only the marker says so: the numbers are those of pi_1 and pi_I on G(x)."""
    row = rows(run / "iteration_2" / "responses" / "ru")[0]
    score = rows(run / "iteration_2" / "scores" / "crosslingual" / "ru")[0]
    assert (row.prompt_id, row.sample) == (score.prompt_id, score.sample)
    english = by_key(rows(run / "prompts"))[row.prompt_id, "en"].instruction
    asked = (
        "Please answer the following instruction using only Russian, unless explicitly instructed to respond in a "
        f"different language.\n\n{english}"
    )
    for directory, expected in (
        (run / "iteration_1" / "policy", score.policy_logprob),
        (models[0], score.reference_logprob),
    ):
        prompt = naive.prompt_ids(directory, asked)
        with torch.inference_mode():
            found = naive.sequence_logprob(naive.load(directory), prompt, row.token_ids)
        assert float(found) == pytest.approx(expected, abs=1e-4)


def test_every_policy_is_measured_in_every_language(run: Path) -> None:
    found = {(row.iteration, row.language, row.measure): row for row in measures(run)}
    names = ["repetition", "truncated", "characters"]
    expected = {(i, language, name) for i in (0, 1, 2) for language in LANGUAGES for name in names}
    expected |= {(i, language, "right_language") for i in (0, 1, 2) for language in LANGUAGES}
    expected |= {(i, language, "win_rate_rm_per_token") for i in ITERATIONS for language in LANGUAGES}
    assert found.keys() == expected
    for (iteration, language, name), row in found.items():
        assert row.prompts == 3
        assert row.n == (12 if name.startswith("win_rate") else 6)
        own = rows(run / f"iteration_{iteration}" / "evaluation" / "responses" / language)
        if name == "characters":
            assert row.mean == pytest.approx(sum(len(response.text) for response in own) / len(own))
        if name == "truncated":
            assert row.mean == pytest.approx(sum(response.finish_reason == "length" for response in own) / len(own))


def test_running_again_touches_nothing(run: Path, recipe: dict[str, Any]) -> None:
    before = times(run)
    align(recipe, run)
    assert times(run) == before


def test_a_response_does_not_depend_on_its_shard(run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    """Other shards, other batches, another order of languages, and other draws from torch before."""
    other = small_recipe(Path("none"), resources={"shard_prompts": 3})["resources"]
    changed = {**recipe, "resources": other, "languages": ["ru", "en", "es"], "iterations": 1}
    changed["sample"] = {**recipe["sample"], "batch_size": 5}
    torch.manual_seed(1)
    align(changed, tmp_path / "run")
    for kind in ("responses", "scores", "pairs"):
        ours, theirs = (by_key(rows(root / "iteration_1" / kind)) for root in (tmp_path / "run", run))
        assert ours.keys() == theirs.keys()
        if kind == "responses":
            assert ours == theirs
        if kind == "scores":
            assert all(ours[key].policy_logprob == pytest.approx(row.policy_logprob) for key, row in theirs.items())


def test_more_iterations_go_on_where_a_run_ended(run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    align({**recipe, "iterations": 1}, tmp_path / "run")
    before = times(tmp_path / "run")
    align(recipe, tmp_path / "run")
    after = times(tmp_path / "run")
    del before["recipe.yaml"]  # which holds the number of iterations
    assert {name: after[name] for name in before} == before
    assert_same_run(tmp_path / "run", run)


def test_the_command_with_a_process_per_phase_makes_the_same(run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    content = {**recipe, "resources": {**recipe["resources"], "process_per_phase": True}, "iterations": 1}
    content["evaluate"] = {}
    done = crosspref("run", write_recipe(tmp_path / "recipe.yaml", content), "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for kind in ("responses", "scores", "pairs", "dropped"):
        ours, theirs = (rows(root / "iteration_1" / kind) for root in (tmp_path / "run", run))
        assert ours == theirs
    ours_policy, theirs_policy = (weights(root / "iteration_1" / "policy") for root in (tmp_path / "run", run))
    assert all(torch.equal(ours_policy[name], tensor) for name, tensor in theirs_policy.items())
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert log.count("Ended with exit code 0.") == 1 + len(RunDirectory(tmp_path / "run").logged_phases())
    for line in done.stderr.splitlines():  # what the person saw, but for the lines that count
        assert line in log or "s left" in line


def test_pi_0_is_made_from_english_preferences_with_adapters(
    models: Models, preferences: Path, held_out: Path, tmp_path: Path
) -> None:
    stage_0 = {"preferences": str(preferences), "learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 2}
    recipe = small_recipe(
        models[0],
        iterations=1,
        align_english={**stage_0, "lora": {"rank": 4}},
        train={"lora": {"rank": 4}},
        evaluate={"prompts": str(held_out), "n": 2, "resamples": 100},
    )
    run = tmp_path / "run"
    align(recipe, run)
    pi_0, pi_1 = (weights(run / f"iteration_{iteration}" / "policy") for iteration in (0, 1))
    initial = weights(models[0])
    assert initial.keys() == pi_0.keys() == pi_1.keys()  # merged: no adapters are left
    for before, after in ((initial, pi_0), (pi_0, pi_1)):
        projections = [name for name in before if "_proj" in name]
        assert all(not torch.equal(before[name], after[name]) for name in projections)
        assert all(torch.equal(before[name], after[name]) for name in before.keys() - projections)
    assert marker(run / "iteration_0" / "policy")["rows"] == 8
    assert marker(run / "iteration_1" / "policy")["parts"]["start"] == marker(run / "iteration_0" / "policy")["digest"]
    assert not [name for name in files(run) if "adapter" in name or "checkpoint" in name or "tmp" in name]
