"""Tiny models that think aloud: their prompts end inside the thinking, and now and then they come to its end."""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

CLOSES = 5
"""The id of ``</think>``: the tiny tokenizer's token for the system's turns, under another name."""


def thinker(source: Path, directory: Path) -> Path:
    shutil.copytree(source, directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (directory / name).read_text(encoding="utf-8")
        (directory / name).write_text(text.replace("<|system|>", "</think>"), encoding="utf-8")
    template = directory / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    switch = "{{ '<think></think>' if enable_thinking is defined and not enable_thinking else '<think>' }}"
    template.write_text(text.replace("<|assistant|>{%", f"<|assistant|>{switch}{{%"), encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.get_output_embeddings().weight[CLOSES] *= 3
    model.save_pretrained(directory)
    return directory
