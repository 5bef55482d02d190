"""Eq. 11 (DPO and NLL), IPO, SimPO, ORPO and KTO and their gradients against values worked out with a pencil."""

import math
from collections.abc import Callable

import pytest
import torch

from crosspref.maths.losses import dpo_loss, ipo_loss, kto_kl, kto_loss, log_odds, nll_loss, orpo_loss, simpo_loss

LN2, LN3 = math.log(2), math.log(3)

# Log-probabilities of four pairs: chosen, rejected, reference chosen, reference rejected, tokens of the chosen one.
#
#   pair   chosen ratio      rejected ratio      margin      beta * margin (beta = 0.1)
#   A      -10 + 12 = 2      -20 + 15 = -5        7           0.7
#   B      -12 + 10 = -2     -15 + 20 = 5        -7          -0.7
#   C      -30 + 30 = 0      -18 + 18 = 0         0           0
#   D      -5 + 9 = 4        -6 + 8 = 2           2           0.2
PAIRS = torch.tensor(
    [
        [-10.0, -20.0, -12.0, -15.0, 4.0],
        [-12.0, -15.0, -10.0, -20.0, 8.0],
        [-30.0, -18.0, -30.0, -18.0, 15.0],
        [-5.0, -6.0, -9.0, -8.0, 1.0],
    ],
    dtype=torch.float64,
)
# -log sigmoid(z) = ln(1 + e^-z):
#   A  e^-0.7 = 0.4965853038,  ln 1.4965853038 = 0.4031860489
#   B  0.7 more than A, since -log sigmoid(-z) = z - log sigmoid(z): 1.1031860489
#   C  ln 2 = 0.6931471806
#   D  e^-0.2 = 0.8187307531,  ln 1.8187307531 = 0.5981388694
DPO = [0.4031860489, 1.1031860489, 0.6931471806, 0.5981388694]
# -chosen / tokens:  10/4,  12/8,  30/15,  5/1
NLL = [2.5, 1.5, 2.0, 5.0]


