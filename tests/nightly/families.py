"""Tiny random models of the families that people use today: each an ordinary transformers directory."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import make_tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
HEADS = {"head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
STATES = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3": ("LlamaConfig", {**SHAPE, "rope_theta": 500000.0}),
    "Mistral": ("MistralConfig", {**SHAPE, **HEADS, "sliding_window": 8}),
    "Mixtral": ("MixtralConfig", {**SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen2": ("Qwen2Config", {**SHAPE, "tie_word_embeddings": True}),
    "Qwen3": ("Qwen3Config", {**SHAPE, **HEADS}),
    "Qwen3 MoE": ("Qwen3MoeConfig", {**SHAPE, **HEADS, **EXPERTS, "num_experts": 4}),
    "Gemma 2": ("Gemma2Config", {**SHAPE, **HEADS, "sliding_window": 8}),
    "Gemma 3": ("Gemma3TextConfig", {**SHAPE, **HEADS, "sliding_window": 8}),
    "Phi-3, Phi-4": ("Phi3Config", {**SHAPE, "pad_token_id": 1, "original_max_position_embeddings": 512}),
    "OLMo 2": ("Olmo2Config", SHAPE),
    "OLMo 3": ("Olmo3Config", {**SHAPE, "sliding_window": 8}),
    "SmolLM2": ("LlamaConfig", {**SHAPE, "tie_word_embeddings": True}),
    "SmolLM3": ("SmolLM3Config", {**SHAPE, "no_rope_layers": [1, 0], "pad_token_id": 1}),
    "GPT-NeoX, Pythia": (
        "GPTNeoXConfig",
        {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"},
    ),
    "Granite 3": ("GraniteConfig", {**SHAPE, "logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "Granite 4 (hybrid)": (
        "GraniteMoeHybridConfig",
        {
            **SHAPE,
            **STATES,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "num_local_experts": 0,
            "shared_intermediate_size": 64,
        },
    ),
    "Command R": ("CohereConfig", {**SHAPE, "logit_scale": 0.5}),
    "Command R7B, Aya": ("Cohere2Config", {**SHAPE, "logit_scale": 0.5, "sliding_window": 8}),
    "DeepSeek-V3-like": (
        "DeepseekV3Config",
        {
            **SHAPE,
            **LATENT,
            **EXPERTS,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt-oss": (
        "GptOssConfig",
        {**SHAPE, **HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "Falcon H1 (hybrid)": (
        "FalconH1Config",
        {
            **SHAPE,
            **HEADS,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
}
"""By family: its configuration class, and what makes it tiny while it keeps what is special about it."""


def make_family(family: str, directory: Path, seed: int = 0) -> Path:
    """Write a random model of a family, sharp enough that a wrong mask or position would show."""
    kind, settings = FAMILIES[family]
    tokenizer = make_tokenizer()
    config = getattr(transformers, kind)(vocab_size=len(tokenizer), **settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
