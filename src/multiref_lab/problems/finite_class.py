"""Finite classes of rewards that hold the truth."""

import torch
from torch import Tensor


def random_class(reward: Tensor, size: int, *, generator: torch.Generator) -> Tensor:
    """[*S, X, Y] → [*S, M, X, Y]: the truth first, then uniform draws.
    Fixed as n grows, such a class identifies the truth exponentially fast.
    """
    others = torch.rand(*reward.shape[:-2], size - 1, *reward.shape[-2:], generator=generator, dtype=torch.float64)
    return torch.cat((reward.unsqueeze(-3), others), -3)


def refined_class(reward: Tensor, size: int, distance: float, *, generator: torch.Generator) -> Tensor:
    """[*S, X, Y] → [*S, M, X, Y]: the truth first, then rewards at about `distance` from it, kept in [0, 1].

    With distance ∝ n^(−1/2) there is always something left to tell apart: the regime in which rates in n can be seen.
    """
    noise = torch.randn(*reward.shape[:-2], size - 1, *reward.shape[-2:], generator=generator, dtype=torch.float64)
    scale = torch.rand(*reward.shape[:-2], size - 1, 1, 1, generator=generator, dtype=torch.float64)
    others = (reward.unsqueeze(-3) + 2 * distance * scale * noise).clamp(0, 1)
    return torch.cat((reward.unsqueeze(-3), others), -3)
