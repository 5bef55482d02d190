"""Models that think aloud: what is cut, what is left of an answer, and that it is the one that was sampled."""

from pathlib import Path

import naive
import pytest
import torch
from thinkers import CLOSES, thinker
from tiny import nudge
from tiny_engines import make_sampler, make_scorer

from crosspref.data.records import Prompt, Response
from crosspref.engines.transformers.chat import load_tokenizer
from crosspref.engines.transformers.thinking import Thinking, find_thinking
from crosspref.protocols import Sampled
from crosspref.recipe.sections import AskingSettings
from crosspref.stages.sample import Drawing, sample, thinking_cut

PROMPTS = [Prompt(f"p{index}", "es", text) for index, text in enumerate(("¿Qué es un volcán?", "Saluda.", "Hi!"))]
OFF = {"enable_thinking": False}


@pytest.fixture(scope="module")
def directory(tiny_models: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinker(tiny_models["llama"][0], tmp_path_factory.mktemp("thinker") / "model")


def drawn(directory: Path, asking: AskingSettings) -> list[Response]:
    return sample(PROMPTS, make_sampler(directory, asking=asking), Drawing(12, 42, 1), lambda *_: None)


def test_what_is_left_is_the_sampled_answer_behind_the_thinking(directory: Path) -> None:
    kept, cut = drawn(directory, AskingSettings()), drawn(directory, AskingSettings(thinking="cut"))
    seen = set()
    for whole, answer in zip(kept, cut, strict=True):
        assert whole.thinking_tokens is None
        assert whole.token_ids is not None
        assert answer.token_ids is not None
        if CLOSES in whole.token_ids:
            seen.add("answered" if answer.text else "nothing")
            assert answer.thinking_tokens >= whole.token_ids.index(CLOSES) + 1
            assert answer.token_ids == whole.token_ids[answer.thinking_tokens :]
            assert (answer.finish_reason, answer.text) == (whole.finish_reason, answer.text.lstrip())
        else:
            seen.add("inside")
            assert (answer.text, answer.token_ids, answer.finish_reason) == ("", [], "length")
            assert answer.thinking_tokens == len(whole.token_ids)
    assert {"answered", "inside"} <= seen
    inside = sum(CLOSES not in (row.token_ids or []) for row in kept)
    assert thinking_cut(cut).startswith(f"thinking was cut from {len(cut)} of {len(cut)}")
    assert inside <= sum(not row.text for row in cut)


def test_an_answer_without_thinking_stays_as_it_is(directory: Path) -> None:
    kept = drawn(directory, AskingSettings(chat_template_kwargs=OFF))
    cut = drawn(directory, AskingSettings(chat_template_kwargs=OFF, thinking="cut"))
    same = [(one, other) for one, other in zip(kept, cut, strict=True) if CLOSES not in (one.token_ids or [])]
    assert same
    assert all(one == other for one, other in same)


def test_a_server_that_returns_text_gets_the_same(directory: Path) -> None:
    tokenizer = load_tokenizer(directory, AskingSettings(thinking="cut"))
    answer = tokenizer.text_answer("so and so</think>\n\nSí.", "stop", 9)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("Sí.", None, "stop")
    assert answer.thinking_tokens == 9 - len(tokenizer.response_ids("Sí.", False))
    assert tokenizer.text_answer("so and so", "stop", 9) == Sampled("", None, "length", 9)
    kept = load_tokenizer(directory)
    assert kept.text_answer("so</think>Sí.", "stop", 9) == Sampled("so</think>Sí.", None, "stop")


@pytest.mark.parametrize(
    ("template", "prompt", "text", "answer"),
    [
        ("... </think> ...", "<|assistant|>\n", "<think>\nhm\n</think>\n\nSí.", "Sí."),
        ("... </think> ...", "<|assistant|>\n", "Sí.", "Sí."),
        ("... </think> ...", "<|assistant|>\n", "\n<think>\nhm", None),
        ("... </think> ...", "<|assistant|><think>\n", "hm </think>Sí. </think>", "Sí. </think>"),
        ("... </think> ...", "<|assistant|><think>\n", "hm", None),
        ("... </think> ...", "<|assistant|><think>\n\n</think>\n\n", "Sí.", "Sí."),
        (
            "'<think>' <|channel|>final<|message|>",
            "<|start|>assistant",
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Sí.",
            "Sí.",
        ),
        ("<|channel|>final<|message|>", "<|start|>assistant", "<|channel|>analysis<|message|>hm", None),
        ("[/THINK]", "[/INST]", "[THINK]hm[/THINK]Sí.", "Sí."),
    ],
)
def test_where_the_answer_begins(template: str, prompt: str, text: str, answer: str | None) -> None:
    thinking = find_thinking(template, prompt)
    assert isinstance(thinking, Thinking)
    begin = thinking.answer_begins(text)
    assert (None if begin is None else text[begin:]) == answer
    # The same where every character is a token.
    count = thinking.thinking_tokens([ord(character) for character in text], lambda ids: "".join(map(chr, ids)))
    assert count == begin


def test_a_cut_answer_is_scored_behind_the_end_of_the_thinking_that_the_prompt_begins(
    directory: Path, tmp_path: Path
) -> None:
    policy, cut = nudge(directory, tmp_path / "policy"), AskingSettings(thinking="cut")
    tokenizer = load_tokenizer(directory, cut)
    prompt, answer = tokenizer.prompt_ids("Saluda."), tokenizer.response_ids("Hola.", ended=True)
    assert tokenizer.prompt_ids("Saluda.", answered=True) == [*prompt, CLOSES]
    assert load_tokenizer(directory).prompt_ids("Saluda.", answered=True) == prompt
    [score] = make_scorer(policy, directory, asking=cut).score(
        "Saluda.", [Response("p", "es", 0, "Hola.", answer, "stop", None)]
    )
    with torch.no_grad():
        expected = [naive.sequence_logprob(naive.load(each), [*prompt, CLOSES], answer) for each in (policy, directory)]
    assert (score.policy, score.reference) == pytest.approx(list(map(float, expected)), abs=1e-3)


def test_an_answer_as_text_keeps_the_marks_around_its_thinking_or_loses_it(directory: Path) -> None:
    text, tokens = "<think>hm <|end|> </think>\n\nSí </think>", load_tokenizer(directory).tokenizer
    kept, cut = (load_tokenizer(directory, AskingSettings(thinking=rule)) for rule in ("keep", "cut"))
    ids = kept.response_ids(text, ended=True)
    assert [token for token in ids if token < 6] == [CLOSES, 2]  # the first mark is no token of this tokenizer
    assert tokens.decode(ids) == f"{text}<|end|>"
    assert cut.response_ids(text, ended=True) == kept.response_ids("Sí </think>", ended=True)
    assert CLOSES not in kept.response_ids("The mark </think> ends it.", ended=True)


@pytest.mark.parametrize(
    ("template", "prompt", "between"),
    [
        ("</think>", "<|assistant|><think>\n", "\n</think>\n\n"),
        ("</think>", "<|assistant|><think>", "</think>"),
        ("</think>", "<|assistant|><think>\n\n</think>\n\n", ""),
        ("</think>", "<|assistant|>\n", ""),
        ("<|channel|>final<|message|>", "<|start|>assistant", "<|channel|>final<|message|>"),
    ],
)
def test_what_stands_before_a_cut_answer(template: str, prompt: str, between: str) -> None:
    thinking = find_thinking(template, prompt)
    assert thinking is not None
    assert thinking.before_answer(prompt) == between


def test_a_model_that_does_not_think() -> None:
    assert find_thinking("{{ message['content'] }}", "<|assistant|>") is None
