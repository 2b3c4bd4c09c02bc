"""Divergences against fifty digits, against each other, and at zero mass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import multiref as mr
from multiref.divergences import alpha_divergence, disagreement, f_prime, forward_kl, kl, reverse_kl, weighted_alpha_divergence
from multiref.errors import ArgumentError
from tests.exact import witness
from tests.exact.instances import log_normalised

ALPHAS = [
    1.0,
    0.0,
    0.5,
    2.0,
    -1.0,
    3.0,
    4.0,
    -1.5,
    0.049,
    0.051,
    1e-4,
    -1e-4,
    1e-8,
    -1e-8,
    1 + 1e-8,
    1 - 1e-8,
    1 + 1e-4,
    0.9999,
]
every_alpha = pytest.mark.parametrize("alpha", ALPHAS)


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def random_logps(rng, *shape: int, spread: float = 1.0) -> np.ndarray:
    return log_normalised(rng.normal(size=shape) * spread)


@every_alpha
def test_against_fifty_digits(alpha):
    """Near and far pairs; zeros of either side, where the value may be infinite."""
    rng = np.random.default_rng(0)
    for spread in (1e-3, 1.0, 5.0):
        p, q = random_logps(rng, 12, spread=spread), random_logps(rng, 12, spread=spread)
        for zero_p, zero_q in ((False, False), (True, False), (False, True), (True, True)):
            p[3], q[3 if alpha > 1 else 4] = -np.inf if zero_p else p[2], -np.inf if zero_q else q[2]
            a, b = log_normalised(p), log_normalised(q)
            truth = witness.divergence(*([witness.MP.exp(v) for v in witness.exact(x)] for x in (a, b)), alpha)
            found = alpha_divergence(torch.from_numpy(a), torch.from_numpy(b), alpha).item()
            if math.isinf(float(truth)):
                assert found == math.inf
            else:
                assert abs(witness.MP.mpf(found) - truth) <= 3e-14 * (1 + abs(truth)), (alpha, spread, zero_p, zero_q)


def test_by_hand():
    """p = (½, ½), q = (¼, ¾): KL(p‖q) = ½ log(4/3), KL(q‖p) = ¾ log 3 − log 2; Σ p²/q = 4/3; Σ √(pq) = (1 + √3)/√8."""
    p, q = logs(0.5, 0.5), logs(0.25, 0.75)
    assert kl(p, q).item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-14)
    assert kl(q, p).item() == pytest.approx(0.75 * math.log(3) - math.log(2), rel=1e-14)
    assert alpha_divergence(p, q, 1).item() == kl(p, q).item() and alpha_divergence(p, q, 0).item() == kl(q, p).item()
    assert alpha_divergence(p, q, 2).item() == pytest.approx(1 / 6, rel=1e-14)
    assert alpha_divergence(p, q, 0.5).item() == pytest.approx(4 * (1 - (1 + math.sqrt(3)) / math.sqrt(8)), rel=1e-13)


@every_alpha
def test_zero_if_equal_positive_if_not_and_mirrored(alpha):
    """D_α(p‖p) = 0; D_α > 0; D_α(p‖q) = D_{1−α}(q‖p)."""
    rng = np.random.default_rng(1)
    p, q = (torch.from_numpy(random_logps(rng, 5, 8)) for _ in range(2))
    assert alpha_divergence(p, p, alpha).abs().max() == 0
    assert (alpha_divergence(p, q, alpha) > 0).all()
    torch.testing.assert_close(alpha_divergence(p, q, alpha), alpha_divergence(q, p, 1 - alpha), rtol=1e-12, atol=0)


@every_alpha
def test_its_derivative_is_f_prime(alpha):
    """∂/∂p Σ_y q f(p/q) = f'(p/q), and f'(1) = 0: the gradient in log p is p f'(p/q), less what the simplex forgets."""
    rng = np.random.default_rng(2)
    log_p, log_q = (torch.from_numpy(random_logps(rng, 6)) for _ in range(2))
    step = 1e-5
    direction = torch.from_numpy(rng.normal(size=6))
    ends = [alpha_divergence((log_p + sign * step * direction).log_softmax(-1), log_q, alpha).item() for sign in (1, -1)]
    p, slope = log_p.exp(), f_prime(log_p - log_q, alpha)
    along = (p * direction - p * (p * direction).sum()) @ slope
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(along.item(), abs=1e-8)
    assert f_prime(torch.zeros(1).double(), alpha).item() == 0


