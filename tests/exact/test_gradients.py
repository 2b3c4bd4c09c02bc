"""Gradients through the exact solution: against finite differences for every family, and against the theorems that name
them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import multiref as mr

NEG_INF = -math.inf
ALPHAS = [1.0, 0.0, 0.5, 2.0, -1.0, 3.0, 1.02, 0.98, 1e-3, 1 + 1e-8]
every_alpha = pytest.mark.parametrize("alpha", ALPHAS)


def regularizer(alpha: float, weights):
    if alpha == 1:
        return mr.ReverseKL(weights)
    return mr.ForwardKL(weights) if alpha == 0 else mr.AlphaDivergence(weights, alpha=alpha)


def problem(seed: int = 0, k: int = 3, rows: int = 2, y: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves: reward [rows, y], logits of the references [k, rows, y], logits of the weights [k]."""
    generator = torch.Generator().manual_seed(seed)
    reward, logits, preference = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((rows, y), (k, rows, y), (k,))
    )
    return reward.requires_grad_(), logits.requires_grad_(), preference.requires_grad_()


def solved(alpha: float, beta: float, mask: Tensor | None = None):
    """reward, reference logits, weight logits → policy, value, multiplier: everything a user may differentiate."""

    def run(reward, logits, preference):
        if mask is not None:
            logits = logits.masked_fill(mask, NEG_INF)
        weights = preference.softmax(0)
        solution = mr.exact.solve(reward, logits.log_softmax(-1), regularizer(alpha, weights), beta=beta)
        return solution.log_policy.exp(), solution.value, solution.multiplier

    return run


@every_alpha
def test_against_finite_differences(alpha):
    assert gradcheck(solved(alpha, beta=0.8), problem(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("alpha", [2.0, 3.0, 1.5, 1.04])
def test_where_the_optimum_is_truncated(alpha):
    """β so small that some completions have no mass: their gradients are zero, the others' are right."""
    beta = 0.02 if alpha < 1.1 else 0.2
    inputs = problem(seed=1, y=6)
    policy, *_ = solved(alpha, beta)(*inputs)
    assert 0 < int((policy == 0).sum()) < policy.numel()
    assert gradcheck(solved(alpha, beta), inputs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0, 0.97])
def test_at_the_corner(alpha):
    """The best reward lies outside every reference's support in row 0 (and not in row 1): left-over mass sits there."""
    reward, logits, preference = problem(seed=2)
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask[:, :, 4] = True
    with torch.no_grad():
        reward[0, 4], reward[1, 4] = (8.0, -8.0) if alpha < 0.9 else (80.0, -80.0)
    policy, *_ = solved(alpha, 0.8, mask)(reward, logits, preference)
    assert policy[0, 4] > 0.01 and policy[1, 4] == 0
    assert gradcheck(solved(alpha, 0.8, mask), (reward, logits, preference), atol=1e-6, rtol=1e-5)


@every_alpha
def test_with_vetoes(alpha):
    """One reference gives a completion probability zero: a veto for α ≥ 1, not for α < 1."""
    mask = torch.zeros(3, 2, 5, dtype=torch.bool)
    mask[0, :, 1] = mask[2, 0, 3] = True
    assert gradcheck(solved(alpha, 0.8, mask), problem(seed=3), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("order", [-1.0, 0.0, 0.5, 1e-9])
def test_the_pooled_objective(order):
    def run(reward, logits, preference):
        solution = mr.exact.solve(reward, logits.log_softmax(-1), mr.PooledKL(preference.softmax(0), order=order), beta=0.5)
        return solution.log_policy.exp(), solution.value, solution.log_partition

    assert gradcheck(run, problem(seed=4), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5, 2.0])
def test_second_derivatives(alpha):
    """Needed by bilevel methods."""

    def solution(reward, logits):
        found = mr.exact.solve(reward, logits.log_softmax(-1), regularizer(alpha, (0.2, 0.3, 0.5)), beta=0.8)
        return found.value, found.log_policy.exp()

    reward, logits, _ = problem(seed=5, rows=1, y=4)
    assert gradgradcheck(solution, (reward, logits), atol=1e-5, rtol=1e-4)


@every_alpha
@pytest.mark.parametrize("kind", ["plain", "padded", "vetoed", "outside", "zero weight"])
def test_gradients_are_finite_wherever_the_value_is(alpha, kind):
    """−inf in rewards and references, weights of zero: no NaN comes back, to any leaf."""
    generator = torch.Generator().manual_seed(6)
    reward = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    ref_logps = torch.randn(3, 3, 7, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.0, 0.4, 0.6] if kind == "zero weight" else [0.1, 0.4, 0.5], dtype=torch.float64)
    if kind == "padded":
        reward[1, 5:] = NEG_INF
        ref_logps[:, 1, 5:] = NEG_INF
    if kind == "vetoed":
        ref_logps[1, 0, 2] = NEG_INF
    if kind == "outside":
        ref_logps[:, 2, 3] = NEG_INF
        reward[2, 3] = 200.0
    if kind == "zero weight":
        ref_logps[0, :, :6] = NEG_INF
    leaves = [reward.requires_grad_(), ref_logps.log_softmax(-1).requires_grad_(), weights.requires_grad_()]
    solution = mr.exact.solve(leaves[0], leaves[1], regularizer(alpha, leaves[2]), beta=0.5)
    policy = solution.log_policy.exp()
    for output in (solution.value.sum(), solution.multiplier.sum(), (policy * torch.arange(7.0)).sum()):
        assert torch.isfinite(output)
        for gradient in torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True):
            assert gradient is None or torch.isfinite(gradient).all()


