"""Logistic regression on many almost equal data sets: one design matrix a seed, one vector of weights a run,
and what influence functions say of it."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from multiref_lab.estimators import damped_newton

_STEPS = 80
_TOLERANCE = 1e-13
_CHUNK = 1 << 22  # doubles of one product held at once


def fit(delta: Tensor, weight: Tensor, *, offset: Tensor | None = None, ridge: float) -> Tensor:
    r"""[S, N, d], [S, M, N] → [S, M, d]: argmin_θ Σ_i w_i log(1 + e^{−m_i}) + (ridge/2) ‖θ‖²,   m_i = ⟨θ, Δ_i⟩ + o_i.

    Δ_i = φ(preferred) − φ(other). Run 0 is fitted from zero, the others from there: they differ by a pair.

    Args:
        offset: [S, N], what the margin has beside the class; None: nothing.
        ridge: above zero, so that separable data have a minimum.
    """
    per_seed = weight.shape[1] * delta.shape[1] * delta.shape[2]
    rows = max(1, _CHUNK // per_seed)
    offset = delta.new_zeros(delta.shape[:2]) if offset is None else offset
    found = []
    for d, w, o in zip(delta.split(rows), weight.split(rows), offset.split(rows), strict=True):
        first = _newton(d, w[:, :1], o, ridge, d.new_zeros(len(d), 1, d.shape[-1]))
        found.append(_newton(d, w, o, ridge, first.expand(-1, w.shape[1], -1).clone()))
    return torch.cat(found)


def _newton(delta: Tensor, weight: Tensor, offset: Tensor, ridge: float, start: Tensor) -> Tensor:
    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        margin = theta @ delta.mT + offset.unsqueeze(1)
        return (weight * softplus(-margin)).sum(-1) + 0.5 * ridge * theta.square().sum(-1), margin

    def derivatives(theta: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
        return _derivatives(delta, weight, margin, theta, ridge)

    return damped_newton(objective, derivatives, start, steps=_STEPS, tolerance=_TOLERANCE, rounding=1e-14)[0]


def _derivatives(delta: Tensor, weight: Tensor, margin: Tensor, theta: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Gradient [S, M, d] and Hessian [S, M, d, d]."""
    p = torch.sigmoid(-margin)
    gradient = ridge * theta - (weight * p) @ delta
    curved = delta.unsqueeze(1) * (weight * p * (1 - p)).unsqueeze(-1)
    eye = torch.eye(delta.shape[-1], dtype=delta.dtype)
    return gradient, delta.mT.unsqueeze(1) @ curved + ridge * eye


def influence(
    delta: Tensor, weight: Tensor, theta: Tensor, left_out: Tensor, *, offset: Tensor | None = None, ridge: float
) -> tuple[Tensor, Tensor]:
    r"""What leaving pair i out would do to θ, from the full fit alone: [S, N, d], [S, N], [S, d], [S, L] → ([S, L, d], [S, L]).

        θ_{−i} − θ ≈ H⁻¹ ∇ℓ_i,     ∇ℓ_i = −σ(−m_i) Δ_i,     leverage h_i = σ'(m_i) Δ_iᵀ H⁻¹ Δ_i

    Divided by 1 − h_i it is one Newton step on the data without i (exact to first order there):
    plain influence is too small by that factor.

    Source: Koh and Liang, 2017, for H⁻¹∇ℓ; the leverage is the classical one of weighted least squares (DERIVED here from
    Sherman–Morrison).
    """
    offset = delta.new_zeros(delta.shape[:2]) if offset is None else offset
    margin = (delta * theta.unsqueeze(1)).sum(-1) + offset
    _, hessian = _derivatives(delta, weight.unsqueeze(1), margin.unsqueeze(1), theta.unsqueeze(1), ridge)
    rows = delta.gather(1, left_out.unsqueeze(-1).expand(-1, -1, delta.shape[-1]))
    at = margin.gather(1, left_out)
    solved = torch.linalg.solve(hessian[:, 0], rows.mT).mT
    p = torch.sigmoid(-at)
    return -p.unsqueeze(-1) * solved, p * (1 - p) * (rows * solved).sum(-1)


def agreement(predicted: Tensor, true: Tensor, prefix: str = "") -> dict[str, list[float]]:
    """[S, …], [S, …] → predicted against true changes, one number a seed, everything but the seeds pooled.

    correlation: of predicted and true. slope: of true on predicted through zero (1: right size).
    error: ‖true − predicted‖ / ‖true‖.
    """
    p, t = predicted.flatten(1).double(), true.flatten(1).double()
    norm = (p.square().sum(-1) * t.square().sum(-1)).sqrt()
    product = (p * t).sum(-1)
    centred_p, centred_t = p - p.mean(-1, keepdim=True), t - t.mean(-1, keepdim=True)
    spread = (centred_p.square().sum(-1) * centred_t.square().sum(-1)).sqrt()
    found = {
        "correlation": torch.where(spread > 0, (centred_p * centred_t).sum(-1) / spread, torch.nan),
        "slope": torch.where(norm > 0, product / p.square().sum(-1), torch.nan),
        "error": (t - p).norm(dim=-1) / t.norm(dim=-1),
    }
    return {f"{prefix}{name}": values.tolist() for name, values in found.items()}
