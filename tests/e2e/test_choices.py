"""What the paper compares, chosen in a recipe: rewards, references, methods, language imbalance, released scripts."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from running import (
    ForkServer,
    Models,
    Run,
    assert_one_message,
    assert_same_run,
    assert_stopped,
    by_key,
    measures,
    rows,
    small_recipe,
    succeeded,
    write_recipe,
)
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from crosspref import api
from crosspref.data.records import Agreement, Dropped, Pair, Response, Score, Translation
from crosspref.run.layout import RunDirectory
from crosspref.run.store import Unit
from crosspref.stages.evaluate import WIN_RATE


def begin(run: Path, recipe: dict[str, Any], command: Run) -> tuple[Path, str]:
    """Run a recipe to its end and return the run and what was said."""
    file = write_recipe(run.with_suffix(".yaml"), recipe)
    output, errors = succeeded(command("run", file, "--out", run))
    assert api.verify(run).damages == []
    return run, output + errors


def folder(run: Path, *parts: str) -> Path:
    return run.joinpath("iteration_1", *parts)


def test_four_rewards_of_one_set_of_responses(
    models: Models, reward_model: Path, held_out: Path, command: Run, tmp_path: Path
) -> None:
    recipe = small_recipe(
        *models,
        iterations=1,
        reward={
            "name": "translated",
            "also": ["crosslingual", "multilingual", "reward_model"],
            "reward_model": str(reward_model),
        },
        translate={"max_new_tokens": 8, "truncated": "keep"},
        evaluate={"prompts": str(held_out), "n": 1, "resamples": 50},
    )
    run, said = begin(tmp_path / "run", recipe, command)
    responses = rows(folder(run, "responses"), Response)
    names = ("translated", "crosslingual", "multilingual", "reward_model")
    scores = {name: by_key(rows(folder(run, "scores", name), Score)) for name in names}
    keys = by_key(responses).keys()
    assert all(found.keys() == keys for found in scores.values())
    # In English R_c, R_m and R_t are one reward (Eq. 8, 14); in Spanish all differ.
    for key in keys:
        values = [scores[name][key].implicit_reward for name in names[:3]]
        assert len({round(value, 6) for value in values if value is not None}) == (1 if key[1] == "en" else 3) or (
            values[0] is None
        )
    translations = rows(folder(run, "translations"), Translation)
    assert by_key(translations).keys() == {key for key in keys if key[1] != "en"}
    failed = by_key(row for row in translations if row.failure).keys()
    assert {key for key, row in scores["translated"].items() if row.implicit_reward is None} == failed
    assert f"{len(translations) - len(failed)} translations" in said
    # The pairs are R_t's.
    for pair in rows(folder(run, "pairs"), Pair):
        chosen = scores["translated"][pair.prompt_id, pair.language, pair.chosen_sample]
        assert pair.chosen_reward == pytest.approx(chosen.implicit_reward - pair.alpha * chosen.characters)
    agreement = [
        row for path in sorted(folder(run, "agreement").glob("*.parquet")) for row in Unit(path).rows(Agreement)
    ]
    assert Counter(row.language for row in agreement) == {"en": 6, "es": 6}
    english = [row for row in agreement if row.language == "en" and "reward_model" not in (row.reward, row.other)]
    assert [(row.tau, row.same_pair) for row in english] == [(1.0, 1.0)] * 3
    report = command("report", run)[1]
    assert "Agreement of rewards" in report
    assert "R_t, R_n" in report
    code, output, _ = command("status", run)
    assert (code, "Everything is done." in output) == (0, True)


def test_a_reward_can_be_added_to_a_run_that_is_done(models: Models, command: Run, tmp_path: Path) -> None:
    recipe = small_recipe(*models, iterations=1)
    run, _ = begin(tmp_path / "run", recipe, command)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}
    recipe["reward"] = {"also": ["multilingual"]}
    begin(run, recipe, command)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(rows(folder(run, "scores", "multilingual"), Score)) == 2 * 5 * 3
    assert folder(run, "agreement", "crosslingual-multilingual.parquet").exists()


def test_a_reference_that_is_computed_once_trains_the_same_policy(
    models: Models, preferences: Path, command: Run, tmp_path: Path
) -> None:
    recipe = small_recipe(*models, iterations=1, train={"epochs": 2})
    run, _ = begin(tmp_path / "run", recipe, command)
    recipe["train"]["precompute_reference"] = True
    other, said = begin(tmp_path / "other", recipe, command)
    assert "iteration 1 reference" in said
    carried = rows(folder(other, "referenced_pairs"), Pair)
    assert len(carried) == len(rows(folder(run, "pairs"))) > 0
    assert all(pair.reference_chosen_logprob < 0 for pair in carried)
    ours, theirs = (load_file(root / "iteration_1" / "policy" / "model.safetensors") for root in (run, other))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-5)
    assert ["1", "reference", "2", "2"] in [line.split() for line in command("status", other)[1].splitlines()]


def likeliest(policy: Path, run: Path, prompt_id: str, language: str) -> list[int]:
    """The greedy answer to one of the run's prompts, token by token, up to the end of the turn."""
    prompts = RunDirectory(run).prompts.rows(language)
    instruction = next(row.instruction for row in prompts if row.prompt_id == prompt_id)
    return naive.greedy(naive.load(policy), naive.prompt_ids(policy, instruction), 12)


