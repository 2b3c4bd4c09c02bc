r"""The hyper-gradient's response term from rollouts, as scalars whose derivative in the reward is the estimate.

    independent (E1)   (mean_{π_0} r − mean_{π_σ} r)/σ            two sets of rollouts; standard deviation ∝ 1/σ
    shared (E2)        mean_{π_0} (1 − w) r / σ,  w = π_σ/π_0     one set; deviation does not depend on σ
    covariance (E3)    β⁻¹ Ĉov_{π_0}(u, r)                        one policy, no σ, unbiased — for a Gibbs lower level

Add the direct term (the mean of the pair losses, differentiable in the reward) to any of them.
Rewards carry the gradient; weights and utilities are detached. Gibbs is assumed by `covariance`,
and by `shared` where its weights come from `shared_weights` rather than from two policies:
for a parametrised policy that has not reached the Gibbs policy they are biased; the claims measure by how much.

For any parametrised lower level: conjugate gradients on its Hessian (PARL's estimator).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref._logspace import check_beta
from multiref.bilevel.derivative import check_sigma
from multiref.errors import ArgumentError


def independent(lower_reward: Tensor, perturbed_reward: Tensor, *, sigma: float) -> Tensor:
    """[*B, n] rewards of rollouts of π_0, [*B, m] of π_σ → [*B]. Reference: arXiv 2309.01753; 2410.15610 as reconstructed."""
    return (lower_reward.mean(-1) - perturbed_reward.mean(-1)) / check_sigma(sigma)


def shared(reward: Tensor, weights: Tensor, *, sigma: float) -> Tensor:
    """[*B, n] rewards of rollouts of π_0, [*B, n] w = π_σ/π_0 there → [*B]. DERIVED."""
    return ((1 - weights.detach()) * reward).mean(-1) / check_sigma(sigma)


def shared_weights(payoff: Tensor, mean_payoff: Tensor, *, sigma: float, beta: float) -> Tensor:
    r"""[*B, n], [*B] → [*B, n]: the Gibbs weights to first order in the normaliser, w = e^{−σ (c − E c)/β}. DERIVED."""
    check_beta(beta)
    return (-check_sigma(sigma) * (payoff - mean_payoff.unsqueeze(-1)) / beta).exp()


def covariance(utility: Tensor, reward: Tensor, *, beta: float) -> Tensor:
    r"""[*B, m] utilities of independent units, [*B, m] their rewards → [*B]: β⁻¹ Σ_i (u_i − ū) r_i / (m − 1).

    A unit is whatever was drawn independently under π_0: a pair, with u its loss and r the sum of its two rewards (likelihood);
    a rollout with u its payoff (win rate). Unbiased for the response term in any case, because E[u (∇log π(y) + ∇log π(y'))] is
    what is estimated. DERIVED.

    Raises:
        ArgumentError: fewer than two units a prompt.
    """
    check_beta(beta)
    units = utility.shape[-1]
    if units < 2:
        raise ArgumentError(
            f"utility: found {units} unit a prompt, expected at least 2; a covariance needs two pairs of the same prompt"
        )
    centred = utility.detach() - utility.detach().mean(-1, keepdim=True)
    return (centred * reward).sum(-1) / ((units - 1) * beta)


@dataclass(frozen=True)
class ImplicitGradient:
    """gradient: like φ. residual: ‖(H + δ) v − ∇_θ f‖ / ‖∇_θ f‖ left by `steps` conjugate-gradient steps.

    slope: ‖∇_θ g‖, zero at a lower optimum.
    """

    gradient: Tensor
    residual: float
    steps: int
    slope: float


def implicit_hypergradient(
    upper: Callable[[Tensor, Tensor], Tensor],
    lower: Callable[[Tensor, Tensor], Tensor],
    phi: Tensor,
    theta: Tensor,
    *,
    damping: float = 0.0,
    steps: int = 500,
    tolerance: float = 1e-12,
) -> ImplicitGradient:
    r"""∇ψ(φ) = ∂_φ f − ∇²_{φθ} g (∇²_{θθ} g + δ)⁻¹ ∂_θ f at θ = argmin g(φ, ·), by Hessian-vector products.

    Args:
        upper, lower: f(φ, θ) and g(φ, θ), scalars, differentiable twice by autograd.
        damping: δ ≥ 0. A softmax has a gauge, along which ∂_θ f is zero: conjugate gradients stay in the range and need no
            damping there.

    Raises:
        ArgumentError: δ < 0; a lower level that is not convex at θ (negative curvature met): train it further or damp.

    Reference: arXiv 2308.02585 (PARL; RECALLED), with the inverse by conjugate gradients.
    """
    if not damping >= 0:
        raise ArgumentError(f"damping: found {damping!r}, expected at least zero")
    phi, theta = phi.detach().requires_grad_(True), theta.detach().requires_grad_(True)
    by_phi, by_theta = torch.autograd.grad(upper(phi, theta), (phi, theta), allow_unused=True)
    by_phi = torch.zeros_like(phi) if by_phi is None else by_phi
    by_theta = torch.zeros_like(theta) if by_theta is None else by_theta
    (slope,) = torch.autograd.grad(lower(phi, theta), theta, create_graph=True)

    def curvature(vector: Tensor) -> Tensor:
        return torch.autograd.grad(slope, theta, vector, retain_graph=True)[0] + damping * vector

    solution, residual, taken = conjugate_gradients(curvature, by_theta, steps=steps, tolerance=tolerance)
    (cross,) = torch.autograd.grad(slope, phi, solution, allow_unused=True)
    gradient = by_phi if cross is None else by_phi - cross
    return ImplicitGradient(gradient, residual, taken, float(slope.detach().norm()))


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], target: Tensor, *, steps: int, tolerance: float = 1e-10
) -> tuple[Tensor, float, int]:
    """(v, ‖H v − target‖/‖target‖, steps taken) of H v = target, for H positive semi-definite with the target in its range.

    Raises:
        ArgumentError: negative curvature.
    """
    scale = float(target.norm())
    solution, residual = torch.zeros_like(target), target.clone()
    direction, squared, taken = residual.clone(), residual.square().sum(), 0
    while taken < steps and float(squared) ** 0.5 > tolerance * scale:
        image = product(direction)
        curved = (direction * image).sum()
        if not float(curved) > 0:
            if float(curved) < -1e-12 * float(squared):
                raise ArgumentError(
                    "lower: found negative curvature, expected a minimum in θ; train the lower level further or give a damping"
                )
            break
        step = squared / curved
        solution, residual = solution + step * direction, residual - step * image
        fresh = residual.square().sum()
        direction, squared, taken = residual + fresh / squared * direction, fresh, taken + 1
    return solution, float(squared) ** 0.5 / scale if scale else 0.0, taken
