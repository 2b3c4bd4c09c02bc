"""Implicit reward, penalty and pool of each regularizer: stationarity recovers the reward, the penalty is the sum it stands
for, ratios of e^{±300} survive."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import multiref as mr
from tests.exact import witness
from tests.exact.instances import log_normalised, random_instance

NEG_INF = -math.inf
ALPHAS = [1.0, 0.0, 0.5, 2.0, -1.0, 3.0, -1.5, 0.04, 0.06, 1 + 1e-8, 1 - 1e-8, 1e-8, -1e-8, 1.03]
every_alpha = pytest.mark.parametrize("alpha", ALPHAS)


def regularizer(alpha: float, weights=None):
    if alpha == 1:
        return mr.ReverseKL(weights)
    return mr.ForwardKL(weights) if alpha == 0 else mr.AlphaDivergence(weights, alpha=alpha)


@every_alpha
@pytest.mark.parametrize("kind", ["plain", "zero weight", "peaked"])
def test_the_implicit_reward_of_the_optimum_is_the_reward(alpha, kind):
    """r − β f'(π*/P) = λ wherever π* > 0, so β f'(π*/P) is the reward less the multiplier."""
    for seed in range(6):
        instance = random_instance(np.random.default_rng(seed), alpha, kind)
        reward, ref_logps = instance.tensors
        beta = min(max(instance.beta, 0.1), 100.0)
        chosen = regularizer(alpha, instance.weights.tolist())
        solution = mr.exact.solve(reward, ref_logps, chosen, beta=beta)
        implied = chosen.implicit_reward(solution.log_policy, ref_logps, beta=beta)
        kept = (solution.log_policy > -200) & (solution.policy > 0)
        unit = torch.maximum(torch.tensor(1.0), implied[kept].abs())
        error = (implied + solution.multiplier - reward)[kept] / torch.maximum(unit, solution.multiplier.abs())
        assert error.abs().max() < 1e-10, f"{instance}: {error.abs().max()}"


def test_mrpo_recovers_its_reward_through_its_own_pool():
    """PooledKL: β log(π*/P_ρ) = r − β log Σ P_ρ e^{r/β}."""
    instance = random_instance(np.random.default_rng(0), 1.0, "plain")
    reward, ref_logps = instance.tensors
    for order in (-1.0, 0.5, 1.0):
        chosen = mr.PooledKL(instance.weights.tolist(), order=order)
        solution = mr.exact.solve(reward, ref_logps, chosen, beta=0.7)
        implied = chosen.implicit_reward(solution.log_policy, ref_logps, beta=0.7)
        torch.testing.assert_close(implied, reward - solution.multiplier, rtol=0, atol=1e-12)


def test_by_hand():
    """π = ½, references ¼ and 1/16, equal weights, β = 2.

    reverse: pool 1/8, r = 2 log 4. forward: pool 5/32, r = 2 (1 − 5/16) = 11/8.
    α = 2: pool 1/((4 + 16)/2) = 1/10, r = 2 (5 − 1) = 8. α = ½: pool ((½ + ¼)/2)² = 9/64, ratio 32/9, r = 2 · 2 (1 − √(9/32)).
    MRPO: 2 log 5.
    """
    policy, refs = torch.tensor(0.5).double().log(), torch.tensor([0.25, 0.0625]).double().log()
    for chosen, expected in (
        (mr.ReverseKL(), 2 * math.log(4)),
        (mr.ForwardKL(), 11 / 8),
        (mr.AlphaDivergence(alpha=2), 8.0),
        (mr.AlphaDivergence(alpha=0.5), 4 * (1 - math.sqrt(9 / 32))),
        (mr.PooledKL(order=-1), 2 * math.log(5)),
    ):
        assert chosen.implicit_reward(policy, refs, beta=2.0).item() == pytest.approx(expected, rel=1e-15), chosen


@every_alpha
def test_ratios_of_e_to_the_300(alpha):
    """Against fifty digits from t = e^−300 to e^300: β f'(t), finite and to the last digits wherever |α − 1| · 300 fits in
    float64."""
    mp = witness.MP
    log_ratios = [-300.0, -150.0, -36.0, -1.0, -1e-3, -1e-12, 0.0, 1e-12, 1e-3, 1.0, 36.0, 150.0, 300.0]
    policy, refs = torch.tensor([-400.0 + x for x in log_ratios]).double(), torch.full((1, len(log_ratios)), -400.0).double()
    found = regularizer(alpha).implicit_reward(policy, refs, beta=0.5)
    a = mp.mpf(alpha)
    for value, x in zip(found.tolist(), (policy - refs[0]).tolist()):
        x = mp.mpf(x)
        if abs((a - 1) * x) > 690:
            continue  # float64 ends at e^709: `test_beyond_the_range`
        expected = mp.mpf(0.5) * (x if a == 1 else mp.expm1((a - 1) * x) / (a - 1))
        assert abs(mp.mpf(value) - expected) <= 4e-13 * max(mp.mpf(10) ** -20, abs(expected)), (alpha, x)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, 3.0, -1.5])
def test_beyond_the_range(alpha):
    """Whole completions can be thousands of nats apart: past ±700/|α − 1| nats the reward may be infinite, of the right sign;
    it stays monotone and is never NaN."""
    log_ratios = torch.linspace(-5000, 5000, 2001, dtype=torch.float64)
    found = regularizer(alpha).implicit_reward(log_ratios - 6000, torch.full((1, 2001), -6000.0).double(), beta=0.1)
    assert torch.isfinite(found[log_ratios.abs() <= 700 / abs(alpha - 1)]).all()
    assert (found[1:] >= found[:-1]).all() and (found[log_ratios > 0] > 0).all() and (found[log_ratios < 0] < 0).all()


def test_a_constant_of_a_prompt_cancels_in_a_margin_of_reverse_kl():
    """Adding c_k to every log π_k of a prompt leaves the margin of two completions alone: references need not be normalised."""
    policy, refs = torch.tensor([-9.0, -7.5]).double(), torch.tensor([[-8.0, -9.0], [-30.0, -28.0]]).double()
    moved = refs - torch.tensor([[3.0], [11.0]]).double()
    chosen = mr.ReverseKL([0.3, 0.7])
    margins = [chosen.implicit_reward(policy, r, beta=0.1).diff().item() for r in (refs, moved)]
    assert margins[0] == pytest.approx(margins[1], abs=1e-14)
    assert margins[0] == pytest.approx(0.1 * (1.5 - (0.3 * -1.0 + 0.7 * 2.0)), abs=1e-14)


@every_alpha
def test_the_penalty_is_the_weighted_sum_of_divergences(alpha):
    """Σ_k w_k D_α(π‖π_k) at fifty digits, reference by reference, at policies near and far, zero weights included."""
    rng = np.random.default_rng(3)
    for kind in ("plain", "zero weight", "outside"):
        instance = random_instance(rng, alpha, kind)
        log_policy = log_normalised(rng.normal(size=len(instance.reward)) * 2)
        truth = witness.objective(
            [witness.MP.exp(v) for v in witness.exact(log_policy)],
            np.zeros(len(log_policy)),
            instance.ref_logps,
            instance.weights,
            alpha,
            -1.0,
        )
        found = regularizer(alpha, instance.weights.tolist()).penalty(torch.from_numpy(log_policy), instance.tensors[1]).item()
        if not math.isfinite(float(truth)):
            assert found == math.inf
        else:
            assert abs(witness.MP.mpf(found) - truth) <= 1e-12 * max(1, abs(truth)), f"{instance}: {found} {truth}"


def test_the_penalty_of_mrpo_bounds_that_of_reverse_kl():
    """E_π log(π/P_{−1}) ≥ Σ_k w_k KL(π‖π_k) ≥ E_π log(π/P_1): harmonic ≤ geometric ≤ arithmetic."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        instance = random_instance(rng, 1.0, "plain")
        weights, policy = instance.weights.tolist(), torch.from_numpy(log_normalised(rng.normal(size=len(instance.reward))))
        upper, exact, lower = (
            chosen.penalty(policy, instance.tensors[1]).item()
            for chosen in (mr.PooledKL(weights, order=-1), mr.ReverseKL(weights), mr.PooledKL(weights, order=1))
        )
        assert upper >= exact - 1e-12 and exact >= lower - 1e-12
        same = mr.PooledKL(weights, order=0).penalty(policy, instance.tensors[1]).item()
        assert same == pytest.approx(exact, abs=1e-12)
