"""A convex f by its derivative: f' of a ratio given as its logarithm, with limits, and f by quadrature."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiref.errors import ArgumentError

LOG_LARGEST = 600.0  # e^600 is far from overflow; beyond it a slope f' counts as its limit
_NODES, _PANELS = 16, 4096


class Slope:
    """f' as a function of log t, with its limits; and the mean f̄(t) = f(t)/max(t, 1) of it, f(1) = 0, by quadrature.

    Args:
        f_prime: t [*E] float64 → f'(t), a function of torch that rises.
        at_zero, at_infinity: its limits, finite or not.
    """

    def __init__(self, f_prime: Callable[[Tensor], Tensor], at_zero: float, at_infinity: float) -> None:
        self.f_prime, self.at_zero, self.at_infinity = f_prime, at_zero, at_infinity

    def __call__(self, log_t: Tensor) -> Tensor:
        """[*E] → [*E] float64: f'(e^{log_t}); the limits at ±inf."""
        inner = log_t.double().clamp(-LOG_LARGEST, LOG_LARGEST)
        value = self.f_prime(inner.exp())
        value = torch.where(log_t == -math.inf, self.at_zero, value)
        return torch.where(log_t == math.inf, self.at_infinity, value)

    def mean(self, log_t: Tensor) -> Tensor:
        """[*E] → [*E]: f(t) where t ≤ 1, f(t)/t where t > 1; f(0) and f'(∞) at ±inf. Differentiable, twice."""
        value: Tensor = _Mean.apply(log_t.double(), self)  # type: ignore[no-untyped-call]
        return value

    def integrate(self, log_t: Tensor) -> Tensor:
        """`mean` at finite log t: ∫_0^ℓ f'(e^u) e^{u − max(ℓ, 0)} du, on panels that are halved until digits stand still."""
        nodes, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(_NODES))
        flat, before, panels = log_t.reshape(-1), torch.full((log_t.numel(),), math.nan, dtype=torch.float64), 4
        value, open_ = before.clone(), torch.arange(log_t.numel())
        while len(open_) and panels <= _PANELS:
            ends = flat[open_]
            width = ends / panels
            total = torch.zeros_like(ends)
            for panel in range(panels):
                u = width[:, None] * (panel + 0.5 + 0.5 * nodes)
                each = self(u) * (u - ends.clamp_min(0)[:, None]).exp()
                total = total + 0.5 * width * (each @ weights)
            value[open_] = total
            settled = (total - before[open_]).abs() <= 1e-14 * (1e-3 + total.abs()) + 1e-15 * panels
            before[open_] = total
            open_, panels = open_[~settled], 2 * panels
        if len(open_):
            raise ArgumentError(
                f"f_prime: its integral to t = e^{float(flat[open_[0]]):.4g} does not settle; expected a function that is "
                "smooth but for a few kinks."
            )
        return value.reshape(log_t.shape)

    def at_zero_mass(self) -> float:
        """f(0), +inf where the integral of f' diverges."""
        near, far = self.integrate(torch.tensor([-0.5 * LOG_LARGEST, -LOG_LARGEST], dtype=torch.float64)).tolist()
        return far if abs(far - near) <= 1e-6 * (1 + abs(far)) else math.inf

    def check(self) -> None:
        """ArgumentError for what is no derivative of a convex function with these limits."""
        log_t = torch.cat((torch.linspace(-40, 40, 321), torch.tensor([-LOG_LARGEST, LOG_LARGEST]))).double().sort().values
        try:
            value = self(log_t)
        except Exception as error:
            raise ArgumentError(
                f"f_prime: expected a function of torch, t [*E] → f'(t) [*E]; it raised {type(error).__name__}: {error}"
            ) from error
        if value.shape != log_t.shape or bool(value.isnan().any()):
            raise ArgumentError("f_prime: expected one number for each t > 0, found NaN or another shape.")
        if bool((value.diff() < -1e-12 * (1 + value[1:].abs())).any()) or not value[0] < value[-1]:
            raise ArgumentError("f_prime: expected a function that rises (f convex), found one that falls somewhere.")
        for name, limit, side in (("at_zero", self.at_zero, -1), ("at_infinity", self.at_infinity, 1)):
            near, end = self(side * LOG_LARGEST * torch.tensor([0.5, 1.0], dtype=torch.float64)).tolist()
            still = near == end or abs(end - near) <= 1e-9 * (1 + abs(end))
            if math.isinf(limit):
                wrong = limit == -side * math.inf or (still and limit != end)
            else:
                wrong = not abs(limit - end) <= (1e-9 if still else 0.01) * (1 + abs(limit))
            if wrong:
                raise ArgumentError(
                    f"{name}: found {limit!r}, expected the limit of f_prime there; "
                    f"it is {end:.6g} at t = e^{side * LOG_LARGEST:g}."
                )

    def steepness(self, log_t: Tensor) -> Tensor:
        """[*E] → [*E]: t f''(t)."""
        with torch.enable_grad():
            at = log_t.double().detach().requires_grad_()
            (found,) = torch.autograd.grad(self(at).sum(), at)
        return found

    def tame(self, factor: float) -> tuple[float, float, float]:
        """The ends of the interval of log t around 0 in which t f''(t) is within this factor of f''(1), and f''(1)."""
        far = torch.linspace(0, LOG_LARGEST, 60_001, dtype=torch.float64)
        middle = float(self.steepness(far[:1]))
        ends = []
        for side in (-1, 1):
            slope = self.steepness(side * far) / middle
            outside = ~((slope <= factor) & (slope >= 1 / factor))
            ends.append(side * float(far[int(outside.double().argmax()) - 1]) if bool(outside.any()) else side * math.inf)
        return ends[0], ends[1], middle


class _Mean(torch.autograd.Function):
    """`Slope.mean` with its derivative: t f'(t) below one, f'(t) − f(t)/t above."""

    @staticmethod
    def forward(ctx: Any, log_t: Tensor, slope: Slope) -> Tensor:
        finite = log_t.clamp(-LOG_LARGEST, LOG_LARGEST)
        value = slope.integrate(finite.nan_to_num())
        if bool((log_t == -math.inf).any()):
            value = torch.where(log_t == -math.inf, slope.at_zero_mass(), value)
        value = torch.where(log_t == math.inf, slope.at_infinity, value)
        ctx.slope = slope
        ctx.save_for_backward(log_t)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (log_t,) = ctx.saved_tensors
        inside = torch.where(log_t.isfinite(), log_t, 0.0)
        rising = torch.where(
            inside > 0, ctx.slope(inside) - ctx.slope.mean(inside), ctx.slope(inside) * inside.clamp_max(0).exp()
        )
        return torch.where(log_t.isfinite(), grad * rising, 0.0), None