@every_alpha
def test_envelope(alpha):
    """∂J*/∂r = π*, and for reverse KL ∂J*/∂ log π_k = β w_k π*, at the optimum and with the corner or truncation."""
    reward, logits, _ = problem(seed=7)
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask[:, 0, 2] = True
    with torch.no_grad():
        reward[0, 2] = 5.0
    ref_logps = logits.masked_fill(mask, NEG_INF).log_softmax(-1).detach().requires_grad_()
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    solution = mr.exact.solve(reward, ref_logps, regularizer(alpha, weights), beta=0.3)
    by_reward, by_reference = torch.autograd.grad(solution.value.sum(), (reward, ref_logps))
    torch.testing.assert_close(by_reward, solution.policy.detach(), rtol=0, atol=1e-12)
    if alpha == 1:
        expected = 0.3 * weights[:, None, None] * solution.policy.detach()
        torch.testing.assert_close(by_reference, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5, 2.0])
def test_the_value_of_a_weight_is_its_divergence(alpha):
    """∂J*/∂w_k = −β D_α(π*‖π_k), up to a constant that the simplex forgets."""
    reward, logits, _ = problem(seed=8, rows=1)
    ref_logps = logits.log_softmax(-1).detach()
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64, requires_grad=True)
    solution = mr.exact.solve(reward.detach(), ref_logps, regularizer(alpha, weights), beta=0.3)
    (gradient,) = torch.autograd.grad(solution.value.sum(), weights)
    log_policy = solution.log_policy.detach()
    each = -0.3 * torch.stack([mr.divergences.alpha_divergence(log_policy, row, alpha)[0] for row in ref_logps])
    torch.testing.assert_close(gradient - gradient.mean(), each - each.mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5, 2.0])
def test_a_weight_of_zero_has_its_one_sided_derivative(alpha):
    """A reference of weight zero is absent from the value, but what more of it would bring is −β D_α(π*‖π_k):
    a search over weights can leave a vertex."""
    reward, logits, _ = problem(seed=9, rows=1)
    ref_logps = logits.log_softmax(-1).detach()
    weights = torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64, requires_grad=True)
    solution = mr.exact.solve(reward.detach(), ref_logps, regularizer(alpha, weights), beta=0.3)
    (gradient,) = torch.autograd.grad(solution.value.sum(), weights)
    log_policy = solution.log_policy.detach()
    each = -0.3 * torch.stack([mr.divergences.alpha_divergence(log_policy, row, alpha)[0] for row in ref_logps])
    torch.testing.assert_close(gradient - gradient.mean(), each - each.mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [-2.0, -1.0, -1e-8, 0.0, 1e-8, 1e-3, 0.5, 1.0, 3.0])
def test_pools(order):
    """Every order, with a veto and with weights per example."""

    def pooled(logits, preference):
        logps = torch.where(veto, NEG_INF, logits.log_softmax(-1))
        pool = mr.pools.power_pool(logps, preference.softmax(0), order)
        return torch.where(torch.isfinite(pool), pool, 0.0)

    veto = torch.zeros(3, 2, 4, dtype=torch.bool)
    veto[1, 0, 2] = (
        order <= 0 or order >= 0.5
    )  # (just above zero the pool falls to −1/ρ nats there, and finite differences drown)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    for shape in ((3,), (3, 2), (3, 2, 4)):
        preference = torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        assert gradcheck(pooled, (logits, preference), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("order", [-2.0, -1e-8, 0.0, 1e-8, 0.01, 1.0])
def test_pool_gradients_are_finite_at_zero_mass_and_zero_weight(order):
    logps = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.0, 0.8], [0.0, 0.0, 1.0]], dtype=torch.float64).log().requires_grad_()
    for values in ([0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.3, 0.3, 0.4]):
        weights = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        pool = mr.pools.power_pool(logps, weights, order)
        total = torch.where(torch.isfinite(pool), pool, 0.0).sum()
        for gradient in torch.autograd.grad(total, (logps, weights), allow_unused=True):
            assert gradient is None or torch.isfinite(gradient).all()


def test_divergences_at_zero_mass():
    """KL both ways, α-divergences and disagreement: finite gradients where the value is finite."""
    p = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64).log().requires_grad_()
    q = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.7, 0.1]], dtype=torch.float64).log().requires_grad_()
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for alpha in (1.0, 0.0, 0.5, 2.0, -1.0, 0.01):
        value = mr.divergences.weighted_alpha_divergence(p, q, weights, alpha=alpha)
        assert torch.isfinite(value)
        for gradient in torch.autograd.grad(value, (p, q)):
            assert torch.isfinite(gradient).all(), alpha
    for gradient in torch.autograd.grad(mr.divergences.disagreement(q, weights), (q,)):
        assert torch.isfinite(gradient).all()
