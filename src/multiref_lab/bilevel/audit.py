"""Where each upper objective ends, with nothing sampled: the true value of the policy that its minimiser induces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.bilevel import Likelihood, Upper
from multiref_lab.bilevel.minimise import minimise
from multiref_lab.bilevel.world import LinearReward

__all__ = ["Audit", "audit", "best_in_class", "offline_fit", "on_policy_fit"]


@dataclass(frozen=True)
class Audit:
    """Ends of the searches. phi [S, d], value [S] of the objective, slope [S] its gradient norm there, log_policy [S, X, Y]."""

    phi: Tensor
    value: Tensor
    slope: Tensor
    log_policy: Tensor


def _starts(world: LinearReward, starts: int, generator: torch.Generator, scale: float) -> Tensor:
    """[S·starts, d]: zero first, then random ones."""
    seeds, dimension = world.features.shape[0], world.features.shape[-1]
    drawn = scale * torch.randn(seeds, starts, dimension, generator=generator, dtype=torch.float64)
    drawn[:, 0] = 0
    return drawn.flatten(0, 1)


def _kept(phi: Tensor, value: Tensor, slope: Tensor, seeds: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best of each seed's searches."""
    best = value.reshape(seeds, -1).argmin(-1)
    rows = torch.arange(seeds) * (len(value) // seeds) + best
    return phi[rows], value[rows], slope[rows]


def audit(world: LinearReward, upper: Upper, *, starts: int = 3, scale: float = 1.0, generator: torch.Generator) -> Audit:
    """The minimiser of ψ, best of several local searches; for U1, which minimises nothing, its fixed point."""
    if not upper.follows_policy:
        return on_policy_fit(world)
    seeds, wide = world.features.shape[0], world.repeat(starts)
    found = minimise(
        lambda phi: (wide.upper_value(phi, upper), wide.upper_gradient(phi, upper)), _starts(world, starts, generator, scale)
    )
    phi, value, slope = _kept(*found, seeds)
    return Audit(phi, value, slope, world.problem.lower(world.reward_of(phi)))


def best_in_class(world: LinearReward, *, starts: int = 3, generator: torch.Generator) -> Audit:
    """The best true value that any φ induces."""

    def evaluate(phi: Tensor) -> tuple[Tensor, Tensor]:
        phi = phi.detach().requires_grad_(True)
        value = -wide.true_value(wide.problem.lower(wide.reward_of(phi)))
        return value.detach(), torch.autograd.grad(value.sum(), phi)[0]

    seeds, wide = world.features.shape[0], world.repeat(starts)
    phi, value, slope = _kept(*minimise(evaluate, _starts(world, starts, generator, 1.0)), seeds)
    return Audit(phi, value, slope, world.problem.lower(world.reward_of(phi)))


def _fisher(world: LinearReward, phi: Tensor, log_policy: Tensor) -> Tensor:
    """[S, d, d]: curvature of the pair likelihood at φ, pairs from π ⊗ π."""
    reward, policy = world.reward_of(phi), log_policy.exp()
    p = torch.sigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))
    weight = policy.unsqueeze(-1) * policy.unsqueeze(-2) * p * (1 - p)
    own = torch.einsum("sxyd,sxyz,sxye->sde", world.features, weight, world.features)
    other = torch.einsum("sxyd,sxyz,sxze->sde", world.features, weight, world.features)
    return 2 * (own - other) / reward.shape[-2]


def _newton(world: LinearReward, law, steps: int, tolerance: float) -> Audit:
    """Fisher scoring on the pair likelihood under `law(φ)`, held fixed in each step."""
    likelihood, dimension = Likelihood(), world.features.shape[-1]
    phi = torch.zeros(world.features.shape[0], dimension, dtype=torch.float64)
    for _ in range(steps):
        log_policy = law(phi)
        field = world.chain(likelihood.direct(world.problem, log_policy, world.reward_of(phi)))
        if float(field.norm(dim=-1).max()) <= tolerance:
            break
        curvature = _fisher(world, phi, log_policy) + 1e-12 * torch.eye(dimension, dtype=torch.float64)
        step = torch.linalg.solve(curvature, field)
        phi = phi - step * (1.0 / step.norm(dim=-1, keepdim=True).clamp_min(1.0))
    policy = world.problem.lower(world.reward_of(phi))
    value = likelihood.value(world.problem, policy, world.reward_of(phi)).mean(-1)
    return Audit(phi, value, field.norm(dim=-1), policy)


def on_policy_fit(world: LinearReward, *, steps: int = 300, tolerance: float = 1e-11) -> Audit:
    """U1's fixed point: maximum likelihood on pairs of the policy that it induces."""
    return _newton(world, lambda phi: world.problem.lower(world.reward_of(phi)), steps, tolerance)


def offline_fit(world: LinearReward, *, steps: int = 200, tolerance: float = 1e-11) -> Audit:
    """Maximum likelihood on infinitely many pairs of the comparator: what an offline data set can teach."""
    law: Tensor = world.problem.comparator_logps  # type: ignore[assignment]
    return _newton(world, lambda phi: law, steps, tolerance)
