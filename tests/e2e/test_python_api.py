"""What a Python program imports: `ImplicitReward` against naive numbers, and a light package."""

import shutil
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from running import rows, small_recipe
from transformers import AutoTokenizer

import crosspref
from crosspref.errors import DataError, ModelError, RecipeError
from crosspref.run.progress import Reporter

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


def logprob(directory: Path, asked: str, answer: list[int]) -> float:
    """log pi(answer | asked) by one full forward pass, summed over the answer's tokens."""
    with torch.inference_mode():
        return float(naive.sequence_logprob(naive.load(directory), naive.prompt_ids(directory, asked), answer))


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
        reference, policy = (logprob(directory, asked, ids) for directory in models)
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
        assert scored.policy_logprob == pytest.approx(logprob(models[1], G_ES, answer), abs=1e-4)
        assert scored.reference_logprob == pytest.approx(logprob(models[0], G_ES, answer), abs=1e-4)
        assert (scored.tokens, scored.characters) == (len(answer), len(text))
    assert reward.score(INSTRUCTION, answers[:1], language="es") == reward.score(INSTRUCTION, [text], language="es")


def test_a_conversation_keeps_its_turns_and_takes_another_prefix(
    reward: crosspref.ImplicitReward, models: tuple[Path, Path]
) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": INSTRUCTION}]
    # naive spells out the one message of a user; what stands before it is put in front.
    for prefix, before in ((None, G_ES.removesuffix(INSTRUCTION)), ("{language}: ", "Spanish: ")):
        [scored] = reward.score(turns, TEXTS[:1], language="es", prefix=prefix)
        asked = naive.prompt_ids(models[1], f"Be brief.<|end|><|user|>{before}{INSTRUCTION}")
        user, system = (
            AutoTokenizer.from_pretrained(models[1]).convert_tokens_to_ids(f"<|{role}|>") for role in ("user", "system")
        )
        asked[asked.index(user)] = system
        answer = ids_of(models[1], TEXTS[0], ended=True)
        with torch.inference_mode():
            expected = float(naive.sequence_logprob(naive.load(models[1]), asked, answer))
        assert scored.policy_logprob == pytest.approx(expected, abs=1e-4)
    with pytest.raises(DataError, match="assistant"):
        reward.score([*turns, {"role": "assistant", "content": "x"}], ["a"], language="es")


@pytest.mark.parametrize(
    "responses", ["one text", b"one text", [None], [b"a"], [[1.5]], [["a"]], [7]], ids=lambda given: f"{given!r}"
)
def test_what_is_no_list_of_responses_is_an_error(reward: crosspref.ImplicitReward, responses: Any) -> None:
    with pytest.raises(DataError):
        reward.score(INSTRUCTION, responses, language="es")


@pytest.mark.parametrize("instruction", [None, 7, [], {"role": "user", "content": "Hi"}])
def test_what_is_no_instruction_is_an_error(reward: crosspref.ImplicitReward, instruction: Any) -> None:
    with pytest.raises(DataError):
        reward.score(instruction, ["a"], language="es")


def test_a_policy_that_is_its_own_reference_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    copied = shutil.copytree(models[1], tmp_path / "copy")
    with pytest.raises(ModelError, match="same model"):
        crosspref.ImplicitReward(str(models[1]), str(copied), device="cpu")


def test_models_are_asked_as_a_recipe_says(models: tuple[Path, Path], tmp_path: Path) -> None:
    folders = [shutil.copytree(model, tmp_path / model.name) for model in models]
    for folder in folders:
        template = folder / "chat_template.jinja"
        template.write_text("{{ '!' if loud is defined and loud else '' }}" + template.read_text())
    initial, aligned = map(str, folders)
    rewards = [
        crosspref.ImplicitReward(aligned, initial, device="cpu", dtype="float32", **asking)
        .score(INSTRUCTION, ["a"], language="es")[0]
        .reward
        for asking in ({}, {"chat_template_kwargs": {"loud": False}}, {"chat_template_kwargs": {"loud": True}})
    ]
    assert rewards[0] == rewards[1] != rewards[2]
    with pytest.raises(RecipeError):
        crosspref.ImplicitReward(aligned, initial, temper=1)


@pytest.mark.parametrize("language", ["es-419x", "xx"])
def test_an_unknown_language_is_an_error(reward: crosspref.ImplicitReward, language: str) -> None:
    with pytest.raises(DataError, match=language):
        reward.score(INSTRUCTION, ["a"], language=language)


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


class Meddler(Reporter):
    """Writes a file beside a model as soon as the run samples."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def say(self, text: str) -> None:
        if "sample" in text and "loading the model" in text:
            (self.folder / "added.txt").write_text(text)


@pytest.mark.parametrize("number", [0, 1], ids=["initial", "policy"])
def test_a_model_whose_files_change_during_a_run_is_noticed(
    number: int, models: tuple[Path, Path], tmp_path: Path
) -> None:
    own = [Path(shutil.copytree(model, tmp_path / f"model_{place}")) for place, model in enumerate(models)]
    recipe = small_recipe(*own)
    with pytest.raises(ModelError, match=f"model_{number}.*changed"):
        crosspref.align(recipe, tmp_path / "run", reporter=Meddler(own[number]))
    assert rows(tmp_path / "run" / "iteration_1" / "responses" / "es")
    assert not (tmp_path / "run" / "iteration_1" / "pairs").exists()
    (own[number] / "added.txt").unlink()
    crosspref.align(recipe, tmp_path / "run")