def test_f_prime_where_ratios_are_extreme():
    """Against fifty digits at log-ratios ±300 and ±1e-12."""
    for alpha in ALPHAS:
        for x in (-200.0, -1e-12, 0.0, 1e-12, 0.3, 200.0):
            a, t = witness.MP.mpf(alpha), witness.MP.mpf(x)
            expected = t if a == 1 else witness.MP.expm1((a - 1) * t) / (a - 1)
            found = f_prime(torch.tensor([x], dtype=torch.float64), alpha).item()
            assert abs(witness.MP.mpf(found) - expected) <= 3e-13 * abs(expected), (alpha, x)


def test_weighted_sums_over_references():
    """Σ_k w_k D(π‖π_k), with the direction in the name; an absent reference is not seen, at infinite distance either."""
    rng = np.random.default_rng(3)
    policy, refs = torch.from_numpy(random_logps(rng, 2, 5)), torch.from_numpy(random_logps(rng, 3, 2, 5))
    w = [0.2, 0.3, 0.5]
    by_hand = sum(x * (policy.exp() * (policy - r)).sum(-1) for x, r in zip(w, refs))
    torch.testing.assert_close(reverse_kl(policy, refs, w), by_hand, rtol=1e-13, atol=1e-15)
    by_hand = sum(x * (r.exp() * (r - policy)).sum(-1) for x, r in zip(w, refs))
    torch.testing.assert_close(forward_kl(policy, refs, w), by_hand, rtol=1e-13, atol=1e-15)
    refs[0, :, 0] = -math.inf
    for alpha in ALPHAS:
        absent = weighted_alpha_divergence(policy, refs, [0.0, 0.4, 0.6], alpha=alpha)
        torch.testing.assert_close(
            absent, weighted_alpha_divergence(policy, refs[1:], [0.4, 0.6], alpha=alpha), rtol=1e-13, atol=1e-15
        )
        assert torch.isfinite(absent).all()
    assert (reverse_kl(policy, refs, w) == math.inf).all() and torch.isfinite(forward_kl(policy, refs, w)).all()


def test_forward_kl_is_kl_to_the_mixture_plus_jensen_shannon():
    """Σ_k w_k KL(π_k‖π) = KL(π̄‖π) + Σ_k w_k KL(π_k‖π̄), π̄ the arithmetic pool; reverse:
    KL(π‖escort) − log F (docs/theory.md 1 and 2)."""
    rng = np.random.default_rng(4)
    policy, refs = torch.from_numpy(random_logps(rng, 2, 5)), torch.from_numpy(random_logps(rng, 3, 2, 5))
    w = [0.2, 0.3, 0.5]
    mixture = mr.pools.power_pool(refs, w, 1.0)
    spread = sum(x * kl(r, mixture) for x, r in zip(w, refs))
    torch.testing.assert_close(forward_kl(policy, refs, w), kl(mixture, policy) + spread, rtol=1e-12, atol=0)
    escort = mr.pools.power_pool(refs, w, 0.0).log_softmax(-1)
    torch.testing.assert_close(reverse_kl(policy, refs, w), kl(policy, escort) + disagreement(refs, w), rtol=1e-12, atol=0)


def test_disagreement():
    """−log F against fifty digits; for K = 2 it is (1 − w) R_w(π_1‖π_2), R the Rényi divergence; 0 if and only if they agree;
    +inf at disjoint supports."""
    rng = np.random.default_rng(5)
    for k in (1, 2, 4):
        refs, weights = random_logps(rng, k, 9, spread=3.0), rng.dirichlet(np.ones(k)).tolist()
        found = disagreement(torch.from_numpy(refs), weights).item()
        assert abs(witness.MP.mpf(found) - witness.disagreement(refs, weights)) < 1e-14
    first, second = (torch.from_numpy(random_logps(rng, 9)) for _ in range(2))
    renyi = torch.logsumexp(0.3 * first + 0.7 * second, -1) / (0.3 - 1)
    assert disagreement(torch.stack([first, second]), [0.3, 0.7]).item() == pytest.approx(0.7 * renyi.item(), rel=1e-13)
    assert disagreement(torch.stack([first, first])).item() == pytest.approx(0.0, abs=1e-15)
    assert disagreement(torch.stack([logs(1.0, 0.0), logs(0.0, 1.0)])).item() == math.inf


def test_disagreement_of_references_that_nearly_agree():
    """−log F ≈ ½ w (1 − w) Var(log π_1/π_2), at w = ½ an eighth of the variance or a quarter of the KL (docs/theory.md 4)."""
    rng = np.random.default_rng(8)
    first, move = log_normalised(rng.normal(size=9)), 1e-3 * rng.normal(size=9)
    refs = torch.from_numpy(np.stack([first, log_normalised(first + move)]))
    p, ratio = refs[0].exp(), refs[0] - refs[1]
    variance = (p * ratio**2).sum() - (p * ratio).sum() ** 2
    for w in (0.5, 0.2):
        assert disagreement(refs, [w, 1 - w]).item() == pytest.approx(0.5 * w * (1 - w) * variance.item(), rel=0.01)
    assert disagreement(refs).item() == pytest.approx(0.25 * kl(*refs).item(), rel=0.01)


def test_f_is_a_mean_of_ratios_under_each_reference():
    """F = E_{y~π_j} Π_k (π_k/π_j)^{w_k}, summed out, for every j."""
    refs, w = torch.from_numpy(random_logps(np.random.default_rng(9), 3, 7)), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for base in refs:
        mean = (base.exp() * (w @ (refs - base)).exp()).sum()
        assert -mean.log().item() == pytest.approx(disagreement(refs, w.tolist()).item(), abs=1e-14)


def test_disagreement_is_the_least_weighted_reverse_kl():
    """Attained at the escort, and not below it at random policies."""
    rng = np.random.default_rng(6)
    refs, w = torch.from_numpy(random_logps(rng, 3, 7)), [0.2, 0.3, 0.5]
    least = disagreement(refs, w).item()
    assert reverse_kl(mr.pools.power_pool(refs, w).log_softmax(-1), refs, w).item() == pytest.approx(least, abs=1e-14)
    others = torch.from_numpy(random_logps(rng, 200, 7))
    assert (reverse_kl(others, refs[:, None].expand(3, 200, 7), w) >= least).all()


def test_bad_shapes():
    policy, refs = torch.zeros(2, 4).log_softmax(-1), torch.zeros(3, 2, 5).log_softmax(-1)
    with pytest.raises(ArgumentError, match="log_policy"):
        weighted_alpha_divergence(policy, refs, alpha=0.5)
    with pytest.raises(ArgumentError, match="log_policy"):
        weighted_alpha_divergence(policy.exp() + 1, refs, alpha=0.5)
    estimators = (mr.divergences.k1, mr.divergences.k3, reverse_kl)
    for call in (mr.pools.power_pool, *(lambda refs, each=each: each(policy, refs) for each in estimators)):
        for wrong in (torch.tensor(-1.0), [-1.0, -2.0]):
            with pytest.raises(ArgumentError, match="ref_logps: expected"):
                call(wrong)
    assert reverse_kl(policy[:, :0], refs[..., :0]).tolist() == [0.0, 0.0]  # no completion, no divergence


@every_alpha
def test_gradients_where_probabilities_underflow(alpha):
    """log p = −1500 is probability zero to float64, and no reason for a NaN."""
    for far_p, far_q in ((-1500.0, -0.5), (-0.5, -1500.0), (-1500.0, -1600.0)):
        p = torch.tensor([-0.1, -3.0, far_p], dtype=torch.float64, requires_grad=True)
        q = torch.tensor([-0.2, -4.0, far_q], dtype=torch.float64, requires_grad=True)
        value = alpha_divergence(p, q, alpha)
        assert not torch.isnan(value)
        if torch.isfinite(value):
            assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, (p, q)))
