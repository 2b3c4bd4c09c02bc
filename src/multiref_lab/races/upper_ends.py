"""Where each upper objective ends, with nothing sampled: the true value of the policy that its minimiser induces."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.bilevel import Likelihood, Upper, preference_table
from multiref_lab.preferences import pair_information
from multiref_lab.races.quasi_newton import minimise, with_gradient
from multiref_lab.races.world import LinearWorld


@dataclass(frozen=True)
class Audit:
    """Ends of the searches. phi [S, d], value [S] of the objective, slope [S] its gradient norm there, log_policy [S, X, Y]."""

    phi: Tensor
    value: Tensor
    slope: Tensor
    log_policy: Tensor


def _search(
    world: LinearWorld,
    evaluate: Callable[[LinearWorld, Tensor], tuple[Tensor, Tensor]],
    starts: int,
    scale: float,
    generator: torch.Generator,
) -> Audit:
    """The best of each seed's local searches: one from zero, the others from afar."""
    seeds, dimension, wide = world.features.shape[0], world.features.shape[-1], world.repeat(starts)
    start = scale * torch.randn(seeds, starts, dimension, generator=generator, dtype=torch.float64)
    start[:, 0] = 0
    phi, value, slope = minimise(lambda each: evaluate(wide, each), start.flatten(0, 1))
    rows = torch.arange(seeds) * starts + value.reshape(seeds, -1).argmin(-1)
    return Audit(phi[rows], value[rows], slope[rows], world.policy_of(phi[rows]))


def audit(world: LinearWorld, upper: Upper, *, starts: int = 3, scale: float = 1.0, generator: torch.Generator) -> Audit:
    """The minimiser of ψ, best of several local searches; for the stop-gradient, which minimises nothing, its fixed point."""
    if not upper.follows_policy:
        return _newton(world, world.policy_of)  # maximum likelihood on pairs of the policy that it induces
    return _search(
        world, lambda wide, phi: (wide.upper_value(phi, upper), wide.upper_gradient(phi, upper)), starts, scale, generator
    )


def best_in_class(world: LinearWorld, *, starts: int = 3, generator: torch.Generator) -> Audit:
    """The best true value that any φ induces."""

    def evaluate(wide: LinearWorld, phi: Tensor) -> tuple[Tensor, Tensor]:
        return with_gradient(lambda each: -wide.true_value(wide.policy_of(each)))(phi)

    return _search(world, evaluate, starts, 1.0, generator)


def _fisher(world: LinearWorld, phi: Tensor, log_policy: Tensor) -> Tensor:
    """[S, d, d]: curvature of the pair likelihood at φ, pairs from π ⊗ π."""
    p, policy = preference_table(world.reward_of(phi)), log_policy.exp()
    weight = policy.unsqueeze(-1) * policy.unsqueeze(-2) * p * (1 - p)
    return pair_information(world.features, weight).mean(1)


def _newton(world: LinearWorld, law: Callable[[Tensor], Tensor]) -> Audit:
    """Fisher scoring on the pair likelihood under `law(φ)`, held fixed in each step."""
    likelihood, dimension = Likelihood(), world.features.shape[-1]
    phi = torch.zeros(world.features.shape[0], dimension, dtype=torch.float64)
    for _ in range(300):
        log_policy = law(phi)
        field = world.chain(likelihood.direct(world.problem, log_policy, world.reward_of(phi)))
        if float(field.norm(dim=-1).max()) <= 1e-11:
            break
        curvature = _fisher(world, phi, log_policy) + 1e-12 * torch.eye(dimension, dtype=torch.float64)
        step = torch.linalg.solve(curvature, field)
        phi = phi - step * (1.0 / step.norm(dim=-1, keepdim=True).clamp_min(1.0))
    return Audit(phi, world.upper_value(phi, likelihood), field.norm(dim=-1), world.policy_of(phi))


def offline_fit(world: LinearWorld) -> Audit:
    """Maximum likelihood on infinitely many pairs of the pool: what an offline data set can teach."""
    law = world.pool
    return _newton(world, lambda phi: law)
