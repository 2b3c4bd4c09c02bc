"""Small bilevel problems for tests."""

import torch
from torch import Tensor

import multiref as mr
from multiref.bilevel import Problem, preference_table

FAMILY = (
    mr.ReverseKL((0.6, 0.4)),
    mr.ForwardKL((0.6, 0.4)),
    mr.AlphaDivergence((0.6, 0.4), alpha=2.0),
    mr.AlphaDivergence((0.6, 0.4), alpha=0.5),
    mr.PooledKL((0.6, 0.4), order=-1),
)


def small(
    regularizer=FAMILY[0], *, beta: float = 0.9, seed: int = 0, prompts: int = 2, completions: int = 4
) -> tuple[Problem, Tensor]:
    """A problem and a reward table that is not the true one."""
    generator = torch.Generator().manual_seed(seed)
    ref = torch.randn(2, prompts, completions, generator=generator, dtype=torch.float64).log_softmax(-1)
    true, guess = torch.randn(2, prompts, completions, generator=generator, dtype=torch.float64)
    return Problem(preference_table(true), ref, regularizer, beta), guess
