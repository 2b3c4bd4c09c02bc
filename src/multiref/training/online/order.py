"""Which prompts a step takes: a permutation per epoch, from the seed alone, so that a resumed run and several processes take
the right ones."""

from __future__ import annotations

import torch

__all__ = ["prompts_of"]


def prompts_of(first: int, size: int, count: int, seed: int) -> list[int]:
    """Places first … first + size − 1 of an endless sequence of permutations of 0 … count − 1, one per epoch."""
    order: list[int] = []
    permutation: list[int] = []
    for place in range(first, first + size):
        epoch, at = divmod(place, count)
        if not permutation or at == 0:
            permutation = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
        order.append(permutation[at])
    return order
