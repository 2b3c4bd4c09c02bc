"""Reward models on completions that can be enumerated: linear in given features, or one number for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LinearReward", "TableReward", "completion_index"]


def completion_index(completions: Tensor, vocabulary: int) -> Tensor:
    """[*E, L] token ids → [*E]: the completion's place in lexicographic order."""
    index = torch.zeros_like(completions[..., 0])
    for token in completions.unbind(-1):
        index = vocabulary * index + token
    return index


class LinearReward(nn.Module):
    """r_φ(x, y) = ⟨φ, f(x, y)⟩, φ [S, d], from features [X, Y, d] of completions in lexicographic order; φ = 0 at first."""

    def __init__(self, features: Tensor, vocabulary: int, seeds: int):
        super().__init__()
        self.vocabulary = vocabulary
        self.register_buffer("table", features)
        self.phi = nn.Parameter(torch.zeros(seeds, features.shape[-1], dtype=features.dtype))

    def features(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [S, B, n, L] → [S, B, n, d]."""
        table: Tensor = self.table  # type: ignore[assignment]
        return table[prompts[None, :, None], completion_index(completions, self.vocabulary)]

    def forward(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [S, B, n, L] → [S, B, n]."""
        return torch.einsum("sbnd,sd->sbn", self.features(prompts, completions), self.phi)


class TableReward(nn.Module):
    """One number per prompt and completion, [S, X, Y]; zero at first."""

    def __init__(self, prompts: int, vocabulary: int, length: int, seeds: int):
        super().__init__()
        self.vocabulary = vocabulary
        self.table = nn.Parameter(torch.zeros(seeds, prompts, vocabulary**length))

    def forward(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [S, B, n, L] → [S, B, n]."""
        seeds = torch.arange(len(self.table))[:, None, None]
        return self.table[seeds, prompts[None, :, None], completion_index(completions, self.vocabulary)]
