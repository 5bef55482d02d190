"""Tiny models that share one real tokenizer and chat template: ordinary transformers directories, made in seconds."""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

DATA = Path(__file__).parents[1] / "src" / "crosspref" / "data"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
}
CONFIGS = {
    "llama": lambda size: LlamaConfig(vocab_size=size, **SHAPE),
    "qwen": lambda size: Qwen3Config(vocab_size=size, **SHAPE),
    # Soft-capped logits and attention, and a window shorter than most prompts.
    "gemma": lambda size: Gemma2Config(
        vocab_size=size, sliding_window=8, final_logit_softcapping=5.0, attn_logit_softcapping=5.0, **SHAPE
    ),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the embedded prompts, with a BOS and an end-of-turn token."""
    rows = [json.loads(line) for line in (DATA / "prompts_train.jsonl").read_text().splitlines()]
    texts = [text for row in rows for key, text in row.items() if key != "prompt_id"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|eos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=alphabet)
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|eos|>",
        additional_special_tokens=special[2:],
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def make_model(directory: Path, kind: str = "llama", seed: int = 0, scale: float = 6.0) -> Path:
    """Write a random model; ``scale`` sharpens its distributions, so that wrong positions and masks show."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](len(tokenizer)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def nudge(source: Path, directory: Path, seed: int = 1, size: float = 0.05) -> Path:
    """Write a slightly different model with the same tokenizer: a stand-in for an aligned policy."""
    model = AutoModelForCausalLM.from_pretrained(source)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * parameter.std().nan_to_num() * torch.randn_like(parameter))
    model.save_pretrained(directory)
    for file in source.iterdir():
        if file.name.startswith("tokenizer") or file.suffix == ".jinja":
            (directory / file.name).write_bytes(file.read_bytes())
    return directory


def talker(source: Path, directory: Path) -> Path:
    """Write a model that ends its turn now and then, so that responses of both kinds and of all lengths come up."""
    shutil.copytree(source, directory)
    model = AutoModelForCausalLM.from_pretrained(source)
    end = AutoTokenizer.from_pretrained(source).convert_tokens_to_ids("<|end|>")
    with torch.no_grad():
        model.get_output_embeddings().weight[end] *= 3
    model.save_pretrained(directory)
    return directory


def make_adapter(
    base: Path,
    directory: Path,
    seed: int = 0,
    rank: int = 4,
    size: float = 0.1,
    modules: str | list[str] = "all-linear",
    *,
    with_base: bool | str = "auto",
) -> Path:
    """Write a LoRA adapter of random weights over a model, as peft does: a stand-in for an aligned policy."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM"),
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(size * torch.randn_like(parameter))
    model.save_pretrained(directory, save_embedding_layers=with_base)
    return directory
