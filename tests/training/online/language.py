"""The enumerable language model of the design page: 4 tokens, length 4, two references 2·N(0, 1), rewards U(0, 1), seed 0,
β = ½."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.regularizers import Regularizer
from multiref.training.online import Penalty, levels_of, sequence_logps


@dataclass(frozen=True)
class World:
    refs: list[Tensor]
    reward: Tensor
    beta: float = 0.5


def design_world() -> World:
    """The numbers of shared/prototypes/online_fixed_points.py."""
    generator = torch.Generator().manual_seed(0)
    tables = [2.0 * torch.randn(85, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    reward = torch.rand(256, generator=generator, dtype=torch.float64)
    return World([torch.stack(level) for level in zip(*(levels_of(table, 4) for table in tables))], reward)


def small_world(seed: int = 1) -> World:
    """3 tokens, length 3, K = 3: for sampling."""
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(13, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    return World(
        [torch.stack(level) for level in zip(*(levels_of(table, 3) for table in tables))],
        torch.rand(27, generator=generator, dtype=torch.float64),
    )


def standardised_fixed_point(
    penalty: Penalty, reward: Tensor, ref_levels: list[Tensor], regularizer: Regularizer, *, beta: float, steps: int = 400
) -> tuple[list[Tensor], float] | None:
    r"""Where a rule with the penalty as loss settles if advantages are divided by their standard deviation:
    (levels, σ), or None if nowhere inside.

        π = fixed point of the rule at strength β σ,      σ = standard deviation of r under π

    The largest σ that solves it, found by iterating downwards from the largest that the reward allows:
    σ ↦ sd_r(π_{βσ}) grows with σ in all that we have seen. None: σ falls to zero,
    that is the rule has no interior fixed point and collapses onto the best completion:
    with small β dividing by the deviation makes the penalty vanish just as the policy becomes certain.

    Reference: DERIVED, docs/theory.md 6.
    """
    sigma = float(reward.max() - reward.min()) / 2
    for _ in range(steps):
        if beta * sigma < 1e-6:
            return None
        levels = penalty.fixed_point(reward, ref_levels, regularizer, beta=beta * sigma)
        p = sequence_logps(levels).exp()
        before, sigma = sigma, float(((p * reward**2).sum() - (p * reward).sum() ** 2).clamp_min(0).sqrt())
        if abs(before - sigma) < 1e-15:
            break
    return levels, sigma