def test_language_imbalance(models: Models, held_out: Path, command: Run, tmp_path: Path) -> None:
    """It needs no initial model; without one there is no reward, and no win rate."""
    recipe = small_recipe(
        *models,
        iterations=1,
        languages=["en", "es", "de"],
        prompts={"limit": 12},  # of the likeliest answers of so small a model few are more than blanks
        language_imbalance={"translation_prompts": ["keep-herbs-fresh"]},
        translate={"max_new_tokens": 8, "truncated": "keep"},
        evaluate={"prompts": str(held_out), "n": 1, "resamples": 50},
    )
    recipe["models"]["initial"] = None
    run, _ = begin(tmp_path / "run", recipe, command)
    assert not folder(run, "scores").exists()
    measured = {row.measure for row in measures(run)}
    assert measured >= {"characters", "truncated"}
    assert WIN_RATE not in measured
    answers = {(row.prompt_id, row.language): row for row in rows(folder(run, "responses"), Response)}
    assert len(answers) == 3 * 12
    assert all(answer.token_ids == likeliest(models[1], run, *key) for key, answer in answers.items())
    translated = {
        (row.prompt_id, row.language, row.target): row for row in rows(folder(run, "translations"), Translation)
    }
    assert len(translated) == 2 * 2 * 12
    pairs, dropped = rows(folder(run, "pairs"), Pair), rows(folder(run, "dropped"), Dropped)
    assert len(pairs) + len(dropped) == 2 * 2 * 12
    assert pairs
    for pair in pairs:
        chosen, rejected = pair.chosen[0]["content"], pair.rejected[0]["content"]
        own, english = answers[pair.prompt_id, pair.language].text, answers[pair.prompt_id, "en"].text
        if pair.language == "en":
            found = {translated[pair.prompt_id, tag, "en"].text for tag in ("es", "de")}
            assert (chosen, rejected in found) == (english, True)
        elif pair.prompt_id == "keep-herbs-fresh":
            assert (chosen, rejected) == (english, own)
        else:
            assert (chosen, rejected) == (translated[pair.prompt_id, "en", pair.language].text, own)
    assert {row.language for row in pairs} == {"en", "es", "de"}
    assert RunDirectory(run).iteration(1).policy.marker.exists()
    assert "translate" in command("status", run)[1]


@pytest.mark.parametrize(
    "method", ["kto", "orpo", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("ipo", "simpo"))]
)
def test_every_algorithm_from_its_own_alignment_on(
    method: str, models: Models, preferences: Path, command: Run, tmp_path: Path
) -> None:
    """Stage 0, the reward that it leaves, and two iterations by the same algorithm."""
    training = {"method": method, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3}
    recipe = small_recipe(
        models[0],
        iterations=2,
        prompts={"limit": 3},
        reward={"algorithm": method},
        train=training,
        align_english={**training, "preferences": str(preferences)},
    )
    run, _ = begin(tmp_path / "run", recipe, command)
    for score in rows(folder(run, "scores", "crosslingual"), Score):
        assert (score.reference_logprob is None) == (method in {"simpo", "orpo"})
        log_ratio = score.policy_logprob - (score.reference_logprob or 0.0)
        if method == "kto":
            assert score.implicit_reward == pytest.approx(log_ratio)
        elif method != "orpo":
            assert score.implicit_reward == pytest.approx(0.1 * log_ratio / score.tokens)
    assert RunDirectory(run).iteration(2).policy.marker.exists()


