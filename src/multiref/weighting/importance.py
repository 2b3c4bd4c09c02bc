"""Samples of several policies as samples of their geometric mean."""

import torch
from torch import Tensor


def importance_weights(log_policies: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""[K, B, K·n], [K] → normalised weights [B, K·n] and effective sample sizes [B].

    Samples of prompt b: n from each of the K policies, so their law is the mixture q = (1/K) Σ_k π_k.
    The target is the geometric mean:

        u_i ∝ Π_k π_k(y_i)^{w_k} / q(y_i),     ESS = (Σ u)² / Σ u²

    Self-normalised: biased by O(1/n), consistent. At a vertex it is that policy, with u ≤ K before normalisation.

    Reference: docs/theory.md 1(c) (DERIVED) for the target; balance heuristic, Veach and Guibas, 1995.
    """
    mixture = torch.logsumexp(log_policies, 0) - torch.tensor(float(len(log_policies))).log()
    log_u = (weights[:, None, None] * log_policies).sum(0) - mixture
    u = (log_u - log_u.logsumexp(-1, keepdim=True)).exp()
    return u, 1 / u.square().sum(-1)
