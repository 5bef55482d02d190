"""The laboratory's own model maker: its optimizer against torch's, its tokenizer, and the cache of worlds."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from crosspref.engines.tiny_llama import Muon, make_tokenizer, orthogonal
from crosspref.engines.transformers.chat import load_tokenizer
from crosspref.engines.transformers.models import Loading, load_model
from crosspref.lab.world.files import World, examples, make_world, spoken_sentences
from crosspref.lab.world.world import LANGUAGE_OF, LANGUAGES, SEPARATOR, Answer, ask, draw_meaning, speak, write
from crosspref.languages import crosslingual_instruction, translation_instruction
from crosspref.run.progress import Reporter

TINY = replace(
    World(),
    clean=128,
    noisy=64,
    preferences=20,
    shape={
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    },
)
QUIET = Reporter(Console(quiet=True))


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_newton_schulz_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = orthogonal(matrix, Muon.COEFFICIENTS)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.linalg.svdvals(found).sub(1).abs().max() < 0.4
    # It keeps the directions: in those of the matrix the result is nearly diagonal.
    inside = left.T @ found @ right.T
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-3 * values.max()


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_muon_steps_as_torch_does(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    start = torch.randn(shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [Muon([ours], 0.02), torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0)]
    for _ in range(3):
        gradient = torch.randn(shape)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved, expected = ours - start, theirs - start
    assert (moved - expected).norm() < 0.03 * expected.norm()  # torch's is rounded to bfloat16


def test_what_crosspref_says_is_one_token_and_words_are_one_each() -> None:
    tokenizer = make_tokenizer([SEPARATOR, *LANGUAGE_OF], spoken_sentences())
    meaning = ((0, 0), (2, 4))
    for text, count in (
        (ask(meaning, "de"), 6),
        (crosslingual_instruction(ask(meaning, "en"), "sw"), 7),
        (translation_instruction(speak(Answer(meaning, (), False), "ru"), "en"), 7),
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == count
        assert tokenizer.unk_token_id not in ids


def test_a_world_is_made_once_and_is_an_ordinary_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSPREF_CACHE", str(tmp_path))
    files = make_world(TINY, 3, 1, QUIET)
    written = (files.initial / "model.safetensors").stat().st_mtime_ns
    assert make_world(TINY, 3, 1, QUIET).directory == files.directory
    assert (files.initial / "model.safetensors").stat().st_mtime_ns == written
    assert make_world(TINY, 4, 1, QUIET).directory != files.directory
    assert make_world(replace(TINY, preferences=21), 3, 1, QUIET).directory != files.directory
    tokenizer = load_tokenizer(files.initial)
    model = load_model(files.initial, Loading())
    rng = random.Random(5)
    for language in LANGUAGES:
        text = speak(write(draw_meaning(rng, 3), 1.0, rng), language)
        assert tokenizer.text(tokenizer.response_ids(text, ended=True)) == text
    prompt = tokenizer.prompt_ids("show red apple")
    special = (model.config.bos_token_id, tokenizer.tokenizer.convert_tokens_to_ids("<answer>"))
    assert (prompt[0], prompt[-1], len(prompt)) == (*special, 5)


def test_a_world_of_one_seed_is_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for name in ("first", "second"):
        monkeypatch.setenv("CROSSPREF_CACHE", str(tmp_path / name))
        files = make_world(TINY, 3, 1, QUIET)
        made.append({file.name: file.read_bytes() for file in sorted(files.directory.rglob("*")) if file.is_file()})
    assert made[0] == made[1]


def test_pre_training_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSPREF_CACHE", str(tmp_path))
    losses = []
    for clean in (64, 6400):
        files = make_world(replace(TINY, clean=clean), 3, 1, QUIET)
        model, tokenizer = load_model(files.initial, Loading()), load_tokenizer(files.initial)
        total = 0.0
        for prompt, answer in examples(TINY, 20, True, random.Random(9)):
            start, behind = tokenizer.prompt_ids(prompt), tokenizer.response_ids(answer, ended=True)
            ids = torch.tensor([[*start, *behind]])
            labels = ids.clone()
            labels[:, : len(start)] = -100
            total += float(model(input_ids=ids, labels=labels).loss.detach())
        losses.append(total / 20)
    assert losses[1] < 4.0 < 4.9 < losses[0]  # log(171 tokens) is 5.1