def test_other_references_of_the_reward_and_of_training(models: Models, command: Run, tmp_path: Path) -> None:
    references = {"reward": {"reference": "previous"}, "train": {"reference": "initial"}}
    run, _ = begin(tmp_path / "run", small_recipe(*models, iterations=2, prompts={"limit": 3}, **references), command)
    markers = [next((run / f"iteration_{t}" / "scores" / "crosslingual" / "es").glob("*.done.json")) for t in (1, 2)]
    first, second = (json.loads(marker.read_text(encoding="utf-8"))["parts"] for marker in markers)
    # pi_0 against pi_I, then pi_1 against pi_0.
    assert second["reference"] == first["policy"]
    assert first["reference"] not in (first["policy"], second["policy"])
    trained = RunDirectory(run).iteration(1).policy.read_marker()
    # pi_0 is not pi_I: before the first step their log-ratio is not 0.
    assert abs(trained["figures"]["log"][0]["chosen_log_ratio"]) > 0.01
    assert trained["parts"]["reference"] == first["reference"] != trained["parts"]["start"]


def test_the_released_scripts_as_a_whole_run(models: Models, held_out: Path, command: Run, tmp_path: Path) -> None:
    recipe = small_recipe(*models, iterations=1, evaluate={"prompts": str(held_out), "n": 1, "resamples": 50})
    recipe["preset"] = "znlp"
    recipe["select"] = {}
    recipe["resources"]["shard_prompts"] = 3
    run, _ = begin(tmp_path / "run", recipe, command)
    pairs = rows(folder(run, "pairs"), Pair)
    assert len(pairs) == 2 * 5  # nothing is dropped
    assert all(0 <= pair.alpha < 1 and round(pair.alpha * 1000) == pytest.approx(pair.alpha * 1000) for pair in pairs)
    scores = rows(folder(run, "scores", "crosslingual"), Score)
    assert all(row.implicit_reward == pytest.approx(row.policy_logprob - row.reference_logprob) for row in scores)
    # What is measured is not measured by the scripts' counting: each held-out token counts once.
    held_out_scores = rows(folder(run, "evaluation", "scores"), Score)
    answers = by_key(rows(folder(run, "evaluation", "responses"), Response))
    assert {key: row.tokens for key, row in by_key(held_out_scores).items()} == {
        key: len(row.token_ids) for key, row in answers.items()
    }


def test_a_killed_translation_goes_on_where_it_was(models: Models, forks: ForkServer, tmp_path: Path) -> None:
    recipe = small_recipe(*models, iterations=1, reward={"name": "translated"}, translate={"truncated": "keep"})
    recipe["translate"]["max_new_tokens"] = 8
    file = write_recipe(tmp_path / "recipe.yaml", recipe)
    forks.run("run", file, "--out", tmp_path / "whole", log=tmp_path / "whole.log")
    killed = forks.spawn("run", file, "--out", tmp_path / "killed", log=tmp_path / "killed.log")
    killed.kill_when(lambda: list(tmp_path.glob("killed/iteration_1/translations/es/*.done.json")))
    forks.run("run", file, "--out", tmp_path / "killed", log=tmp_path / "again.log")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_one_model_in_both_roles_is_refused_before_any_work(models: Models, command: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models[1], tmp_path / "copy"))
    file = write_recipe(tmp_path / "recipe.yaml", small_recipe(copy, models[1]))
    for arguments in (("check", file), ("run", file, "--out", tmp_path / "run")):
        assert_stopped(command(*arguments), str(copy), str(models[1]))
    assert not (tmp_path / "run" / "prompts").exists()


def test_a_reward_model_with_two_labels_is_refused_before_any_work(
    models: Models, command: Run, tmp_path: Path
) -> None:
    two = Path(shutil.copytree(models[1], tmp_path / "two"))
    AutoModelForSequenceClassification.from_pretrained(two, num_labels=2).save_pretrained(two)
    rewards = {"also": ["reward_model"], "reward_model": str(two)}
    file = write_recipe(tmp_path / "recipe.yaml", small_recipe(*models, reward=rewards))
    assert_one_message(command("check", file), str(two))
