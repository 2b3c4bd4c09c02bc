"""Weighted particles in islands: log-weights [I, n], one island a row. Islands never mix, so their sums stay independent."""

import math

import torch
from torch import Tensor

from multiref._logspace import NEG_INF


def effective_size(log_weights: Tensor) -> Tensor:
    r"""[*E, n] → [*E]: ESS = (Σ w)² / Σ w²; 0 where nothing has mass."""
    w = (log_weights - log_weights.amax(-1, keepdim=True)).exp().nan_to_num()  # of −∞ alone: nothing
    return w.sum(-1).square() / w.square().sum(-1).clamp_min(1e-30)


def resample(log_weights: Tensor, low: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    r"""[I, n], [I] → (parents [I, n], log-weights [I, n]): systematic resampling of the islands where `low` is true.

    One uniform number an island places n equally spaced points on the cumulated weights. Each offspring then weighs the mean,
    so every particle's expected mass, and the island's sum, stay what they were. An island without mass is left alone.
    """
    islands, n = log_weights.shape
    total = log_weights.logsumexp(-1, keepdim=True)
    low = low[:, None] & (total > NEG_INF)
    places = torch.arange(n, device=log_weights.device)
    shift = torch.rand(islands, 1, generator=generator, dtype=log_weights.dtype, device=log_weights.device)
    edges = log_weights.softmax(-1).nan_to_num().cumsum(-1)
    edges = edges / edges[:, -1:].clamp_min(1e-300)  # the last one is 1 exactly, whatever was rounded
    parents = torch.searchsorted(edges, (places + shift) / n).clamp_max(n - 1)
    parents = torch.where(low, parents, places.expand(islands, n))
    return parents, torch.where(low, total - math.log(n), log_weights)


def thin(log_weights: Tensor, keep: int, generator: torch.Generator) -> Tensor:
    r"""[I, m] → [I, m]: at most `keep` entries of each island keep mass; each entry's expected mass is what it was.

        w' = w where w > c,   c with probability w/c and 0 else where w ≤ c,       Σ_i min(1, w_i/c) = keep

    The light ones are drawn systematically, so the island's sum stays what it was but for rounding.

    Reference: Fearnhead and Clifford, 2003 (optimal resampling).
    """
    w = (log_weights - log_weights.amax(-1, keepdim=True)).exp().nan_to_num()
    ordered = w.sort(-1).values
    below = ordered.cumsum(-1)  # Σ of the i + 1 lightest
    m = w.shape[-1]
    heavy = m - 1 - torch.arange(m, device=w.device)  # entries above the i-th
    # c is such that the light ones, Σ_light / c of them, and the heavy ones together are `keep`
    fits = (heavy < keep) & (below >= (keep - heavy) * ordered)
    last = torch.where(fits, torch.arange(m, device=w.device), -1).amax(-1, keepdim=True)
    c = below.gather(-1, last.clamp_min(0)) / (keep - heavy.gather(0, last.clamp_min(0).flatten())[:, None])
    c = torch.where((last >= 0) & ((w > 0).sum(-1, keepdim=True) > keep), c, 0.0)  # 0: few enough as they are
    share = torch.where(w <= c, w / c.clamp_min(1e-300), 0.0)
    shift = torch.rand(len(w), 1, generator=generator, dtype=w.dtype, device=w.device)
    steps = (share.cumsum(-1) + shift).floor()
    drawn = steps.diff(dim=-1, prepend=shift.floor()) > 0
    light = c.log() + log_weights.amax(-1, keepdim=True)
    return torch.where(w > c, log_weights, torch.where(drawn & (share > 0), light, NEG_INF))
