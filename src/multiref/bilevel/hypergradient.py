"""The exact derivative of the upper level through the lower level's exact solution, in closed form for every regularizer."""

from __future__ import annotations

import torch
from torch import Tensor

from multiref.bilevel.problem import Problem
from multiref.bilevel.upper import Upper

__all__ = ["hypergradient", "policy_response"]


def policy_response(problem: Problem, log_policy: Tensor, payoff: Tensor) -> Tensor:
    r"""[*B, Y], [*B, Y] → [*B, Y]: Σ_y c(y) ∂π(y)/∂r, the lower level's Jacobian applied to a payoff.

        (∂π/∂r)ᵀ c = β⁻¹ h (c − Σ h c / Σ h),      h = π (π/P)^{1−α};   h = π for reverse KL: a covariance under the policy

    Reverse KL: DERIVED (docs/theory.md 9). The rest of the family: DERIVED from β f'(π/P) = r − λ,
    whose derivative is β dπ/h = dr − dλ with Σ dπ = 0. Where the optimum is truncated (α > 1),
    completions without mass do not respond.
    """
    alpha = problem.regularizer.alpha
    if alpha == 1:
        share = log_policy.exp()
    else:
        present = log_policy > -torch.inf
        ratio = torch.where(present, log_policy, 0.0) - torch.where(present, problem.log_pool, 0.0)
        share = torch.where(present, (log_policy + (1 - alpha) * ratio).exp(), 0.0)
    mean = (share * torch.where(share > 0, payoff, 0.0)).sum(-1, keepdim=True) / share.sum(-1, keepdim=True)
    return share * torch.where(share > 0, payoff - mean, 0.0) / problem.beta


def hypergradient(problem: Problem, reward: Tensor, upper: Upper) -> Tensor:
    r"""[*B, Y] → [*B, Y]: dψ/dr of ψ(r) = f(r, π(r)), per prompt.

        dψ/dr = ∂f/∂r + (∂π/∂r)ᵀ ∂f/∂π            for reverse KL  ∂_r f + β⁻¹ π (c − E_π c)

    In parameters: ∇ψ(φ) = E_x Σ_y (dψ/dr)(x, y) ∇r_φ(x, y) = ∂_φ f + β⁻¹ E_x Cov_π(c, ∇r_φ).
    `StopGradient` leaves the second term out, by definition.
    """
    log_policy = problem.lower(reward)
    direct = upper.direct(problem, log_policy, reward)
    if not upper.follows_policy:
        return direct
    return direct + policy_response(problem, log_policy, upper.payoff(problem, log_policy, reward))
