"""PARL's response term for a parametrised policy: conjugate gradients on β times the Fisher matrix, by products with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multiref.training.iterative.task import Policy

if TYPE_CHECKING:
    from multiref.training.iterative.bilevel import Units

__all__ = ["implicit_weights"]


def implicit_weights(policy: Policy, units: Units, *, beta: float, steps: int = 10, damping: float = 1e-4) -> Tensor:
    r"""[*S, B, m·n]: weights with Σ weight · r_φ = E[(∇log π · v) r_φ], v = (β F + δ)⁻¹ ∇_θ f.

    F = E[∇log π ∇log πᵀ] on the units' completions stands for the lower level's Hessian, which β F is at a Gibbs optimum (approximation elsewhere).
    Seeds share one conjugate-gradient run: their parameters are blocks of one system.
    """
    parameters = [p for p in policy.parameters() if p.requires_grad]
    with torch.enable_grad():
        logps = policy.logps(units.prompts, units.completions)
        probe = torch.zeros_like(logps, requires_grad=True)
        backward = torch.autograd.grad(logps, parameters, probe, create_graph=True)
    scale = logps.shape[-1] * logps.shape[-2]

    def transposed(vector: list[Tensor]) -> Tensor:
        """∇log π · v per completion."""
        return torch.autograd.grad(backward, probe, vector, retain_graph=True)[0]

    def product(vector: list[Tensor]) -> list[Tensor]:
        along = transposed(vector)
        pulled = torch.autograd.grad(logps, parameters, beta * along / scale, retain_graph=True)
        return [p + damping * v for p, v in zip(pulled, vector)]

    centred = units.utility - units.utility.mean(-1, keepdim=True)
    per_completion = centred.repeat_interleave(logps.shape[-1] // centred.shape[-1], -1)
    units_in_all = centred.shape[-1] * centred.shape[-2]
    pull = per_completion * centred.shape[-1] / (centred.shape[-1] - 1) / units_in_all  # ∂_θ f = E[u Σ ∇log π] over units
    target = torch.autograd.grad(logps, parameters, pull, retain_graph=True)
    solution = _conjugate_gradients(product, list(target), steps)
    along = transposed(solution).detach()
    return (along - along.mean(-1, keepdim=True)) / along.shape[-1]


def _conjugate_gradients(product, target: list[Tensor], steps: int) -> list[Tensor]:
    def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(x * y).sum() for x, y in zip(a, b)]).sum()

    solution = [torch.zeros_like(t) for t in target]
    residual, direction = [t.clone() for t in target], [t.clone() for t in target]
    squared = dot(residual, residual)
    for _ in range(steps):
        if float(squared) < 1e-20:
            break
        image = product(direction)
        step = squared / dot(direction, image)
        solution = [s + step * d for s, d in zip(solution, direction)]
        residual = [r - step * i for r, i in zip(residual, image)]
        fresh = dot(residual, residual)
        direction = [r + fresh / squared * d for r, d in zip(residual, direction)]
        squared = fresh
    return solution
