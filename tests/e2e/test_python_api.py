"""What a Python program imports: `ImplicitReward` against naive numbers, and a light package."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from running import environment
from transformers import AutoModelForCausalLM, AutoTokenizer

import crosspref
from crosspref.errors import DataError, ModelError, RecipeError

INSTRUCTION = "How do I keep bread fresh?"
G_ES = (
    "Please answer the following instruction using only Spanish, unless explicitly instructed to respond in a "
    f"different language.\n\n{INSTRUCTION}"
)
TEXTS = ["En una bolsa de tela.", "¿Pan? 🍞 Congélalo.", "", "a"]


@pytest.fixture(scope="module")
def reward(models: tuple[Path, Path]) -> crosspref.ImplicitReward:
    initial, aligned = map(str, models)
    return crosspref.ImplicitReward(aligned, initial, beta=0.25, device="cpu", dtype="float32")


def naive(directory: Path, asked: str, answer: list[int]) -> float:
    """log pi(answer | asked) by one full forward pass, summed over the answer's tokens."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], add_generation_prompt=True, return_dict=False
    )
    ids = torch.tensor([prompt + answer])
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(ids).logits
    return sum(float(logits[0, place - 1].log_softmax(-1)[ids[0, place]]) for place in range(len(prompt), ids.shape[1]))


def ids_of(directory: Path, text: str, ended: bool) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    end = [tokenizer.convert_tokens_to_ids("<|end|>")] if ended else []
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(("language", "asked"), [("en", INSTRUCTION), ("es", G_ES)])
def test_texts_are_scored_as_by_a_naive_forward_pass(
    reward: crosspref.ImplicitReward, models: tuple[Path, Path], language: str, asked: str, ended: bool
) -> None:
    found = reward.score(INSTRUCTION, TEXTS, language=language, ended=ended)
    assert len(found) == len(TEXTS)
    for text, scored in zip(TEXTS, found, strict=True):
        ids = ids_of(models[0], text, ended)
        reference, policy = (naive(directory, asked, ids) for directory in models)
        assert scored.policy_logprob == pytest.approx(policy, abs=1e-4)
        assert scored.reference_logprob == pytest.approx(reference, abs=1e-4)
        assert scored.reward == pytest.approx(0.25 * (policy - reference), abs=1e-4)
        assert (scored.tokens, scored.characters) == (len(ids), len(text))
    if ended:
        assert len({round(scored.reward, 6) for scored in found}) == len(TEXTS)


def test_token_ids_are_scored_as_they_are(reward: crosspref.ImplicitReward, models: tuple[Path, Path]) -> None:
    """Also ids into which no tokenizer would cut the text."""
    text = "mañana"
    tokenizer = AutoTokenizer.from_pretrained(models[0])
    bytewise = [token for letter in text for token in tokenizer(letter, add_special_tokens=False)["input_ids"]]
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    answers = [ids_of(models[0], text, ended=True), [*bytewise, end], bytewise]
    assert answers[0] != answers[1]
    for answer, scored in zip(answers, reward.score(INSTRUCTION, answers, language="es"), strict=True):
        assert scored.policy_logprob == pytest.approx(naive(models[1], G_ES, answer), abs=1e-4)
        assert scored.reference_logprob == pytest.approx(naive(models[0], G_ES, answer), abs=1e-4)
        assert (scored.tokens, scored.characters) == (len(answer), len(text))
    assert reward.score(INSTRUCTION, answers[:1], language="es") == reward.score(INSTRUCTION, [text], language="es")


def test_a_score_does_not_depend_on_the_other_responses(reward: crosspref.ImplicitReward) -> None:
    together = reward.score(INSTRUCTION, TEXTS, language="es")
    alone = [reward.score(INSTRUCTION, [text], language="es")[0] for text in TEXTS]
    for one, other in zip(together, alone, strict=True):
        assert one.policy_logprob == pytest.approx(other.policy_logprob, abs=1e-4)
        assert one.reference_logprob == pytest.approx(other.reference_logprob, abs=1e-4)
    assert reward.score(INSTRUCTION, [], language="es") == []


@pytest.mark.parametrize("language", ["es-419x", "xx"])
def test_an_unknown_language_is_an_error(reward: crosspref.ImplicitReward, language: str) -> None:
    with pytest.raises(DataError, match=language):
        reward.score(INSTRUCTION, ["a"], language=language)


def test_models_with_different_templates_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in models[1].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", "<|end|>\n"))
    with pytest.raises(ModelError, match="chat template"):
        crosspref.ImplicitReward(str(other), str(models[0]))


@pytest.mark.parametrize(("settings", "with_reference"), [
    ({}, False), ({"algorithm": "ipo"}, False), ({"algorithm": "simpo"}, True), ({"algorithm": "orpo"}, True),
    ({"algorithm": "ppo"}, True), ({"beta": 0.0}, True), ({"dtype": "int8"}, True),
])  # fmt: skip
def test_a_reward_that_does_not_exist_is_refused(
    models: tuple[Path, Path], settings: dict[str, Any], with_reference: bool
) -> None:
    initial, aligned = map(str, models)
    with pytest.raises(RecipeError):
        crosspref.ImplicitReward(aligned, initial if with_reference else None, **settings)


def test_the_length_penalty_is_solved_on_ragged_lists() -> None:
    """Prompt 1: the 4 beats the 1 until alpha 2. Prompt 2: the 5 is best until 0.25 and worst from 1 on, 0 between."""
    solved = crosspref.solve_length_penalty([[6.0, 0.0], [2.0, 0.0, 1.5]], [[4, 1], [5, 3, 3]])
    # So the mean of len(best) - len(worst) is (3+2)/2, (3+0)/2, (3-2)/2 and (-3-2)/2.
    assert solved.breakpoints.tolist() == [0.25, 1.0, 2.0]
    assert solved.differences.tolist() == [2.5, 1.5, 0.5, -2.5]
    assert solved.difference_at(0.0) == 2.5
    assert solved.interval == (1.0, 2.0)
    assert solved.interval[0] < solved.alpha < solved.interval[1]
    assert solved.mean_length_difference == 0.5


def test_importing_the_package_is_light() -> None:
    script = (
        "import sys, crosspref; crosspref.align, crosspref.ImplicitReward, crosspref.solve_length_penalty; "
        "print([name for name in ('torch', 'transformers', 'trl', 'peft', 'datasets') if name in sys.modules])"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.strip() == "[]"
