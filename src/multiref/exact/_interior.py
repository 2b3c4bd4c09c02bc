"""The equilibrium of a regularised game from inside the simplex: a primal–dual interior-point method, for every regularizer.

With S = P − ½ (skew) and F_y(π_y) = β f'(π_y/P_y) or β Σ_k w_k f'(π_y/π_k), which rises, the equilibrium solves

    F(π) − Sπ + λ = s,   Σ_y π = 1,   π ≥ 0,  s ≥ 0,  π_y s_y = 0

The derivative F' − S of the first line is positive definite (S is skew), so this is a monotone complementarity problem, a
linear one for α = 2; its central path π_y s_y = μ leads to the solution at every β, truncation, vetoes and corners included.
Newton's method on ρ alone can stall at the kinks of a truncated best response.

Reference: Mehrotra's predictor and corrector as in Wright, Primal–Dual Interior-Point Methods, 1997, chapter 8.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from multiref._logspace import NEG_INF
from multiref.exact._problem import check_mass
from multiref.regularizers import Regularizer

_STEPS, _INSIDE, _HALVINGS = 100, 0.995, 30
_LEAST, _MOST, _CENTRAL = 0.01, 0.8, 1e-3  # of μ: the next one; and the least π s of a point near the path
_CLOSE, _ROUNDED = 1e-18, 1e-14  # of μ, and of the errors of the other lines


class _Point(NamedTuple):
    """π [*B, Y], s [*B, Y] and λ [*B, 1]."""

    policy: Tensor
    slack: Tensor
    shift: Tensor

    def mean(self, one: Tensor) -> Tensor:
        """[*B, 1]: μ, the mean of π s over the completions in play."""
        return (self.policy * self.slack * one).sum(-1, keepdim=True) / one.sum(-1, keepdim=True).clamp_min(1)

    def moved(self, change: "_Point", length: Tensor) -> "_Point":
        """So far along a change."""
        return _Point(*(value + length * by for value, by in zip(self, change)))

    def room(self, change: "_Point") -> Tensor:
        """[*B, 1]: how far one may go without leaving π > 0, s > 0; at most 1."""
        ends = (torch.where(by < 0, -value / by, torch.inf).amin(-1, keepdim=True) for value, by in zip(self[:2], change))
        return (_INSIDE * torch.minimum(*ends)).clamp_max(1.0)


def find_interior(skew: Tensor, ref_logps: Tensor, regularizer: Regularizer, beta: float) -> Tensor:
    """[*B, Y, Y], [K, *B, Y] → ρ = Sπ* [*B, Y], to about the rounding errors of π*. EmptyPoolError for a row without mass."""
    shape = skew.shape[:-1]
    refs = ref_logps.expand(-1, *shape)
    alive = torch.isfinite(regularizer.implicit_reward(torch.zeros(shape, dtype=torch.float64), refs, beta=beta))
    check_mass(torch.where(alive, 0.0, NEG_INF), torch.zeros_like(skew[..., 0]), regularizer.name)
    one = alive.double()
    skew = skew * one[..., None] * one[..., None, :]
    system = torch.zeros(*shape[:-1], shape[-1] + 1, shape[-1] + 1, dtype=torch.float64)
    system[..., :-1, -1] = system[..., -1, :-1] = one
    even = one / one.sum(-1, keepdim=True).clamp_min(1)
    at = _Point(torch.where(alive, even, 1.0), torch.ones_like(one), torch.zeros_like(one[..., :1]))
    for _ in range(_STEPS):
        price, steep = _price(at.policy, alive, refs, regularizer, beta)
        lost = torch.where(alive, price - times(skew, at.policy * one) + at.shift - at.slack, 0.0)
        excess = (at.policy * one).sum(-1, keepdim=True) - 1
        mean = at.mean(one)
        error = torch.maximum(lost.abs().amax(-1, keepdim=True), excess.abs())
        open_ = ~((mean < _CLOSE) & (error < _ROUNDED))
        if not bool(open_.any()):
            break
        system[..., :-1, :-1] = torch.diag_embed(torch.where(alive, steep + at.slack / at.policy, 1.0)) - skew
        factors = torch.linalg.lu_factor(system)
        change = _change(at, factors, lost, excess, alive, torch.zeros_like(mean))
        ahead = at.moved(change, at.room(change)).mean(one)
        target = ((ahead / mean) ** 3).clamp(_LEAST, _MOST) * mean
        change = _change(at, factors, lost, excess, alive, target)
        length = at.room(change)
        for _ in range(_HALVINGS):  # near the path, and on to its end: what makes it converge (Wright, algorithm LPF)
            new = at.moved(change, length)
            reached, least = new.mean(one), torch.where(alive, new.policy * new.slack, torch.inf).amin(-1, keepdim=True)
            far = open_ & ((least < _CENTRAL * reached) | (reached > (1 - 0.01 * length) * mean))
            if not bool(far.any()):
                break
            length = torch.where(far, 0.5 * length, length)
        open_ &= torch.stack([each.isfinite().all(-1, keepdim=True) for each in new]).all(0)
        if not bool(open_.any()):
            break
        at = _Point(*(torch.where(open_, *each) for each in zip(new, at)))
    return times(skew, at.policy * one)


def _change(at: _Point, factors: tuple[Tensor, Tensor], lost: Tensor, excess: Tensor, alive: Tensor, target: Tensor) -> _Point:
    """Newton's step to π s = target."""
    complement = at.policy * at.slack - target
    right = torch.cat((torch.where(alive, -lost - complement / at.policy, 0.0), -excess), -1)
    found = torch.linalg.lu_solve(*factors, right[..., None])[..., 0]
    policy, shift = found[..., :-1], found[..., -1:]
    return _Point(policy, torch.where(alive, -(complement + at.slack * policy) / at.policy, 0.0), shift)


def _price(policy: Tensor, alive: Tensor, refs: Tensor, regularizer: Regularizer, beta: float) -> tuple[Tensor, Tensor]:
    """F(π) and F'(π), completion by completion."""
    with torch.enable_grad():
        log_policy = policy.log().requires_grad_()
        price = torch.where(alive, regularizer.implicit_reward(log_policy, refs, beta=beta), 0.0)
        (slope,) = torch.autograd.grad(price.sum(), log_policy)
    return price.detach(), torch.where(alive, slope.nan_to_num(), 0.0) / policy


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """[*B, Y, Y], [*B, Y] → [*B, Y]."""
    return (matrix @ vector[..., None])[..., 0]
