"""The lines on memory: each is measured in a process of its own, by what the kernel says of it."""

import ctypes
import ctypes.util
import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lines import reached
from timing import in_child
from workload import Workload, copy_tokenizer, rate

from crosspref.data.records import Response
from crosspref.languages import ENGLISH
from crosspref.models.locate import ModelFiles, locate_model

VOCABULARY, HIDDEN, RESPONSES, TOKENS = 128_000, 256, 10, 2400
"""A model of a tiny body with a large output layer, and what it scores."""

WORD = "word "


def measure(work: Workload) -> dict[str, dict[str, Any]]:
    """Measure what scoring takes beside weights, with a large vocabulary and on the workload."""
    model, rounds = locate_model(str(large_vocabulary(work))), range(work.options.rounds)
    large = [in_child(scoring_long, work, model, TOKENS) for _ in rounds]
    usual = [in_child(scoring, work) for _ in rounds]
    longest = max(len(prompt) + len(ids) for prompt, responses in work.rows() for ids in responses)
    vocabulary = json.loads((work.policy.directory / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    all_logits = {"float32 logits of all of it, MB": RESPONSES * TOKENS * VOCABULARY * 4 / 1e6}
    logits = {"float32 logits of a prompt's responses, MB": work.options.responses * longest * vocabulary * 4 / 1e6}
    return {
        "memory": reached("memory", large, **all_logits),
        "memory-workload": reached("memory-workload", usual, **logits),
    }


def scoring_long(work: Workload, model: ModelFiles, tokens: int) -> float:
    """Return the megabytes that scoring long responses under a large vocabulary takes above the weights."""
    scorer = work.engines().scorer(model, None)
    rows = []
    for number in range(RESPONSES):
        ids = [(7 * number + 13 * place) % VOCABULARY for place in range(tokens)]
        rows.append(Response("long", ENGLISH, number, "", ids, "length", 0))
    return extra(scorer, lambda: scorer.score(WORD * 200, rows))


def scoring(work: Workload) -> float:
    """Return the megabytes that scoring the longest prompts takes above the weights of two models."""
    scorer = work.engines().scorer(work.policy, work.initial)
    longest = sorted(work.prompts, key=lambda prompt: -len(prompt.instruction))
    part = replace(work, prompts=longest).first(4)
    return extra(scorer, lambda: rate(scorer, part))


def weights_of(work: Workload, policy: ModelFiles, reference: ModelFiles) -> float:
    """Return the megabytes that a scorer of two models holds, without what scoring itself takes."""
    import crosspref.engines.transformers.scorer  # noqa: F401 - the libraries must not count as weights

    before = resident()
    scorer = work.engines().scorer(policy, reference)
    warm_up(scorer)
    return resident() - before


def extra(scorer: Any, score: Callable[[], Any]) -> float:
    """Return by how many megabytes the greatest memory while scoring is above what the weights and libraries take."""
    warm_up(scorer)
    before = resident()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    score()
    return field("VmHWM") - before


def warm_up(scorer: Any) -> None:
    """Score a little, and read all weights once: pages of files that nobody has read yet are not in memory."""
    import torch

    scorer.score(WORD, [Response("short", ENGLISH, 0, "", [1, 2], "length", 0)])
    for item in gc.get_objects():
        if isinstance(item, torch.nn.Parameter):
            float(item.detach().sum())


def resident() -> float:
    """Return this process's memory in megabytes, without what is free in its allocator."""
    gc.collect()
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    return field("VmRSS")


def field(name: str) -> float:
    """Return a line of the process's status in megabytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return int(facts[name].split()[0]) * 1024 / 1e6


def large_vocabulary(work: Workload) -> Path:
    """Write the model with the large vocabulary, and the workload's tokenizer, if it is not there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = work.options.cache / "models" / f"vocabulary-{VOCABULARY}"
    if not (directory / "config.json").exists():
        torch.manual_seed(0)
        shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2 * HIDDEN}
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, max_position_embeddings=4096, tie_word_embeddings=True, **shape
        )
        copy_tokenizer(work.policy.directory, directory)
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory
