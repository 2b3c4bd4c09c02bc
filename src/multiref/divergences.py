"""Divergences between a policy and K references, on finite supports, and their one-sample estimators.

Direction is always in the name or the formula. `reverse` is KL(π‖π_k), `forward` is KL(π_k‖π), π the policy.
"""

import torch
from torch import Tensor

from multiref._logspace import (
    Weights,
    align,
    check_logps,
    check_weights,
    expand_weights,
    expectation,
    log_ratio,
    prompt_weights,
    weighted_sum,
)
from multiref.errors import ArgumentError
from multiref.pools import power_pool

__all__ = [
    "alpha_divergence",
    "disagreement",
    "expectation",
    "f_prime",
    "forward_kl",
    "k1",
    "k2",
    "k3",
    "kl",
    "reverse_kl",
    "weighted_alpha_divergence",
]

NEAR_ZERO = (
    0.05  # below it Σ π^α q^(1−α) − 1 is summed around q instead of around π: exact as α → 0, and infinite where it must be
)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""[*B, Y], [*B, Y] → [*B]: KL(p‖q) = Σ_y p (log p − log q), in nats; +inf where q has no mass and p has."""
    return expectation(log_p, log_ratio(log_p, log_q, under=log_p))


def alpha_divergence(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    r"""[*B, Y], [*B, Y] → [*B]: the α-divergence of distributions p and q.

        D_α(p‖q) = (Σ_y p^α q^(1−α) − 1) / (α (α − 1)),      D_1 = KL(p‖q),  D_0 = KL(q‖p)

    It is Σ_y q f(p/q) with f'(t) = (t^(α−1) − 1)/(α − 1) and f(1) = f'(1) = 0.
    Summed where the cancellation is harmless, so that α = 1 ± 1e-8 and α = ±1e-8 keep all but the last digits.

    Reference: Csiszár's family in the parametrisation of Cressie and Read; docs/theory.md 3.
    """
    if alpha == 1:
        return kl(log_p, log_q)
    if alpha == 0:
        return kl(log_q, log_p)
    if alpha < NEAR_ZERO:
        return expectation(log_q, torch.expm1(alpha * log_ratio(log_p, log_q, under=log_q))) / (alpha * (alpha - 1))
    return expectation(log_p, torch.expm1((alpha - 1) * log_ratio(log_p, log_q, under=log_p))) / (alpha * (alpha - 1))


def reverse_kl(log_policy: Tensor, ref_logps: Tensor, weights: Weights = None) -> Tensor:
    r"""[*B, Y], [K, *B, Y] → [*B]: Σ_k w_k KL(π‖π_k)."""
    return weighted_alpha_divergence(log_policy, ref_logps, weights, alpha=1.0)


def forward_kl(log_policy: Tensor, ref_logps: Tensor, weights: Weights = None) -> Tensor:
    r"""[*B, Y], [K, *B, Y] → [*B]: Σ_k w_k KL(π_k‖π)."""
    return weighted_alpha_divergence(log_policy, ref_logps, weights, alpha=0.0)


def weighted_alpha_divergence(log_policy: Tensor, ref_logps: Tensor, weights: Weights = None, *, alpha: float) -> Tensor:
    r"""[*B, Y], [K, *B, Y] → [*B]: Σ_k w_k D_α(π‖π_k), reference by reference (the pool gives the same number in one term:
    `Regularizer.penalty`).

    Raises:
        ArgumentError, WeightsError: as for `power_pool`.
    """
    check_logps(log_policy, "log_policy")
    check_logps(ref_logps, "ref_logps")
    if ref_logps.ndim < 2 or ref_logps.shape[-1] != log_policy.shape[-1]:
        raise ArgumentError(
            f"ref_logps: expected [K, *B, Y] against log_policy {tuple(log_policy.shape)}, found {tuple(ref_logps.shape)}."
        )
    ref_logps = align(ref_logps, log_policy.ndim)
    w = prompt_weights(weights, ref_logps)
    if bool((w == 0).any()):  # an absent reference at infinite distance is not to be looked at, not even by the gradient
        with torch.no_grad():
            far = (w == 0) & torch.isinf(alpha_divergence(log_policy, ref_logps, alpha))
        ref_logps = torch.where(far[..., None], log_policy, ref_logps)
    return (w * alpha_divergence(log_policy, ref_logps, alpha)).sum(0)


def disagreement(ref_logps: Tensor, weights: Weights = None) -> Tensor:
    r"""[K, *B, Y] → [*B]: −log F = −log Σ_y Π_k π_k^{w_k}, the least weighted reverse KL that any policy can have, in nats.

    −log F = min_q Σ_k w_k KL(q‖π_k), reached by the normalised geometric pool;
    for K = 2 it is (1 − w_1) times the Rényi divergence of order w_1. Zero if and only if the weighted references agree;
    +inf if no completion has mass under all of them.

    Reference: DERIVED (docs/theory.md 1 b); F is the normaliser of arXiv 2502.01203, Definition 3.1.
    """
    prompt_weights(weights, ref_logps)
    return -torch.logsumexp(power_pool(ref_logps, weights, order=0.0), -1)


def f_prime(log_t: Tensor, alpha: float) -> Tensor:
    r"""[*E] → [*E]: f'(t) = (t^(α−1) − 1)/(α − 1) at t = e^{log_t}; f' = log at α = 1.
    In float64, so that ratios of e^{±700} have a value."""
    if alpha == 1:
        return log_t
    return torch.expm1((alpha - 1) * log_t.double()) / (alpha - 1)


def k1(policy_logps: Tensor, ref_logps: Tensor, weights: Weights = None) -> Tensor:
    r"""[*E], [K, *E] → [*E]: ℓ = log π − Σ_k w_k log π_k at sampled tokens or completions.

    As a value: unbiased for Σ_k w_k KL(π‖π_k) on samples of π, of any sign.
    As a reward (detached; return-to-go where E is tokens): the exact gradient of Σ_k w_k KL(π‖π_k). As a loss:
    expected gradient zero, pure noise.

    Reference: Schulman's k1; the table for several references is DERIVED (docs/theory.md 6).
    """
    ref_logps = align(ref_logps, policy_logps.ndim)
    return policy_logps - weighted_sum(ref_logps, expand_weights(check_weights(weights, len(ref_logps)), ref_logps))


def k2(policy_logps: Tensor, ref_logps: Tensor, weights: Weights = None) -> Tensor:
    r"""[*E], [K, *E] → [*E]: Σ_k w_k ½ (log π − log π_k)².

    As a value: biased. As a loss on samples of π: the gradient of Σ_k w_k KL(π‖π_k) with the visited states held fixed
    (of the whole objective where E is completions), the same for each reference separately,
    for the pool and for the renormalised pool.
    In the reward: biased.

    Reference: Schulman's k2; DERIVED for several references (docs/theory.md 6).
    """
    ratio, w = log_ratios(policy_logps, ref_logps, weights)
    return (w * 0.5 * ratio**2).sum(0)


def k3(policy_logps: Tensor, ref_logps: Tensor, weights: Weights = None) -> Tensor:
    r"""[*E], [K, *E] → [*E]: Σ_k w_k (e^{−ℓ_k} − 1 + ℓ_k), ℓ_k = log π − log π_k.

    As a value: unbiased for Σ_k w_k KL(π‖π_k), never negative. As a loss on samples of π it follows another objective,
    the *forward* KL to the *arithmetic* mixture, KL(Σ_k w_k π_k‖π) at each visited state;
    times the ratio π/π_old kept differentiable it follows Σ_k w_k KL(π‖π_k) there.
    In the reward: biased. Where a completion is far likelier under a reference than under the policy, it overflows:
    e^{−ℓ_k} is the importance weight.

    Reference: Schulman's k3; DERIVED for several references (docs/theory.md 6).
    """
    ratio, w = log_ratios(policy_logps, ref_logps, weights)
    ratio = torch.where((w == 0) & torch.isinf((-ratio).exp()), 0.0, ratio)  # an absent reference's weight may be no number
    return (w * (torch.expm1(-ratio) + ratio)).sum(0)


def log_ratios(policy_logps: Tensor, ref_logps: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """ℓ_k [K, *E] and weights; an absent reference that gives no mass is not looked at, not even by the gradient."""
    ref_logps = align(ref_logps, policy_logps.ndim)
    w = expand_weights(check_weights(weights, ref_logps.shape[0]), ref_logps)
    ref_logps = ref_logps.to(w.dtype)  # at least float32
    return policy_logps - torch.where((w == 0) & torch.isinf(ref_logps), policy_logps.detach(), ref_logps), w
