"""The second policy of the penalty method: the lower optimum, moved a little against the upper objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from multiref.training.bilevel.state import State
from multiref.training.bilevel.task import Policy, Task

if TYPE_CHECKING:
    from multiref.training.bilevel.bilevel import Units

__all__ = ["perturb"]


def perturb(task: Task, state: State, units: Units, *, sigma: float, steps: int, rate: float) -> Policy:
    r"""`steps` of ascent on E_π[r] − β Σ w_k D − σ f, from the current policy, on the labelled units themselves.

    Rollouts and labels are those of the outer step, reweighted by π_σ/π_0: no label is bought for the inner level, and the two policies share their noise
    (two trackers trained apart would differ by their noise over σ). Few steps move π_σ only part of the way: the response term is then
    too small by the part that is missing, which the report of estimator bias shows.
    """
    moved = state.policy.copy()
    optimizer = torch.optim.SGD(list(moved.parameters()), lr=rate)
    with torch.no_grad():
        reward = state.reward(units.prompts, units.completions)  # type: ignore[misc]
        before = state.policy.logps(units.prompts, units.completions)
        paid = task.regularizer.implicit_reward(before, task.ref_logps(units.prompts, units.completions), beta=task.beta)
        lower = units.per_unit(reward - paid)
        utility = lower - lower.mean(-1, keepdim=True) - sigma * (units.utility - units.utility.mean(-1, keepdim=True))
    for _ in range(steps):
        logps = units.per_unit(moved.logps(units.prompts, units.completions))
        weight = (logps - units.per_unit(before)).detach().exp().clamp(max=2.0)
        loss = -(weight * utility * logps).mean((-1, -2)).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return moved
