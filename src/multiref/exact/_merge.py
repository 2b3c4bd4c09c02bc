"""The merge identity: the reverse-KL optimum for any weights from the K single-reference optima."""

import torch
from torch import Tensor

from multiref._logspace import Weights
from multiref.exact._problem import check_mass
from multiref.pools import power_pool


def merge(log_policies: Tensor, weights: Weights = None) -> Tensor:
    r"""[K, *B, Y] → [*B, Y]: log π*_w from log π*_k ∝ π_k e^{r/β}, the optima under each reference alone (same r, same β).

        π*_w ∝ Π_k (π*_k)^{w_k}

    Holds for reverse KL and whole completions only: merging per token optimises another objective (docs/theory.md 5).

    Raises:
        EmptyPoolError: rows in which no completion has mass under every weighted policy.

    Reference: DERIVED (docs/theory.md 1 c).
    """
    pooled = power_pool(log_policies, weights, order=0.0)
    check_mass(pooled, torch.zeros_like(pooled), "merge")
    return pooled.log_softmax(-1)
