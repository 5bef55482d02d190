"""Answers that come as text: scored, paired and trained on as the same answers with token ids."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import naive
import pytest
import torch
from thinkers import thinker
from tiny_engines import Models, make_scorer
from transformers import AutoTokenizer

import crosspref
from crosspref.data.records import FinishReason, Prompt, Response
from crosspref.engines.training.trainer import example_of
from crosspref.engines.transformers.chat import ChatTokenizer, load_tokenizer
from crosspref.errors import DataError, RecipeError
from crosspref.recipe.sections import LengthPenaltySettings, RewardSettings, SelectSettings
from crosspref.stages.score import score
from crosspref.stages.select.select import PairRules, select

PROMPTS = [Prompt("p", "es", "¿Qué río?"), Prompt("q", "es", "¿Por qué?"), Prompt("r", "es", "Di algo.")]
TEXTS: list[tuple[str, str, FinishReason]] = [
    *[("p", "El Duero.", "stop"), ("p", "El Duero, que nace en", "length")],
    *[("q", "Porque sí", "length"), ("q", " No lo sé, pero", "length")],
    *[("r", "Algo.\n", "stop"), ("r", "Nada", "stop")],
]


def answers(tokenizer: ChatTokenizer, *, as_text: bool) -> list[Response]:
    rows = [
        Response(prompt, "es", number % 2, text, tokenizer.response_ids(text, reason == "stop"), reason, None)
        for number, (prompt, text, reason) in enumerate(TEXTS)
    ]
    return [replace(row, token_ids=None) for row in rows] if as_text else rows


@pytest.mark.parametrize("end_of_turn", ["if_stopped", "never"])
def test_texts_are_scored_paired_and_trained_on_as_their_ids(
    end_of_turn: Literal["if_stopped", "never"], tiny_models: Models
) -> None:
    initial, aligned = tiny_models["llama"]
    settings = RewardSettings(name="multilingual", end_of_turn=end_of_turn)
    scorer = make_scorer(aligned, initial, name="multilingual", end_of_turn=end_of_turn)
    rules = PairRules(
        "es",
        {prompt.prompt_id: prompt.instruction for prompt in PROMPTS},
        LengthPenaltySettings(mode="fixed", alpha=0.001, unit="tokens"),
        SelectSettings(truncated="keep", min_gap=0.0),
    )
    scores, examples = [], []
    for as_text in (False, True):
        rows = answers(scorer.tokenizer, as_text=as_text)
        found = score(rows, PROMPTS, scorer, settings=settings, reward="multilingual", advance=lambda *_: None)
        scores.append(found)
        examples.append([example_of(pair, scorer.tokenizer) for pair in select(rows, found, rules).pairs])
    assert scores[0] == scores[1]
    assert len(examples[0]) == 3
    assert examples[0] == examples[1]
    end = scorer.tokenizer.end_of_turn
    ended = [side[-1] == end for example in examples[1] for side in (example["chosen_ids"], example["rejected_ids"])]
    assert sorted(ended) == [False] * 3 + [True] * 3  # whatever the reward counts, training sees what was sampled
    for row, (_, text, reason) in zip(scores[1], TEXTS, strict=True):
        ids = scorer.tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert row.tokens == len(ids) + (reason == "stop" and end_of_turn == "if_stopped")
        assert row.characters == len(text)


def logprob(directory: Path, prompt: list[int], answer: list[int]) -> float:
    with torch.inference_mode():
        return float(naive.sequence_logprob(naive.load(directory), prompt, answer))


@pytest.fixture(scope="module")
def thinkers(tiny_models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("thinkers")
    initial, aligned = (thinker(path, folder / path.name) for path in tiny_models["llama"])
    return aligned, initial


def reward_of(thinkers: tuple[Path, Path], **asking: Any) -> crosspref.ImplicitReward:
    return crosspref.ImplicitReward(*map(str, thinkers), dtype="float32", device="cpu", **asking)


def test_the_reward_asks_as_its_settings_say(thinkers: tuple[Path, Path]) -> None:
    reward = reward_of(thinkers, chat_template_kwargs={"enable_thinking": False})
    own = AutoTokenizer.from_pretrained(thinkers[0])
    chat = [{"role": "user", "content": "Name a river."}]
    prompt = own.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=False, return_dict=False)
    ids = load_tokenizer(thinkers[0]).response_ids("The Duero.", ended=True)
    by_text, by_ids = reward.score("Name a river.", ["The Duero.", ids], language="en")
    assert by_text == by_ids
    assert by_text.policy_logprob == pytest.approx(logprob(thinkers[0], prompt, ids), abs=1e-4)
    assert by_text.reference_logprob == pytest.approx(logprob(thinkers[1], prompt, ids), abs=1e-4)
    assert reward_of(thinkers).score("Name a river.", [ids], language="en") != [by_ids]
    for wrong in ({"chat_template_kwargs": {"tools": []}}, {"date": "today"}, {"dtyp": "float32"}):
        with pytest.raises(RecipeError, match="ImplicitReward"):
            reward_of(thinkers, **wrong)


def test_answers_whose_thinking_was_cut_stand_behind_its_end(thinkers: tuple[Path, Path]) -> None:
    ids = load_tokenizer(thinkers[0]).response_ids("Duero.", ended=True)
    without = reward_of(thinkers, chat_template_kwargs={"enable_thinking": False})
    expected = without.score("Name a river.", [ids], language="es")
    assert reward_of(thinkers, thinking="cut").score("Name a river.", [ids, "Duero."], language="es") == 2 * expected


def test_characters_are_those_of_the_answer_whichever_token_ends_it(tiny_models: Models, tmp_path: Path) -> None:
    """Also where that token is a word to the tokenizer."""
    reward = reward_of(tiny_models["llama"])
    tokenizer, ids = reward._scorer.tokenizer, reward._scorer.tokenizer.response_ids("Duero.", ended=False)
    stop = tokenizer.response_ids("z", ended=False)[0]
    reward._scorer.stops = [*reward._scorer.stops, stop]
    found = reward.score("Name a river.", [[*ids, stop], ids, []], language="en")
    assert [(row.characters, row.tokens) for row in found] == [(6, len(ids) + 1), (6, len(ids)), (0, 0)]
    with pytest.raises(DataError):
        reward.score("Name a river.", [[*ids, -1]], language="en")
