"""Damped Newton steps on many small convex problems at once; each stops on its own."""

from collections.abc import Callable

import torch
from torch import Tensor

_HALVINGS = 30


def damped_newton(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    derivatives: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    steps: int,
    tolerance: float,
    rounding: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """[*R, d] → minimisers [*R, d], which of them were reached [*R], the last curvature [*R, d, d].

    Args:
        objective: θ → (loss [*R], what the derivatives need beside θ: the margins).
        derivatives: (θ, margins) → (gradient [*R, d], Hessian [*R, d, d]).
        tolerance: of the Newton decrement, relative.
        rounding: of the loss, relative: a step is halved where the loss would rise by more, and is the end where halving
            does not help.
    """
    theta, (loss, margin) = start, objective(start)
    for _ in range(steps):
        gradient, hessian = derivatives(theta, margin)
        step = torch.linalg.solve(hessian, gradient)
        stopped = (step * gradient).sum(-1).abs() <= tolerance**2 * (1 + loss.abs())
        if bool(stopped.all()):
            break
        length = torch.ones_like(loss)
        for _ in range(_HALVINGS):
            proposal = theta - length.unsqueeze(-1) * step
            new_loss, new_margin = objective(proposal)
            worse = ~(new_loss <= loss + rounding * (1 + loss.abs())) & ~stopped
            if not bool(worse.any()):
                break
            length = torch.where(worse, 0.5 * length, length)
        stopped = stopped | worse
        keep = stopped.unsqueeze(-1)
        theta, margin = torch.where(keep, theta, proposal), torch.where(keep, margin, new_margin)
        loss = torch.where(stopped, loss, new_loss)
        if bool(stopped.all()):
            break
    return theta, stopped, hessian