def loss(pairs: torch.Tensor, beta: float = 0.1, nll_weight: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    chosen, rejected, reference_chosen, reference_rejected, tokens = pairs.unbind(1)
    dpo = dpo_loss(chosen - reference_chosen, rejected - reference_rejected, beta=beta)
    return dpo, nll_weight * nll_loss(chosen, tokens)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_terms_of_each_pair(dtype: torch.dtype) -> None:
    dpo, _ = loss(PAIRS.to(dtype))
    nll = nll_loss(PAIRS[:, 0].to(dtype), PAIRS[:, 4].long())
    assert dpo.dtype == nll.dtype == dtype
    precision = 1e-9 if dtype == torch.float64 else 1e-6
    assert dpo.tolist() == pytest.approx(DPO, rel=precision)
    assert nll.tolist() == pytest.approx(NLL, rel=precision)


def test_gradients() -> None:
    # d(-log sigmoid(z))/dz = -(1 - sigmoid(z)) = -sigmoid(-z), and z = beta * margin, so
    #   d loss / d chosen   = -beta * sigmoid(-z) - nll_weight / tokens
    #   d loss / d rejected = +beta * sigmoid(-z)
    # With beta 1/2 and z = ln 3, sigmoid(-z) = 1/4: 1/8 for the rejected one, -1/8 - 2/5 for the chosen one of five
    # tokens at weight 2. With z = -ln 3, sigmoid(-z) = 3/4: 3/8, and -3/8 - 2/10 for the one of ten tokens.
    pairs = torch.tensor([[LN3, -LN3, 0.0, 0.0, 5.0], [-LN3, LN3, 0.0, 0.0, 10.0]], dtype=torch.float64)
    pairs.requires_grad_()
    dpo, nll = loss(pairs, beta=0.5, nll_weight=2.0)
    (dpo + nll).sum().backward()
    assert pairs.grad is not None
    chosen, rejected, reference_chosen, reference_rejected = pairs.grad[:, :4].unbind(1)
    assert chosen.tolist() == pytest.approx([-0.525, -0.575], abs=1e-12)
    assert rejected.tolist() == pytest.approx([0.125, 0.375], abs=1e-12)
    # The reference is subtracted: its gradients are those of the DPO term with the other sign.
    assert reference_chosen.tolist() == pytest.approx([0.125, 0.375], abs=1e-12)
    assert reference_rejected.tolist() == pytest.approx([-0.125, -0.375], abs=1e-12)


def test_huge_margins_do_not_overflow() -> None:
    # -log sigmoid(-800) = 800, with slope -beta in the chosen one; -log sigmoid(800) = 0, with slope 0.
    pairs = torch.tensor([[-8000.0, 0.0, 0.0, 0.0, 1.0], [8000.0, 0.0, 0.0, 0.0, 1.0]], requires_grad=True)
    dpo, _ = loss(pairs, nll_weight=0.0)
    dpo.sum().backward()
    assert dpo.tolist() == pytest.approx([800.0, 0.0])
    assert pairs.grad is not None
    assert pairs.grad[:, 0].tolist() == pytest.approx([-0.1, 0.0])


def column(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> list[list[float]]:
    return [gradient.tolist() for gradient in torch.autograd.grad(loss.sum(), inputs)]


def test_ipo() -> None:
    # With beta 1/4 the margin that is aimed at is 1 / (2 * 1/4) = 2 nats per token.
    #   A  2 nats over 4 tokens = 0.5, -3 over 6 = -0.5: margin 1, one short of 2, so (1 - 2)^2 = 1
    #   B  -1 over 2 = -0.5, 1 over 1 = 1: margin -1.5, so (-3.5)^2 = 12.25
    # d/d chosen = 2 (margin - 2) / |chosen| and d/d rejected = -2 (margin - 2) / |rejected|:
    #   A  2 * -1 / 4 = -1/2 and 2 / 6 = 1/3;   B  2 * -3.5 / 2 = -3.5 and 7 / 1 = 7
    chosen, rejected = column(2, -1), column(-3, 1)
    loss = ipo_loss(chosen, rejected, torch.tensor([4, 2]), torch.tensor([6, 1]), beta=0.25)
    assert loss.tolist() == pytest.approx([1, 12.25], abs=1e-12)
    assert gradients(loss, chosen, rejected) == [
        pytest.approx([-1 / 2, -3.5], abs=1e-12),
        pytest.approx([1 / 3, 7], abs=1e-12),
    ]
    # With beta 0.5 the target is 1, just A's margin; with beta 0.1 it is 5, and (1 - 5)^2 = 16.
    for beta, expected in ((0.5, 0.0), (0.1, 16.0)):
        loss = ipo_loss(chosen[:1], rejected[:1], torch.tensor([4]), torch.tensor([6]), beta=beta)
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("gamma", "expected", "slope"),
    [
        # Chosen: four tokens of probability 1/2. Rejected: two of probability 1/6. Per token they differ by ln 3, and
        # with beta 2 by 2 ln 3. Where gamma is ln 3, the sigmoid sees ln 3: 3/4. Where it is 3 ln 3, -ln 3: 1/4. Where
        # it is 0, 2 ln 3: 9/10. The slope is 1 - sigmoid.
        (LN3, math.log(4 / 3), 1 / 4),
        (3 * LN3, 2 * LN2, 3 / 4),
        (0.0, math.log(10 / 9), 1 / 10),
    ],
)
def test_simpo(gamma: float, expected: float, slope: float) -> None:
    chosen, rejected = column(4 * math.log(1 / 2)), column(2 * math.log(1 / 6))
    loss = simpo_loss(chosen, rejected, torch.tensor([4]), torch.tensor([2]), beta=2.0, gamma=gamma)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
    # d/d chosen = -beta * slope / |chosen|, d/d rejected = beta * slope / |rejected|
    assert gradients(loss, chosen, rejected) == [
        pytest.approx([-2 * slope / 4], abs=1e-12),
        pytest.approx([2 * slope / 2], abs=1e-12),
    ]


@pytest.mark.parametrize("beta", [0.5, 3.0])
def test_orpo(beta: float) -> None:
    # Chosen: two tokens of probability 3/4, odds 3. Rejected: five of 1/4, odds 1/3. The odds ratio is 9, and
    # sigmoid(ln 9) = 9/10. d log-odds / d mean log-probability = 1 + p / (1 - p) = 1 / (1 - p): 4 and 4/3. So
    #   d/d chosen = -beta * 1/10 * 4 / 2 and d/d rejected = beta * 1/10 * 4/3 / 5
    chosen, rejected = column(2 * math.log(3 / 4)), column(5 * math.log(1 / 4))
    loss = orpo_loss(chosen, rejected, torch.tensor([2]), torch.tensor([5]), beta=beta)
    assert float(loss.detach()) == pytest.approx(beta * math.log(10 / 9), abs=1e-12)
    assert gradients(loss, chosen, rejected) == [
        pytest.approx([-beta / 5], abs=1e-12),
        pytest.approx([beta * 4 / 150], abs=1e-12),
    ]


def test_log_odds_keep_their_digits_and_stay_finite() -> None:
    # Close to 1: p = e^-0.000001, 1 - p = 0.000001 (to six digits), so the log-odds are ln 1000000 = 13.815510, and in
    # float32 1 - exp(...) would be a few per cent off. Close to 0: 1 - p = 1, so they are the mean, -800, with slope 1.
    logprobs = column(-2e-6, -1600, 0, dtype=torch.float32)
    odds = log_odds(logprobs, torch.tensor([2, 2, 2]))
    assert odds[:2].tolist() == pytest.approx([13.815510, -800], rel=1e-6)
    # A probability of 1 has infinite odds; here those of 1 - 2^-23: ln 2^23 = 15.942385.
    assert float(odds[2].detach()) == pytest.approx(23 * LN2, rel=1e-6)
    [[near, far, one]] = gradients(odds, logprobs)
    assert (near, far) == pytest.approx((1e6 / 2, 1 / 2), rel=1e-4)
    assert math.isfinite(one)


def test_kto() -> None:
    # With beta 1/2 and z_ref 1, beta (r - z_ref) is ln 3 for r = 1 + 2 ln 3, -ln 3 for 1 - 2 ln 3: sigmoids 3/4, 1/4.
    #   desirable, lambda_w 2:    2 (1 - 3/4) = 0.5,   2 (1 - 1/4) = 1.5
    #   undesirable, lambda_l 4:  4 (1 - 1/4) = 3,     4 (1 - 3/4) = 1
    # sigmoid' = 3/4 * 1/4 = 3/16 at both: d/dr = -2 * 1/2 * 3/16 of a desirable one and 4 * 1/2 * 3/16 of the others.
    high, low = 1 + 2 * LN3, 1 - 2 * LN3
    ratios, desirable = column(high, low, high, low), torch.tensor([True, True, False, False])
    loss = kto_loss(ratios, desirable, torch.tensor(1.0), beta=0.5, desirable_weight=2.0, undesirable_weight=4.0)
    assert loss.tolist() == pytest.approx([0.5, 1.5, 3, 1], abs=1e-12)
    assert gradients(loss, ratios)[0] == pytest.approx([-3 / 16, -3 / 16, 3 / 8, 3 / 8], abs=1e-12)


def test_kto_of_huge_log_ratios() -> None:
    # 1 - sigmoid(50) = e^-50, which 1 - 1.0 would lose; and nothing overflows.
    loss = kto_loss(
        column(50, 1e4, -1e4, dtype=torch.float32),
        torch.tensor([True, False, True]),
        torch.tensor(0.0),
        beta=1.0,
        desirable_weight=1.0,
        undesirable_weight=1.0,
    )
    assert loss.tolist() == pytest.approx([math.exp(-50), 1, 1], rel=1e-5)


def test_kto_kl_is_a_mean_of_at_least_0_without_gradient() -> None:
    # (1 + 3 - 1) / 3 = 1: clamped after the mean, not before it, which would give 4/3.
    assert float(kto_kl(column(1, 3, -1))) == 1
    assert float(kto_kl(column(-3, 1))) == 0
    assert not kto_kl(column(1, 3)).requires_grad


RATIOS = column(2, -1, 0.5), column(-3, 1, 4)
LOGPROBS = column(-4, -8, -30), column(-9, -2, -25)
TOKENS = torch.tensor([4, 2, 9]), torch.tensor([6, 1, 3])


@pytest.mark.parametrize(
    "loss",
    [
        lambda rows: dpo_loss(*(column[rows] for column in RATIOS), beta=0.3),
        lambda rows: ipo_loss(*(column[rows] for column in (*RATIOS, *TOKENS)), beta=0.3),
        lambda rows: simpo_loss(*(column[rows] for column in (*LOGPROBS, *TOKENS)), beta=2.0, gamma=0.5),
        lambda rows: orpo_loss(*(column[rows] for column in (*LOGPROBS, *TOKENS)), beta=0.3),
        lambda rows: kto_loss(
            RATIOS[0][rows],
            torch.tensor([True, False, True])[rows],
            torch.tensor(0.7),
            beta=0.3,
            desirable_weight=1.0,
            undesirable_weight=2.0,
        ),
    ],
    ids=["dpo", "ipo", "simpo", "orpo", "kto"],
)
def test_each_value_depends_on_its_own_row_alone(loss: Callable[[slice], torch.Tensor]) -> None:
    together = loss(slice(0, 3))
    assert together.shape == (3,)
    alone = torch.cat([loss(slice(row, row + 1)) for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
