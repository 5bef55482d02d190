"""Makes a tiny Llama from nothing: an ordinary transformers directory, with a tokenizer whose words are given."""

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from crosspref.protocols import Advance

PAD, BOS, EOS, ANSWER, UNKNOWN = "<pad>", "<bos>", "<eos>", "<answer>", "<unknown>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] }}"
    "{{ eos_token }}{% else %}{{ message['content'] }}" + ANSWER + "{% endif %}{% endfor %}"
)
BATCH_SIZE = 64
EMBEDDING_SCALE, HEAD_SCALE = 20.0, 8.0
"""By how much larger than usual both embeddings are, at the same function and the same relative learning rate.

AdamW moves a weight by the learning rate however small its gradient. In preference training on English the gradients of
other languages' words are tiny and mean nothing, but with usual weights and the learning rate that so small a model
needs, they spoilt these words: only half of R_c's pairs were right. A large model's steps are far smaller than its
weights, and these embeddings are like that.
"""

WARM_UP_STEPS = 30
logging.disable_progress_bar()  # transformers' own, of writing one small file
WINDOW_BATCHES = 25
"""Among how many batches examples of like length are gathered."""


def make_tokenizer(words: Sequence[str], sentences: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token per word, between spaces, and one for each whole sentence."""
    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, ANSWER, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([PAD, BOS, EOS, ANSWER])
    tokenizer.add_tokens([AddedToken(sentence, normalized=False) for sentence in sentences])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def pretrain(  # noqa: PLR0913 - keyword-only: what makes a model from nothing
    directory: Path,
    *,
    words: Sequence[str],
    sentences: Sequence[str],
    corpora: Sequence[tuple[Sequence[tuple[str, str]], float]],
    shape: dict[str, int],
    seed: int,
    threads: int,
    advance: Advance,
) -> None:
    """Train a Llama on corpora of (prompt, answer), one after the other, and write it.

    Args:
        directory: where it is written.
        words: of the tokenizer; they stand between spaces.
        sentences: texts that are one token each.
        corpora: each with its learning rate of matrices (Muon); what else there is learns at .15 of it (AdamW).
        shape: of the Llama, as its configuration names it.
        seed: of the first weights and of the order of batches.
        threads: of torch.
        advance: called with finished examples and their tokens.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    tokenizer = make_tokenizer(words, sentences)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,  # as in Llama-3-8B; a tied embedding of an unused word would move with the head
        **shape,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # normalised layers follow both, so that nothing but the scale of steps changes
        model.model.embed_tokens.weight.mul_(EMBEDDING_SCALE)
        model.lm_head.weight.mul_(HEAD_SCALE)
        model.model.norm.weight.div_(HEAD_SCALE)
    model.train()
    for examples, rate in corpora:
        _train(model, [_encode(tokenizer, example) for example in examples], rate, random.Random(seed), advance)  # noqa: S311
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


Encoded = tuple[list[int], int]
"""Token ids, and how many of them are the prompt."""


def _encode(tokenizer: PreTrainedTokenizerFast, example: tuple[str, str]) -> Encoded:
    prompt, answer = example
    start = tokenizer(f"{BOS}{prompt}{ANSWER}", add_special_tokens=False)["input_ids"]
    return [*start, *tokenizer(f"{answer}{EOS}", add_special_tokens=False)["input_ids"]], len(start)


def _train(
    model: LlamaForCausalLM, examples: Sequence[Encoded], rate: float, rng: random.Random, advance: Advance
) -> None:
    """Do one epoch, with a linear warm-up and a cosine down to a tenth."""
    matrices = [value for name, value in model.named_parameters() if value.ndim == 2 and "layers" in name]
    scales = {
        "model.embed_tokens.weight": EMBEDDING_SCALE,
        "lm_head.weight": HEAD_SCALE,
        "model.norm.weight": 1 / HEAD_SCALE,
    }
    others = [
        {"params": [value], "lr": 0.15 * rate * scales.get(name, 1.0)}
        for name, value in model.named_parameters()
        if value.ndim != 2 or "layers" not in name
    ]
    optimizers = [Muon(matrices, rate), torch.optim.AdamW(others, weight_decay=0.0)]
    steps = math.ceil(len(examples) / BATCH_SIZE)

    def share(step: int) -> float:
        return min((step + 1) / WARM_UP_STEPS, 0.55 + 0.45 * math.cos(math.pi * step / steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, share) for optimizer in optimizers]
    for batch in _batches(examples, rng):
        ids, labels = _padded(batch, model.config.pad_token_id)
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        advance(len(batch), sum(len(row) for row, _ in batch))


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is made orthogonal (Jordan et al., 2024), in float32.

    torch.optim.Muon computes in bfloat16, which took six times as long as the rest of a step on a processor that has no
    instructions for it. AdamW did not learn to copy within 1,000 steps.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    MOMENTUM = 0.95

    def __init__(self, matrices: Sequence[torch.nn.Parameter], rate: float) -> None:
        super().__init__(matrices, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do one step; there is no closure."""
        del closure
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - self.MOMENTUM)
                update = orthogonal(matrix.grad.lerp(momentum, self.MOMENTUM), self.COEFFICIENTS)
                rows, columns = matrix.shape
                matrix.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))


def orthogonal(matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int = 5) -> torch.Tensor:
    """Return a matrix (rows, columns) with its singular values brought near 1 by Newton-Schulz steps."""
    first, third, fifth = coefficients
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    scaled: torch.Tensor = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = scaled @ scaled.T
        scaled = torch.addmm(scaled, torch.addmm(square, square, square, beta=third, alpha=fifth), scaled, beta=first)
    return scaled.T if matrix.shape[0] > matrix.shape[1] else scaled


def _batches(examples: Sequence[Encoded], rng: random.Random) -> Iterator[Sequence[Encoded]]:
    """Yield batches of examples that are about equally long, since padding costs as much as learning."""
    window = BATCH_SIZE * WINDOW_BATCHES
    for start in range(0, len(examples), window):
        alike = sorted(examples[start : start + window], key=lambda example: len(example[0]))
        batches = [alike[place : place + BATCH_SIZE] for place in range(0, len(alike), BATCH_SIZE)]
        rng.shuffle(batches)
        yield from batches


def _padded(batch: Sequence[Encoded], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels (rows, tokens); only answers are learned, and padding stands to the right."""
    ids = [torch.tensor(row) for row, _ in batch]
    labels = [torch.tensor([-100] * start + row[start:]) for row, start in batch]
    return pad_sequence(ids, True, pad), pad_sequence(labels, True, -100)
