"""What the fast paths are compared with: one row, one full forward pass, one log-softmax over float32 logits.

Nothing here is taken from crosspref: the prompt's text is spelled out, and no cache, tile, mask or padding is used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(directory: Path) -> Any:
    """Load in float32, with the attention that is written out in plain torch."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def prompt_ids(directory: Path, instruction: str) -> list[int]:
    """Return the ids of conftest's chat template written out, with its one BOS."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return tokenizer(f"<|bos|><|user|>{instruction}<|end|><|assistant|>", add_special_tokens=False)["input_ids"]


def greedy(model: Any, prompt: list[int], most: int, ends: Sequence[int] = (1, 2)) -> list[int]:
    """Return the likeliest tokens behind a prompt: ``most`` of them, or up to the first of ``ends``."""
    ids: list[int] = []
    while len(ids) < most and not set(ids[-1:]) & set(ends):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids


def token_logprobs(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Return log pi(token | everything before it) for each token of the response, (tokens,), nats."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].float()
    logprobs = torch.log_softmax(logits, dim=-1)
    # The row before a token predicts it, so the last prompt token predicts the first response token.
    return torch.stack([logprobs[len(prompt) + i - 1, token] for i, token in enumerate(response)])


def sequence_logprob(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Return log pi(response | prompt), a scalar with gradients, nats."""
    return token_logprobs(model, prompt, response).sum() if response else torch.zeros(())


def released_logprob(model: Any, prompt: list[int], response: list[int], end: int) -> float:
    """Return what the paper's released scripts sum: unshifted mask, so no first token, but an end-of-turn token.

    ``response`` comes without its end-of-turn token, as in a response that was cut at the token limit.
    """
    with torch.no_grad():
        return float(token_logprobs(model, prompt, [*response, end])[1:].sum())
