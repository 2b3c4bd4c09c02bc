r"""The exact derivative of the upper level through the lower level's exact solution: in closed form for every regularizer,
and by the penalty method of Kwon et al.: the upper level through two lower solutions, first order only.

    g(r, π) = −E_π[r] + β Σ_k w_k D(π‖π_k)          h_σ = σ f + g
    ψ_σ(r)  = (min_π h_σ − min_π g)/σ  ≤  ψ(r)
    ∇ψ_σ    = ∂_r f(r, π_σ) + (π_0 − π_σ)/σ          π_σ = argmin h_σ, π_0 = argmin g

Reference: arXiv 2309.01753 (FOUND); for preferences, arXiv 2410.15610 as reconstructed in the theory notes (DERIVED).
"""

import math

import torch
from torch import Tensor

from multiref.bilevel.problem import Problem, Upper
from multiref.errors import ArgumentError


def policy_response(problem: Problem, log_policy: Tensor, payoff: Tensor) -> Tensor:
    r"""[*B, Y], [*B, Y] → [*B, Y]: Σ_y c(y) ∂π(y)/∂r, the lower level's Jacobian applied to a payoff.

        (∂π/∂r)ᵀ c = β⁻¹ h (c − Σ h c / Σ h),      h = π (π/P)^{1−α};   h = π for reverse KL: a covariance under the policy

    Reverse KL: DERIVED (docs/theory.md 9). The rest of the family: DERIVED from β f'(π/P) = r − λ,
    whose derivative is β dπ/h = dr − dλ with Σ dπ = 0. Where the optimum is truncated (α > 1),
    completions without mass do not respond. At the corner (α < 1, mass where no reference has any) λ moves with the best
    reward alone, so that c there stands for the mean, and the mass there takes what the others give up.
    """
    alpha, log_pool = problem.regularizer.alpha, problem.log_pool
    share, corner = log_policy.exp(), torch.zeros_like(log_policy)
    if alpha != 1:
        present = (log_policy > -torch.inf) & (log_pool > -torch.inf)
        ratio = torch.where(present, log_policy, 0.0) - torch.where(present, log_pool, 0.0)
        share = torch.where(present, (log_policy + (1 - alpha) * ratio).exp(), 0.0)
        corner = ((log_policy > -torch.inf) & (log_pool == -torch.inf)).to(share.dtype)
    rate = torch.where(corner.any(-1, keepdim=True), corner, share)
    mean = (rate * torch.where(rate > 0, payoff, 0.0)).sum(-1, keepdim=True) / rate.sum(-1, keepdim=True)
    response = share * torch.where(share > 0, payoff - mean, 0.0)
    taken = response.sum(-1, keepdim=True) * corner / corner.sum(-1, keepdim=True).clamp_min(1)
    return (response - taken) / problem.beta


def hypergradient(problem: Problem, reward: Tensor, upper: Upper) -> Tensor:
    r"""[*B, Y] → [*B, Y]: dψ/dr of ψ(r) = f(r, π(r)), per prompt.

        dψ/dr = ∂f/∂r + (∂π/∂r)ᵀ ∂f/∂π            for reverse KL  ∂_r f + β⁻¹ π (c − E_π c)

    In parameters: ∇ψ(φ) = E_x Σ_y (dψ/dr)(x, y) ∇r_φ(x, y) = ∂_φ f + β⁻¹ E_x Cov_π(c, ∇r_φ).
    `StopGradient` leaves the second term out, by definition.

    Reference: DERIVED (docs/theory.md 9).
    """
    log_policy = problem.lower(reward)
    direct = upper.direct(problem, log_policy, reward)
    if not upper.follows_policy:
        return direct
    return direct + policy_response(problem, log_policy, upper.payoff(problem, log_policy, reward))


_STEPS = 20_000


def check_sigma(sigma: float) -> float:
    """Refuse a penalty strength that is not positive and finite."""
    if not (isinstance(sigma, int | float) and math.isfinite(sigma) and sigma > 0):
        raise ArgumentError(f"sigma: found {sigma!r}, expected a positive number; start with 0.1")
    return float(sigma)


def perturbed_policy(problem: Problem, reward: Tensor, upper: Upper, *, sigma: float, tolerance: float = 1e-13) -> Tensor:
    r"""[*B, Y] → [*B, Y]: log π_σ, the policy trained on the reward less σ times the upper level's payoff.

        β f'(π_σ/P) = r − σ c_{π_σ} + const          (damped iteration; c = ∂f/∂π)

    Raises:
        ArgumentError: σ ≤ 0, or a σ so large that the iteration does not settle.

    Reference: arXiv 2309.01753 for the penalty (FOUND); as a policy DERIVED (docs/theory.md 9).
    """
    check_sigma(sigma)
    log_policy = problem.lower(reward)
    damping, before = 1.0, math.inf
    for _ in range(_STEPS):
        target = problem.lower(reward - sigma * upper.payoff(problem, log_policy, reward))
        change = float((target.exp() - log_policy.exp()).abs().max()) if reward.numel() else 0.0
        if change <= tolerance:
            return target
        if change > before:
            damping = max(0.7 * damping, 0.05)
        before = change
        apart = (log_policy > -torch.inf) & (target > -torch.inf)
        log_policy = torch.where(apart, (1 - damping) * log_policy + damping * target, target).log_softmax(-1)
    raise ArgumentError(
        f"sigma: found {sigma}, at which the perturbed policy does not settle (last change {change:.2g}); choose a smaller one"
    )


def penalised_value(problem: Problem, reward: Tensor, upper: Upper, *, sigma: float) -> Tensor:
    """[*B, Y] → [*B]: ψ_σ = f(r, π_σ) + (g(π_σ) − g(π_0))/σ ≤ ψ, by at most O(σ). Raises: as `perturbed_policy`.

    Reference: arXiv 2309.01753 (FOUND).
    """
    moved, still = perturbed_policy(problem, reward, upper, sigma=sigma), problem.lower(reward)
    lost = problem.lower_value(still, reward) - problem.lower_value(moved, reward)
    return upper.value(problem, moved, reward) + lost / sigma


def penalised_gradient(problem: Problem, reward: Tensor, upper: Upper, *, sigma: float) -> Tensor:
    """[*B, Y] → [*B, Y]: dψ_σ/dr = ∂_r f(r, π_σ) + (π_0 − π_σ)/σ, from the two lower solutions; dψ/dr up to O(σ).

    Raises: as `perturbed_policy`. Reference: arXiv 2309.01753 (FOUND).
    """
    moved, still = perturbed_policy(problem, reward, upper, sigma=sigma), problem.lower(reward)
    return upper.direct(problem, moved, reward) + (still.exp() - moved.exp()) / sigma
