"""The hyper-gradient of any parametrised lower level, by conjugate gradients on its Hessian (PARL's estimator)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.errors import ArgumentError

__all__ = ["ImplicitGradient", "conjugate_gradients", "implicit_hypergradient"]


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
