"""Pools: K references collapsed into one, exactly. The order of the power mean decides which divergence it serves (design:
ρ = 1 − α)."""

import math

import torch
from torch import Tensor

from multiref._logspace import NEG_INF, Weights, align, check_logps, check_weights, expand_weights, weighted_sum
from multiref.errors import ArgumentError

__all__ = ["power_pool"]

LARGEST = 600.0  # at most: what a float64 can be the exponential of
NEAR_GEOMETRIC = 0.05  # below this |order| the plain formula loses more than a digit: eps / order


def power_pool(ref_logps: Tensor, weights: Weights = None, order: float = 0.0) -> Tensor:
    r"""[K, *E] → [*E]: the weighted power mean of the references, as an unnormalised log-mass.

        log P_ρ = (1/ρ) log Σ_k w_k π_k^ρ,      ρ → 0:  Σ_k w_k log π_k

    ρ = 0 is the geometric pool (the generalised escort before normalisation), 1 the arithmetic mixture, −1 the harmonic one
    (MRPO). P_ρ grows with ρ. A completion of probability zero under a weighted reference is vetoed for ρ ≤ 0 and is not for ρ >
    0; a reference of weight zero is absent.

    Args:
        ref_logps: log-probabilities (nats), −inf where a reference has no mass. Any number of references, any example shape.
        weights: [K] or [K, *E] on the simplex; None is uniform.
        order: ρ, any real number; accurate to a few units in the last place as ρ → 0.

    Raises:
        ArgumentError: NaN or log-probabilities above zero, a non-finite order.
        WeightsError: weights off the simplex or of another length.

    Reference: arXiv 2502.01203, Definition 3.1 (ρ = 0, FOUND); the power mean for every α-divergence is DERIVED.

    >>> power_pool(torch.tensor([[0.2], [0.8]]).log(), [0.5, 0.5]).exp()
    tensor([0.4000])
    """
    if not order == order or order in (float("inf"), NEG_INF):
        raise ArgumentError(f"order: expected a finite number, found {order}.")
    ref_logps = align(check_logps(ref_logps, "ref_logps"), 0)
    return power_mean(ref_logps, check_weights(weights, ref_logps.shape[0]), order)


def power_mean(ref_logps: Tensor, weights: Tensor, order: float, full: bool | None = None) -> Tensor:
    """`power_pool` of arguments that were checked. full: whether no weight is zero; where it is given no number is looked at,
    for to look waits for an accelerator."""
    w = expand_weights(weights, ref_logps)
    ref_logps = ref_logps.to(w.dtype)  # at least float32
    if order == 0:
        return weighted_sum(ref_logps, w, full)
    if abs(order) >= NEAR_GEOMETRIC:
        looks = full is None and not (torch.is_grad_enabled() and (ref_logps.requires_grad or w.requires_grad))
        plain = looks and ref_logps.numel() > 0 and bool((w > 0).all()) and bool(ref_logps.amin() > NEG_INF)
        return _full_power_mean(ref_logps, w, order) if plain else _power_mean(ref_logps, w, order)
    return _power_mean_near_geometric(ref_logps, w, order, full)


def _full_power_mean(logps: Tensor, w: Tensor, order: float) -> Tensor:
    """The plain formula where every reference counts and gives every completion some mass: in place, for speed;
    without a graph."""
    top = logps.amax(0) if order > 0 else logps.amin(0)
    total, buffer = torch.zeros_like(top), torch.empty_like(top)
    for logp, weight in zip(logps, w, strict=True):
        total.addcmul_(torch.sub(logp, top, out=buffer).mul_(order).exp_(), weight)
    return total.log_().div_(order).add_(top)


def _power_mean(logps: Tensor, w: Tensor, order: float) -> Tensor:
    """The plain formula. Zero mass is taken out before the exponent so that no inf − inf can arise,
    and put back as the rule for ρ demands."""
    no_mass = logps == NEG_INF
    present = w > 0
    alive = (present & ~no_mass).any(0) if order > 0 else ~(present & no_mass).any(0)
    exponent = order * torch.where(no_mass, 0.0, logps)
    top = torch.where(present & ~no_mass, exponent, NEG_INF).detach().amax(0)
    top = torch.where(alive, top, 0.0)
    powers = torch.where(no_mass, 0.0, torch.exp((exponent - top).clamp_max(_largest(exponent))))
    total = torch.where(alive, (w * powers).sum(0), 1.0)
    return torch.where(alive, (top + total.log()) / order, NEG_INF)


def _power_mean_near_geometric(logps: Tensor, w: Tensor, order: float, full: bool | None) -> Tensor:
    """Around the geometric mean, where the first order cancels: log P_ρ = m + log1p(Σ_k w_k expm1(ρ (log π_k − m))) / ρ."""
    mean = weighted_sum(logps, w, full)
    centre = torch.where(mean > NEG_INF, mean, 0.0)
    spread = torch.where((logps > NEG_INF) & (mean > NEG_INF), logps, centre) - centre
    bent = order * spread
    close = (mean > NEG_INF) & ((bent.detach().abs() <= 1) | (w == 0)).all(0)
    bent = torch.where(close, bent, 0.0).clamp_max(_largest(bent))
    series = centre + torch.log1p((w * torch.expm1(bent)).sum(0)) / order
    return torch.where(close, series, _power_mean(logps, w, order))


def _largest(like: Tensor) -> float:
    """An exponent that is finite in these numbers: an absent reference may lie further above the others than any float; its
    weight is zero, and stays so."""
    return min(LARGEST, 0.9 * math.log(torch.finfo(like.dtype).max))
