"""Tiled log-probabilities against three naive lines, and the memory that they take."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from crosspref.maths.logprobs import CACHED_BYTES, tiled_logprobs, token_logprobs

TOKENS, WIDTH, VOCABULARY = 7, 5, 11
ROW = 3 * 4 * VOCABULARY  # bytes of one row without gradients: three float32 buffers
# From one row at a time to all at once, in tiles that divide the tokens and that do not, with and without gradients.
BUDGETS = [1, ROW, 2 * ROW, 3 * ROW + 1, 4 * ROW, 6 * ROW, 7 * ROW, 8 * ROW, 10 * ROW, 1 << 30]
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 1.5},
    # Gemma 2 caps; where a model also scales, it scales first.
    "all": {"bias": True, "scale": 3.0, "softcap": 2.0},
}


def naive(hidden: Any, ids: Any, weight: Any, bias: Any, scale: float = 1.0, softcap: float | None = None) -> Any:
    logits = (hidden @ weight.T + (0 if bias is None else bias)) * scale
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    return logits.log_softmax(-1)[range(len(ids)), ids]


def problem(bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return hidden states, ids, weight and bias whose logits spread over some ten nats."""
    generator = torch.Generator().manual_seed(3)
    hidden, weight, offset = (
        torch.randn(*shape, generator=generator) * 2 for shape in ((TOKENS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    )
    # The first and the last column of the vocabulary are among the ids.
    ids = torch.tensor([0, VOCABULARY - 1, 4, 4, 9, 1, 6])
    return hidden, ids, weight, offset if bias else None


def values_and_gradients(function: Callable[..., torch.Tensor], bias: bool, **settings: Any) -> list[torch.Tensor]:
    hidden, ids, weight, offset = problem(bias)
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight, offset) if leaf is not None]
    values = function(hidden, ids, weight, offset, **settings)
    # A different factor for each token, so that a gradient in the wrong row shows.
    values.backward(torch.arange(1.0, TOKENS + 1))
    return [values.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def test_by_hand() -> None:
    # Logits ln 1, ln 2, ln 5: probabilities 1/8, 2/8, 5/8.
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log().expand(3, 3)
    expected = [-3 * math.log(2), -2 * math.log(2), math.log(5 / 8)]
    assert token_logprobs(logits, torch.tensor([0, 1, 2])).tolist() == pytest.approx(expected, abs=1e-6)
    # The same through an output layer: hidden (1, 0) and (0, 1) pick its columns, here ln(1, 2, 5) and ln(3, 1, 4).
    weight = torch.tensor([[1.0, 3.0], [2.0, 1.0], [5.0, 4.0]]).log()
    found = tiled_logprobs(torch.eye(2), torch.tensor([1, 0]), weight, None, budget=1)
    assert found.tolist() == pytest.approx([math.log(2 / 8), math.log(3 / 8)], abs=1e-6)
    # A scale of 2 squares the weights: 1, 4, 25 of 30; a bias of ln 2 on the first id doubles its share: 2/9.
    doubled = tiled_logprobs(torch.eye(2)[:1], torch.tensor([1]), weight, None, scale=2.0)
    assert float(doubled) == pytest.approx(math.log(4 / 30), abs=1e-6)
    bias = torch.tensor([math.log(2), 0.0, 0.0])
    assert float(tiled_logprobs(torch.eye(2)[:1], torch.tensor([0]), weight, bias)) == pytest.approx(math.log(2 / 9))


def test_softcap_by_hand() -> None:
    # tanh(ln 2) = (4 - 1) / (4 + 1) = 0.6. A cap of 5 turns a logit of 5 ln 2 = 3.47 into 3, and leaves 0 where it is.
    weight = torch.tensor([[5 * math.log(2)], [0.0]])
    found = tiled_logprobs(torch.ones(2, 1), torch.tensor([0, 1]), weight, None, softcap=5.0)
    assert found.tolist() == pytest.approx([-math.log1p(math.exp(-3)), -math.log1p(math.exp(3))], abs=1e-6)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("head", HEADS)
def test_values_and_gradients_equal_the_naive_ones(head: str, budget: int) -> None:
    settings = dict(HEADS[head])
    bias = bool(settings.pop("bias", False))
    expected = values_and_gradients(naive, bias, **settings)
    found = values_and_gradients(tiled_logprobs, bias, budget=budget, **settings)
    assert len(found) == len(expected) == 3 + bias
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("asked", ["hidden", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(asked: str) -> None:
    hidden, ids, weight, bias = problem(bias=True)
    leaves = {"hidden": hidden, "weight": weight, "bias": bias}
    expected = values_and_gradients(naive, bias=True)[1 + list(leaves).index(asked)]
    leaves[asked].requires_grad_()
    tiled_logprobs(hidden, ids, weight, bias, budget=4 * ROW).backward(torch.arange(1.0, TOKENS + 1))
    torch.testing.assert_close(leaves[asked].grad, expected, rtol=1e-5, atol=1e-5)
    assert all(leaf.grad is None for name, leaf in leaves.items() if name != asked)


def test_autocast_computes_products_in_its_own_format() -> None:
    hidden, ids, weight, bias = problem(bias=True)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = tiled_logprobs(hidden, ids, weight, bias, budget=1 << 20)
    logits = torch.nn.functional.linear(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16())
    expected = token_logprobs(logits, ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.equal(found, tiled_logprobs(hidden, ids, weight, bias))
    ours, theirs = (torch.autograd.grad(values.sum(), weight)[0] for values in (found, expected))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=float(theirs.abs().max()) / 100)


def test_no_tokens_have_no_log_probabilities() -> None:
    hidden, ids, weight, _ = problem(bias=False)
    found = tiled_logprobs(hidden[:0].requires_grad_(), ids[:0], weight, None)
    found.sum().backward()
    assert found.shape == (0,)


@pytest.mark.parametrize("budget", BUDGETS)
def test_without_gradients_the_values_are_the_same(budget: int) -> None:
    hidden, ids, weight, _ = problem(bias=False)
    with torch.no_grad():
        found = tiled_logprobs(hidden, ids, weight, None, budget=budget)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found, naive(hidden, ids, weight, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 3 * ROW, 1 << 30])
def test_bfloat16_is_summed_in_float32(budget: int) -> None:
    # Whole numbers this small have exact bfloat16 products and sums, so only what comes after the projection can
    # round. Near 12 nats neighbouring bfloat16 numbers lie 1/16 apart.
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randint(-2, 3, shape, generator=generator) for shape in ((TOKENS, 4), (VOCABULARY, 4)))
    ids = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    expected = naive(hidden.double(), ids, weight.double(), None, scale=0.7, softcap=9.0)
    for dtype in (torch.bfloat16, torch.float16):
        found = tiled_logprobs(hidden.to(dtype), ids, weight.to(dtype), None, scale=0.7, softcap=9.0, budget=budget)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    logits = hidden.bfloat16() @ weight.bfloat16().T
    found = token_logprobs(logits, ids).double()
    torch.testing.assert_close(found, naive(hidden.double(), ids, weight.double(), None), rtol=0, atol=1e-5)


def test_one_hot_certainty_and_large_logits() -> None:
    # 1e4 and -1e4 would overflow an exponential; the log-probabilities are 0 and -20,000.
    weight = torch.tensor([[1e4], [-1e4]])
    found = tiled_logprobs(torch.ones(2, 1), torch.tensor([0, 1]), weight, None)
    assert found.tolist() == [0.0, -20000.0]


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the most that torch held at once beyond what it held before, temporaries inside operations included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class TestMemory:
    """A response of 2,400 tokens over a vocabulary of 128,000: its whole float32 logits would take 1.2 GB."""

    TOKENS, VOCABULARY, WIDTH = 2400, 128_000, 2
    SMALL = 2 * (TOKENS + VOCABULARY) * WIDTH * 4  # hidden states, weight, and as much again for their gradients

    def head(self, tokens: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        hidden, weight = (torch.randn(size, self.WIDTH, generator=generator) for size in (tokens, self.VOCABULARY))
        return [hidden, torch.randint(0, self.VOCABULARY, (tokens,), generator=generator), weight]

    def test_a_large_budget_is_used_only_as_far_as_the_cache_goes(self) -> None:
        hidden, ids, weight = self.head(200)
        with torch.no_grad():
            peak = peak_bytes(lambda: tiled_logprobs(hidden, ids, weight, None, budget=128 << 20))
        assert peak <= CACHED_BYTES + self.SMALL < 200 * self.VOCABULARY * 4

    @pytest.mark.parametrize("gradients", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("settings", [{}, {"scale": 0.5}, {"softcap": 30.0}, {"scale": 0.5, "softcap": 30.0}])
    def test_all_temporaries_fit_the_budget(
        self, settings: dict[str, float], dtype: torch.dtype, gradients: bool
    ) -> None:
        hidden, ids, weight = self.head(50)
        hidden, weight = (tensor.to(dtype).requires_grad_(gradients) for tensor in (hidden, weight))

        def work() -> None:
            with torch.set_grad_enabled(gradients):
                values = tiled_logprobs(hidden, ids, weight, None, budget=4 << 20, **settings)
            if gradients:
                values.sum().backward()

        assert (4 << 20) / 3 < peak_bytes(work) <= (4 << 20) + self.SMALL
