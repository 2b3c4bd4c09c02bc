"""The outer step without a rate to choose: online Newton, one pass over the labels, for rewards that are linear in features."""

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref.training.iterative.labels import LabelledUnits
from multiref.training.iterative.state import State

_LEAST = 1e-2


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
        p = torch.sigmoid(units.margin(reward))
        curvature = (p * (1 - p)).clamp_min(_LEAST)
        if state.information is None:
            state.information = ridge * torch.eye(move.shape[-1]).expand(*move.shape[:-2], -1, -1).clone()
        state.information += torch.einsum("...m,...md,...me->...de", curvature, move, move)
        phi -= torch.linalg.solve(state.information, move.shape[-2] * slope)
