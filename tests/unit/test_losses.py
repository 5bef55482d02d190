"""Eq. 11 (DPO and NLL) and its gradients against values worked out with a pencil."""

import math

import pytest
import torch

from crosspref.maths.losses import dpo_loss, nll_loss

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


def test_both_terms_of_each_pair() -> None:
    dpo, nll = loss(PAIRS)
    assert dpo.tolist() == pytest.approx(DPO, abs=1e-9)
    assert nll.tolist() == pytest.approx(NLL, abs=1e-9)


def test_a_pair_from_its_token_probabilities() -> None:
    # Chosen: two tokens of probability 1/2 and 1/4 under the policy, 1/4 and 1/6 under the reference. log-ratio:
    # ln(1/8) - ln(1/24) = ln 3. Rejected: one token, 1/9 under the policy and 1/3 under the reference: -ln 3.
    # With beta 1/2 the sigmoid sees 1/2 * (ln 3 + ln 3) = ln 3, and sigmoid(ln 3) = 3/4. So the DPO term is ln(4/3).
    # The NLL term is -ln(1/8) over two tokens: 3/2 ln 2.
    chosen, reference_chosen = math.log(1 / 2) + math.log(1 / 4), math.log(1 / 4) + math.log(1 / 6)
    pair = torch.tensor([[chosen, math.log(1 / 9), reference_chosen, math.log(1 / 3), 2.0]], dtype=torch.float64)
    dpo, nll = loss(pair, beta=0.5)
    assert float(dpo) == pytest.approx(math.log(4 / 3), abs=1e-12)
    assert float(nll) == pytest.approx(1.5 * LN2, abs=1e-12)


def test_swapping_chosen_and_rejected_gives_the_other_side_of_the_sigmoid() -> None:
    # sigmoid(-ln 3) = 1/4, so the DPO term becomes ln 4.
    pair = torch.tensor([[-2 * LN3, 0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    dpo, _ = loss(pair, beta=0.5)
    assert float(dpo) == pytest.approx(2 * LN2, abs=1e-12)


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        # Pair A's margin is 7: ln(1 + e^-7), ln(1 + e^-3.5), ln(1 + e^-0.07).
        (1.0, 0.0009114665),
        (0.5, 0.0297504183),
        (0.01, 0.6587595555),
    ],
)
def test_beta_scales_the_margin_and_not_the_nll(beta: float, expected: float) -> None:
    dpo, nll = loss(PAIRS[:1], beta=beta)
    assert float(dpo) == pytest.approx(expected, abs=1e-9)
    assert float(nll) == pytest.approx(2.5)


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


def test_the_nll_has_no_gradient_in_the_rejected_response() -> None:
    pairs = PAIRS.clone().requires_grad_()
    loss(pairs)[1].sum().backward()
    assert pairs.grad is not None
    assert pairs.grad[:, 0].tolist() == pytest.approx([-1 / 4, -1 / 8, -1 / 15, -1.0])
    assert pairs.grad[:, 1:4].count_nonzero() == 0


def test_a_pairs_value_and_gradient_depend_on_that_pair_alone() -> None:
    def both(pairs: torch.Tensor) -> torch.Tensor:
        pairs = pairs.clone().requires_grad_()
        dpo, nll = loss(pairs)
        (dpo + nll).sum().backward()
        assert pairs.grad is not None
        return torch.cat([torch.stack([dpo, nll], dim=1).detach(), pairs.grad[:, :4]], dim=1)

    alone = torch.cat([both(PAIRS[row : row + 1]) for row in range(4)])
    torch.testing.assert_close(both(PAIRS), alone, rtol=0, atol=0)
    torch.testing.assert_close(both(PAIRS.flip(0)), alone.flip(0), rtol=0, atol=0)


def test_mean_over_pairs_and_not_over_tokens() -> None:
    # Eq. 11 averages the NLL per sequence: (2.5 + 1.5 + 2 + 5) / 4 = 2.75. Over all 28 tokens it would be 57 / 28.
    assert float(loss(PAIRS)[1].mean()) == pytest.approx(2.75, abs=1e-12)


def test_whole_numbers_of_tokens_and_float32() -> None:
    dpo, _ = loss(PAIRS.float())
    nll = nll_loss(PAIRS[:, 0].float(), PAIRS[:, 4].long())
    assert dpo.dtype == nll.dtype == torch.float32
    assert dpo.tolist() == pytest.approx(DPO, rel=1e-6)
    assert nll.tolist() == pytest.approx(NLL, rel=1e-6)


def test_huge_margins_do_not_overflow() -> None:
    # -log sigmoid(-800) = 800, with slope -beta in the chosen one; -log sigmoid(800) = 0, with slope 0.
    pairs = torch.tensor([[-8000.0, 0.0, 0.0, 0.0, 1.0], [8000.0, 0.0, 0.0, 0.0, 1.0]], requires_grad=True)
    dpo, _ = loss(pairs, nll_weight=0.0)
    dpo.sum().backward()
    assert dpo.tolist() == pytest.approx([800.0, 0.0])
    assert pairs.grad is not None
    assert pairs.grad[:, 0].tolist() == pytest.approx([-0.1, 0.0])
