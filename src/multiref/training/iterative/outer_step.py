"""The parts of a bilevel outer step: how the lower level's optimum answers a move (conjugate gradients on β times the Fisher
matrix; or a second policy, moved a little against the upper objective), and a step without a rate to choose (online Newton)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiref.bilevel import conjugate_gradients
from multiref.errors import ArgumentError
from multiref.training.checkpoint import put_back
from multiref.training.iterative.labels import LabelledUnits, pair_margin
from multiref.training.iterative.state import State
from multiref.training.iterative.task import Policy

_PROBE = 1e-3  # length of the step that measures a slope
_LEAST = 1e-2  # curvature of a pair


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
    target = pull(per_completion / (centred.shape[-1] - 1) / centred.shape[-2])  # ∂_θ f = E[u Σ ∇log π] over units
    solution = conjugate_gradients(lambda v: pull(beta * along(v) / scale) + damping * v, target, steps=steps)[0]
    found = along(solution).detach()
    return (found - found.mean(-1, keepdim=True)) / found.shape[-1]


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def perturb(state: State, units: LabelledUnits, *, sigma: float, beta: float, steps: int) -> tuple[Policy, Tensor]:
    r"""π_σ and the current policy's log π_0 of the units [*S, B, m·n].

    π_σ is found by `steps` ≥ 1 gradient steps with exact line search on labelled units of the current policy:

        minimise  mean ½ (Σ_unit log π_σ/π_0 + n (σ/β)(u − ū))²          n completions a unit

    Its minimiser over a class is the first-order response of the penalised lower level, δθ = −σ (βF)⁻¹ ∂_θ f with F the class's
    Fisher matrix, the lower level's Hessian at a Gibbs optimum (DERIVED).
    Rollouts and labels are those of the outer step: no label is bought for the inner level,
    and the two policies share their noise; two policies trained apart would differ by their noise over σ.
    In a class that can fit every unit, enough steps make "shared_rollouts" the "covariance".
    Few steps leave part of the response out.
    """
    if state.moved is None:
        state.moved = state.policy.copy()
    moved = state.moved
    put_back(zip(moved.parameters(), state.policy.parameters(), strict=True))
    parameters = list(moved.parameters())
    each = units.completions.shape[-2] // units.utility.shape[-1]
    target = -each * sigma / beta * (units.utility - units.utility.mean(-1, keepdim=True))
    before = torch.empty(0)
    for step in range(steps):
        logps = moved.logps(units.prompts, units.completions)
        before = logps.detach() if step == 0 else before  # at first the two policies are one
        left = target - units.per_unit(logps - before)
        slope = torch.autograd.grad(0.5 * left.square().sum(), parameters, allow_unused=True)
        norm = sum(float(g.square().sum()) for g in slope if g is not None) ** 0.5
        if norm == 0:
            break
        with torch.no_grad():
            _move(parameters, slope, -_PROBE / norm)
            probed = target - units.per_unit(moved.logps(units.prompts, units.completions) - before)
            along = (left.detach() - probed) * norm / _PROBE  # J·(−slope), by a small step
            _move(parameters, slope, _PROBE / norm - float((left * along).sum() / along.square().sum().clamp_min(1e-30)))
    return moved, before


def _move(parameters: list[Tensor], direction: Sequence[Tensor | None], step: float) -> None:
    for parameter, along in zip(parameters, direction):
        if along is not None:
            parameter.add_(along, alpha=step)


def newton_step(state: State, units: LabelledUnits, gradient: list[Tensor], *, ridge: float) -> None:
    r"""A_k = A_{k−1} + Σ_i h_i Δf_i Δf_iᵀ,   φ_{k+1} = φ_k − A_k⁻¹ n_k g_k,   A_0 = ridge · I

    i runs over the n_k pairs of the step, Δf_i is a pair's difference of ∂r/∂φ, h_i = p_i (1 − p_i) its curvature at φ_k (at
    least 0.01, so that one overconfident step does not lame the next), g_k the hyper-gradient per pair.
    With "stop_gradient" it is the recursive form of maximum likelihood on all labels so far, so that what early,
    spread-out pairs said is kept: a plain step along on-policy pairs forgets it. A is the labels' Fisher information.

    Raises:
        ArgumentError: a reward model that is not linear in its one parameter (it has no `jacobian`).
    """
    reward, _ = state.learner()
    jacobian = getattr(reward, "jacobian", None)
    if jacobian is None:
        raise ArgumentError(
            f"outer: found newton with {type(reward).__name__}, expected a reward linear in features; use adam for others"
        )
    (phi,), (slope,) = reward.parameters(), gradient
    with torch.no_grad():
        first, second = jacobian(units.prompts, units.completions).unflatten(-2, (-1, 2)).unbind(-2)
        move = (first - second).flatten(-3, -2)  # [*S, B·m, d]
        p = torch.sigmoid(pair_margin(reward, units.prompts, units.completions))
        curvature = (p * (1 - p)).clamp_min(_LEAST)
        if state.information is None:
            state.information = ridge * torch.eye(move.shape[-1]).expand(*move.shape[:-2], -1, -1).clone()
        state.information += torch.einsum("...m,...md,...me->...de", curvature, move, move)
        phi -= torch.linalg.solve(state.information, move.shape[-2] * slope)
