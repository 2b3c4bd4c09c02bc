"""Quasi-Newton descent for many small problems at once, rows on one axis."""

from collections.abc import Callable

import torch
from torch import Tensor


def with_gradient(value: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """φ [R, d] → values [R] and their gradients [R, d], by autograd."""

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor]:
        point = point.detach().requires_grad_(True)
        found = value(point)
        return found.detach(), torch.autograd.grad(found.sum(), point)[0]

    return evaluate


def minimise(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, *, steps: int = 120, tolerance: float = 1e-9
) -> tuple[Tensor, Tensor, Tensor]:
    """BFGS with Armijo halving, row by row; ends when every row is flat, or has failed to go down three times.

    Args:
        evaluate: φ [R, d] → values [R] and gradients [R, d].

    Returns:
        φ [R, d], values [R] and gradient norms [R] at the end.
    """
    point, (value, gradient) = start.clone(), evaluate(start)
    identity = torch.eye(start.shape[-1], dtype=start.dtype).expand(*start.shape, start.shape[-1])
    inverse = identity / gradient.norm(dim=-1).clamp_min(1.0)[:, None, None]
    stuck = torch.zeros(start.shape[0], dtype=torch.long)
    for _ in range(steps):
        if bool(((gradient.norm(dim=-1) <= tolerance) | (stuck > 2)).all()):
            break
        direction = -torch.einsum("rde,re->rd", inverse, gradient)
        slope = (direction * gradient).sum(-1)
        uphill = slope >= 0
        direction = torch.where(uphill[:, None], -gradient, direction)
        slope = torch.where(uphill, -gradient.square().sum(-1), slope)
        step = (10.0 / direction.norm(dim=-1).clamp_min(1e-30)).clamp_max(1.0)
        for _ in range(10):
            tried_value, tried_gradient = evaluate(point + step[:, None] * direction)
            enough = tried_value <= value + 1e-4 * step * slope + 1e-15
            if bool(enough.all()):
                break
            step = torch.where(enough, step, 0.5 * step)
        moved = torch.where(enough[:, None], step[:, None] * direction, 0.0)
        change = torch.where(enough[:, None], tried_gradient - gradient, 0.0)
        inverse = _updated(inverse, moved, change)
        inverse = torch.where((enough & ~uphill)[:, None, None], inverse, identity * 0.1)
        stuck = stuck + ~enough
        point = point + moved
        value = torch.where(enough, tried_value, value)
        gradient = gradient + change
    return point, value, gradient.norm(dim=-1)


def _updated(inverse: Tensor, moved: Tensor, change: Tensor) -> Tensor:
    """The BFGS update of the inverse Hessian, where the curvature along the step is positive."""
    curved = (moved * change).sum(-1)
    good = curved > 1e-14 * moved.norm(dim=-1) * change.norm(dim=-1)
    rho = torch.where(good, 1 / torch.where(good, curved, 1.0), 0.0)[:, None, None]
    left = torch.eye(moved.shape[-1], dtype=moved.dtype) - rho * moved[:, :, None] * change[:, None, :]
    updated = left @ inverse @ left.transpose(-1, -2) + rho * moved[:, :, None] * moved[:, None, :]
    return torch.where(good[:, None, None], updated, inverse)
