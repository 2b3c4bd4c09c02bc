"""The enumerable language model of the design page: 4 tokens, length 4, two references 2·N(0, 1), rewards U(0, 1), seed 0,
β = ½."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.training.online.backward_induction import levels_of


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
