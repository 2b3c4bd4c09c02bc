"""The second policy of the penalty method: the lower optimum, moved a little against the upper objective."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiref.training.checkpoint import put_back
from multiref.training.iterative.labels import LabelledUnits
from multiref.training.iterative.state import State
from multiref.training.iterative.task import Policy

_PROBE = 1e-3


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
