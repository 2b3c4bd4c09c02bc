"""Losses on numbers that can be worked out by hand, their slopes, and their extremes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import multiref as mr
from multiref.losses import bradley_terry, hinge, ipo, randomised_response, robust


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_bradley_terry_by_hand():
    """m = log 3: σ(m) = ¾, so L = log(4/3); m = 0: log 2; m = −log 3: log 4. With ε = ¼ at m = log 3: −¾ log ¾ − ¼ log ¼."""
    loss = bradley_terry(numbers(math.log(3), 1.0, 0.0), numbers(0.0, 1.0, math.log(3)))
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(2), math.log(4)], rel=1e-14)
    smoothed = bradley_terry(numbers(math.log(3)), numbers(0.0), label_smoothing=0.25)
    assert smoothed.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), rel=1e-14)


def test_a_smoothed_label_is_a_mixture_of_labels():
    """L_ε(m) = (1 − ε) L(m) + ε L(−m), least where σ(m) = 1 − ε."""
    chosen, rejected = numbers(1.3, -0.2), numbers(0.1, 2.0)
    mixture = 0.9 * bradley_terry(chosen, rejected) + 0.1 * bradley_terry(rejected, chosen)
    torch.testing.assert_close(bradley_terry(chosen, rejected, label_smoothing=0.1), mixture, rtol=1e-14, atol=0)
    margin = torch.tensor(math.log(0.9 / 0.1), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bradley_terry(margin, numbers(0.0)[0], label_smoothing=0.1), margin)
    assert slope.item() == pytest.approx(0.0, abs=1e-15)


def test_bradley_terry_far_out():
    """m = ±1000: L is 0 and 1000, its slope 0 and −1; nothing overflows."""
    chosen = torch.tensor([1000.0, -1000.0], dtype=torch.float64, requires_grad=True)
    loss = bradley_terry(chosen, numbers(0.0, 0.0))
    assert loss.tolist() == [0.0, 1000.0]
    (slope,) = torch.autograd.grad(loss.sum(), chosen)
    assert slope.tolist() == [0.0, -1.0]


@pytest.mark.parametrize("loss", [bradley_terry, robust])
def test_an_answer_without_mass_is_infinitely_far(loss):
    """r = −∞ for what the policy cannot give: as the rejected side it costs −log σ(∞) = 0, as the chosen side ∞."""
    assert loss(numbers(0.0, -math.inf), numbers(-math.inf, 0.0)).tolist() == [0.0, math.inf]


def test_ipo_by_hand():
    """(m − ½)²: m = ½ is where it rests; m = 2 costs 9/4; m = −1 costs 9/4."""
    assert ipo(numbers(0.5, 2.0, -1.0), numbers(0.0, 0.0, 0.0)).tolist() == [0.0, 2.25, 2.25]


def test_ipo_in_log_ratios():
    """With r = β ℓ it is β² (Δℓ − 1/(2β))², Azar's loss with τ = β times β²."""
    beta, log_ratio = 0.1, numbers(3.0, -2.0)
    torch.testing.assert_close(ipo(beta * log_ratio, numbers(0.0, 0.0)), beta**2 * (log_ratio - 1 / (2 * beta)) ** 2)


def test_hinge_by_hand():
    """max(0, 1 − m): 0 from m = 1 on, 1 at m = 0, 3 at m = −2."""
    assert hinge(numbers(1.0, 5.0, 0.0, -2.0), numbers(0.0, 0.0, 0.0, 0.0)).tolist() == [0.0, 0.0, 1.0, 3.0]


def test_robust_is_unbiased_under_flips():
    """(1 − ε) L_robust(m) + ε L_robust(−m) is the clean loss; at ε = 0 they coincide."""
    chosen, rejected = numbers(1.3, -0.2), numbers(0.1, 2.0)
    kept = mr.losses.robust(chosen, rejected, label_smoothing=0.2)
    flipped = mr.losses.robust(rejected, chosen, label_smoothing=0.2)
    torch.testing.assert_close(0.8 * kept + 0.2 * flipped, bradley_terry(chosen, rejected), rtol=1e-13, atol=0)
    torch.testing.assert_close(mr.losses.robust(chosen, rejected), bradley_terry(chosen, rejected), rtol=0, atol=0)


