"""PARL's response term for a parametrised policy: conjugate gradients on β times the Fisher matrix, by products with it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiref.bilevel import conjugate_gradients
from multiref.errors import ArgumentError
from multiref.training.iterative.labels import LabelledUnits
from multiref.training.iterative.task import Policy


def implicit_weights(policy: Policy, units: LabelledUnits, *, beta: float, steps: int = 10, damping: float = 1e-4) -> Tensor:
    r"""[*S, B, m·n]: weights with Σ weight · r_φ = E[(∇log π · v) r_φ], v = (β F + δ)⁻¹ ∇_θ f.

    F = E[∇log π ∇log πᵀ] on the units' completions stands for the lower level's Hessian, which β F is at a Gibbs optimum
    (approximation elsewhere). Seeds share one conjugate-gradient run: their parameters are blocks of one system.

    Raises:
        ArgumentError: a policy that can be differentiated once only.
    """
    if getattr(policy, "once_differentiable", False):
        raise ArgumentError(
            f"estimator: conjugate_gradient needs second derivatives of log π, which {type(policy).__name__} does not have; "
            "use shared_rollouts or covariance"
        )
    parameters = [p for p in policy.parameters() if p.requires_grad]
    with torch.enable_grad():
        logps = policy.logps(units.prompts, units.completions)
        probe = torch.zeros_like(logps, requires_grad=True)
        backward = _flat(torch.autograd.grad(logps, parameters, probe, create_graph=True))
    scale = logps.shape[-1] * logps.shape[-2]

    def along(vector: Tensor) -> Tensor:
        """[*S, B, m·n]: ∇log π · v of each completion."""
        return torch.autograd.grad(backward, probe, vector, retain_graph=True)[0]

    def pull(weights: Tensor) -> Tensor:
        """Σ weight · ∇log π, all parameters in one vector."""
        return _flat(torch.autograd.grad(logps, parameters, weights, retain_graph=True))

    centred = units.utility - units.utility.mean(-1, keepdim=True)
    per_completion = centred.repeat_interleave(logps.shape[-1] // centred.shape[-1], -1)
    units_in_all = centred.shape[-1] * centred.shape[-2]
    target = pull(
        per_completion * centred.shape[-1] / (centred.shape[-1] - 1) / units_in_all
    )  # ∂_θ f = E[u Σ ∇log π] over units
    solution = conjugate_gradients(lambda v: pull(beta * along(v) / scale) + damping * v, target, steps=steps)[0]
    found = along(solution).detach()
    return (found - found.mean(-1, keepdim=True)) / found.shape[-1]


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
