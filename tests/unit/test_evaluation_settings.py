"""The settings of suites: read from YAML and --set, and faults named by their keys, as those of a recipe are."""

from pathlib import Path

import pytest

from crosspref.errors import RecipeError
from crosspref.recipe.files import describe_settings, load_settings
from crosspref.recipe.sections import ModelSettings
from crosspref.suites import SUITES, find_suite
from crosspref.suites.settings import EvaluationSettings
from crosspref.suites.work import _answering


def test_defaults_are_the_papers_decoding() -> None:
    answers = load_settings(EvaluationSettings, None, []).answers
    assert (answers.temperature, answers.top_p, answers.max_new_tokens) == (0.6, 0.9, 2048)


def test_a_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.yaml"
    file.write_text("judge:\n  model: gpt\n  price_in: 2.5\nxalpaca: {items: items}\n")
    found = load_settings(EvaluationSettings, file, ["judge.price_out=10", "judge.budget=1.5", "judge.url=http://h/v1"])
    assert (found.judge.model, found.judge.price_in, found.judge.price_out, found.judge.budget) == ("gpt", 2.5, 10, 1.5)
    assert found.judge.transport().url == "http://h/v1"
    assert found.judge.transport().protocol == "chat"


def test_every_fault_is_named_by_its_key(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.yaml"
    file.write_text("judge: {modell: gpt, budget: 1, retries: -1}\nxalpaca: 3\nanswers: {engine: tgi}\n")
    with pytest.raises(RecipeError) as caught:
        load_settings(EvaluationSettings, file, [])
    assert set(caught.value.keys) == {"judge.modell", "judge.budget", "judge.retries", "xalpaca", "answers.engine"}
    message = str(caught.value)
    assert message.startswith(f"{file} has 5 faults:")
    assert "judge.modell: unknown setting; did you mean model?" in message


def test_what_answers_are_read_by_is_not_to_be_requested_otherwise() -> None:
    found = load_settings(EvaluationSettings, None, ["judge.request={max_tokens: null, reasoning_effort: low}"])
    assert found.judge.request == {"max_tokens": None, "reasoning_effort": "low"}
    with pytest.raises(RecipeError, match="n, stream") as caught:
        load_settings(EvaluationSettings, None, ["judge.request={stream: true, n: 2}"])
    assert caught.value.keys == ("judge.request",)


def test_every_suite_is_there_and_others_are_named() -> None:
    for name in SUITES:
        assert callable(find_suite(name))
    with pytest.raises(RecipeError, match=r"no suite 'alpaca'\. Known: xalpaca, mtbench"):
        find_suite("alpaca")


def test_every_setting_is_listed() -> None:
    lines = list(describe_settings(EvaluationSettings))
    assert {"judge:", "  budget: null", "xalpaca:", "  paper_compat: false"} <= set(lines)
    assert not any("extends" in line for line in lines)


def test_models_of_a_run_are_asked_as_in_the_run_unless_the_settings_say_it() -> None:
    models = ModelSettings(initial="a", date="2024-03-05", thinking="cut", chat_template_kwargs={"effort": "low"})
    plain = load_settings(EvaluationSettings, None, [])
    as_in_run = _answering(plain, models).asking
    assert (as_in_run.date, as_in_run.thinking) == ("2024-03-05", "cut")
    assert as_in_run.chat_template_kwargs == {"effort": "low"}
    own = _answering(load_settings(EvaluationSettings, None, ["answers.thinking=keep"]), models).asking
    assert (own.date, own.thinking) == ("2024-03-05", "keep")
    assert _answering(plain).asking.thinking == "keep"
