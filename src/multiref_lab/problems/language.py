"""Language models small enough to enumerate: every completion of fixed length over a small vocabulary,
one row of logits per prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Language", "random_language"]


@dataclass(frozen=True)
class Language:
    """The completions of length L over V tokens, as a tree of prefixes.

    Level t has V^t prefixes, in lexicographic order; prefix i of level t followed by token v is prefix i V + v of level t + 1,
    so that backward recursions are reshapes. Models are lists of L tensors, level t holding [*S, V^t, V] log-probabilities.
    """

    vocabulary: int
    length: int

    @property
    def completions(self) -> int:
        """V^L."""
        return int(self.vocabulary**self.length)

    def logps(self, levels: list[Tensor]) -> Tensor:
        """[*S, V^t, V] per level → [*S, V^L]: log-probabilities of whole completions."""
        total = levels[0].flatten(-2)
        for level in levels[1:]:
            total = (total.unsqueeze(-1) + level).flatten(-2)
        return total

    def accumulate(self, levels: list[Tensor]) -> Tensor:
        """[*S, V^t] per level → [*S, V^L]: the sum of a per-prefix number along each completion."""
        return self.logps([level.unsqueeze(-1).expand(*level.shape, self.vocabulary) for level in levels])


def random_language(
    vocabulary: int, length: int, *seeds: int, generator: torch.Generator, spread: float = 1.0
) -> tuple[Language, list[Tensor]]:
    """The tree and one random model on it, logits spread · N(0, 1) at every prefix; `seeds` are leading axes."""
    levels = [
        (spread * torch.randn(*seeds, vocabulary**t, vocabulary, generator=generator, dtype=torch.float64)).log_softmax(-1)
        for t in range(length)
    ]
    return Language(vocabulary, length), levels
