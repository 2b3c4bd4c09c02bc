"""Samples of several policies as samples of their geometric mean, tilted by a reward where there is one."""

import math

import torch
from torch import Tensor

from multiref._logspace import check_weights
from multiref.errors import EmptyPoolError
from multiref.pools import power_mean
from multiref.weighting.particles import effective_size


def log_importance_weights(log_policies: Tensor, weights: Tensor, log_tilt: Tensor | None = None) -> Tensor:
    r"""[K, B, K·n], [K] or [K, B], [B, K·n] → [B, K·n]: log w of samples of prompt b, n from each of the K policies.

        w_i = ∏_k π_k(y_i)^{w_k} e^{tilt_i} / q(y_i),     q = (1/K) Σ_k π_k

    Their mean estimates Σ_y ∏_k π_k^{w_k} e^{tilt} without bias, so one set of samples serves every w and every tilt r/β.

    Reference: docs/theory.md 1(c) (DERIVED) for the target; balance heuristic, Veach and Guibas, 1995.
    """
    mixture = torch.logsumexp(log_policies, 0) - math.log(len(log_policies))
    log_w = power_mean(log_policies, check_weights(weights, len(log_policies)), 0.0) - mixture
    return log_w if log_tilt is None else log_w + log_tilt


def importance_weights(log_policies: Tensor, weights: Tensor, log_tilt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""As `log_importance_weights` → normalised weights u [B, K·n] and effective sample sizes [B], (Σ u)² / Σ u².

    Self-normalised: biased by O(1/n), consistent. At a vertex without a tilt it is that policy, with u ≤ K before
    normalisation. EmptyPoolError where no sample of a prompt has mass: some policy or the tilt forbids each.
    """
    log_w = log_importance_weights(log_policies, weights, log_tilt)
    if bool((empty := (log_w == -math.inf).all(-1)).any()):
        raise EmptyPoolError(
            f"prompt {int(empty.int().argmax()) + 1}: no sample has mass, some policy or the tilt forbids each."
        )
    return log_w.softmax(-1), effective_size(log_w)
