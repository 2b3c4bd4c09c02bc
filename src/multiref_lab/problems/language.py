"""Language models small enough to enumerate: one row of logits for each prefix of completions of fixed length.

A model is a list of levels, level t holding [*S, V^t, V] log-probabilities of the next token;
`multiref.training.online.sequence_logps` makes [*S, V^L] log-probabilities of whole completions of them.
"""

import torch
from torch import Tensor

from multiref.training.online import sequence_logps
from multiref_lab.problems.bandits import random_logps


def accumulate(numbers: list[Tensor], vocabulary: int) -> Tensor:
    """[*S, V^t] per level → [*S, V^L]: the sum of a per-prefix number along each completion."""
    return sequence_logps([level.unsqueeze(-1).expand(*level.shape, vocabulary) for level in numbers])


def random_language(vocabulary: int, length: int, *seeds: int, generator: torch.Generator, spread: float = 1.0) -> list[Tensor]:
    """One random model, logits spread · N(0, 1) at every prefix; `seeds` are leading axes."""
    shapes = [(*seeds, vocabulary**t, vocabulary) for t in range(length)]
    return [random_logps(*shape, generator=generator, spread=spread) for shape in shapes]
