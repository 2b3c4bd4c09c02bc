"""Weighting strategies of the literature: functions of the margins alone."""

import torch
from torch import Tensor

from multiref.errors import ArgumentError


def uniform(margins: Tensor) -> Tensor:
    """[K, P] → [K]: w_k = 1/K."""
    margins = check_margins(margins)
    return margins.new_full((len(margins),), 1 / len(margins))


def vdw(margins: Tensor) -> Tensor:
    """[K, P] → [K]: validation-discrepancy weights, w_k ∝ Σ_j |m_kj|.

    The sign is ignored, so a reference whose margins are large because it is broken gets the largest weight.

    Reference: arXiv 2512.10040 (VDW), with the margins per token; pass them divided by length to have that.
    """
    margins = check_margins(margins)
    return _shares(margins.abs().sum(-1))


def vaw(margins: Tensor) -> Tensor:
    """[K, P] → [K]: validation-accuracy weights, w_k ∝ Σ_j 1[m_kj > 0]. Uniform if no reference is ever right.

    Reference: arXiv 2512.10040 (VAW).
    """
    margins = check_margins(margins)
    return _shares((margins > 0).to(margins.dtype).sum(-1))


def arwc(margins: Tensor) -> Tensor:
    """[K, P] → [K, P]: adaptive weights per example, w_kj = |m_kj| / Σ_i |m_ij|; uniform where all margins are zero.

    The sign is ignored: a reference that confidently prefers the rejected completion gets a large weight.
    Given MRPO's margins, its released code multiplies these weights by the *other* reference's term;
    here weight k belongs to reference k.

    Reference: arXiv 2405.16388 (ARWC), for any K.
    """
    margins = check_margins(margins)
    return _shares(margins.abs())


def _shares(parts: Tensor) -> Tensor:
    """[K, …] ≥ 0 → divided by the sum over K; uniform where the sum is zero."""
    return (parts / parts.sum(0)).nan_to_num(1 / len(parts))  # 0/0


def check_margins(margins: Tensor) -> Tensor:
    """The margins, float64 where they were whole numbers or of few bits. Raise unless they are [K, P], finite, with at least
    one reference."""
    if margins.ndim != 2 or not len(margins):
        raise ArgumentError(f"margins has shape {tuple(margins.shape)}; expected [K, P], at least one reference.")
    if count := int((~torch.isfinite(margins)).sum()):
        found = f"{count} of {margins.numel()} margins are not finite"
        raise ArgumentError(f"{found}; expected differences of finite log-probabilities. Leave those pairs out.")
    return margins if margins.dtype == torch.float32 else margins.double()