@pytest.mark.parametrize("loss", [bradley_terry, ipo, hinge, mr.losses.robust])
def test_one_value_per_example_and_only_the_margin_counts(loss):
    chosen, rejected = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    found = loss(chosen, rejected)
    assert found.shape == (3, 4)
    torch.testing.assert_close(loss(chosen + 5.0, rejected + 5.0), found, rtol=0, atol=1e-12)
    assert loss(chosen[:0], rejected[:0]).shape == (0, 4)


def test_multi_reference_dpo_by_hand():
    """Two pairs' worth of numbers, β = ½, weights ¼ and ¾.

    log π: −2, −3; reference 1: −1, −4; reference 2: −5, −1. Pool: −¼ − 15/4 = −4 and −1 − ¾ = −7/4.
    rewards ½(−2 + 4) = 1 and ½(−3 + 7/4) = −5/8; margin 13/8; L = log(1 + e^{−13/8}).
    Jensen: the mean of the single-reference losses (multi-DPO) is no less.
    """
    policy, refs = numbers(-2.0, -3.0), torch.stack([numbers(-1.0, -4.0), numbers(-5.0, -1.0)])
    rewards = mr.ReverseKL([0.25, 0.75]).implicit_reward(policy, refs, beta=0.5)
    assert rewards.tolist() == [1.0, -0.625]
    loss = bradley_terry(rewards[0], rewards[1]).item()
    assert loss == pytest.approx(math.log1p(math.exp(-13 / 8)), rel=1e-15)
    singles = [mr.ReverseKL().implicit_reward(policy, r[None], beta=0.5) for r in refs]
    multi = sum(w * bradley_terry(s[0], s[1]).item() for w, s in zip((0.25, 0.75), singles))
    assert multi >= loss


def test_randomised_response_is_the_likelihood_of_a_flipped_label():
    """ε = log 3: α = ¾. m = log 3: q = ¾·¾ + ¼·¼ = ⅝. Bounded by −log α below and −log(1 − α) above, however large m is."""
    epsilon = math.log(3)
    found = randomised_response(numbers(math.log(3), 0.0, 0.0), numbers(0.0, 0.0, math.log(3)), epsilon=epsilon)
    assert found.tolist() == pytest.approx([-math.log(5 / 8), math.log(2), -math.log(3 / 8)], rel=1e-14)
    far = randomised_response(numbers(1e4, -1e4), numbers(0.0, 0.0), epsilon=epsilon)
    assert far.tolist() == pytest.approx([-math.log(3 / 4), math.log(4)], rel=1e-14)
    private = randomised_response(numbers(0.7), numbers(0.1), epsilon=50.0)
    assert private.item() == pytest.approx(bradley_terry(numbers(0.7), numbers(0.1)).item(), rel=1e-12)


def test_randomised_response_finds_the_margin_where_the_plain_and_the_smoothed_loss_do_not():
    """Labels of margin 1 flipped at ε = 1, in expectation: least at 1; bradley_terry at logit(q) < 1; smoothing lower still."""
    alpha, margins = 1 / (1 + math.exp(-1)), torch.linspace(-1, 3, 4001, dtype=torch.float64)
    zero = torch.zeros_like(margins)
    q = alpha / (1 + math.exp(-1)) + (1 - alpha) / (1 + math.e)

    def least(loss):
        return float(margins[(q * loss(margins, zero) + (1 - q) * loss(zero, margins)).argmin()])

    assert least(partial(randomised_response, epsilon=1.0)) == pytest.approx(1.0, abs=1e-3)
    assert least(partial(robust, label_smoothing=1 - alpha)) == pytest.approx(1.0, abs=1e-3)
    plain = least(bradley_terry)
    assert plain == pytest.approx(math.log(q / (1 - q)), abs=1e-3)
    assert least(partial(bradley_terry, label_smoothing=1 - alpha)) < plain < 0.5


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan, True, "1"], ids=repr)
def test_a_privacy_budget_is_positive_and_finite(epsilon):
    with pytest.raises(mr.errors.ArgumentError, match="epsilon"):
        randomised_response(numbers(1.0), numbers(0.0), epsilon=epsilon)
