"""The optimum under an f-divergence that has no pool: two nested monotone roots, each found for all completions at once.

With c = (r_max − λ)/β and gaps g_y = (r_max − r_y)/β ≥ 0, the inner root s_y(c) = log π(y) solves

    h_y(s) = Σ_k w_k f'(e^s/π_k(y)) = c − g_y,      f'(∞) standing for references without mass,

and the outer one Σ_y e^{s_y(c)} = 1. Both sides rise, so that every root is bracketed. Where h_y(−∞) ≥ c − g_y the policy
truncates; where no reference has mass and f'(∞) is finite, c stops at f'(∞) + g_y and what mass is left sits there.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from multiref._logspace import NEG_INF, check_weights, expand_weights
from multiref.errors import MultirefWarning
from multiref.exact._problem import check_mass
from multiref.regularizers import FDivergence

_STEPS, _DEEP = 100, 600.0  # e^−600 of the least reference counts as no mass
_ROUNDED = 1e-9  # how far from one the mass may be before it is said


def solve_nested(reward: Tensor, ref_logps: Tensor, regularizer: FDivergence, beta: float) -> tuple[Tensor, Tensor]:
    """[*B, Y], [K, *B, Y] → log π* [*B, Y] and λ [*B], float64; differentiable once in reward, references and weights.

    As accurate as f' is where the policy ends: an f' that has rounded to its limit there has no more digits to give.
    """
    reward, refs = reward.double(), ref_logps.double().expand(ref_logps.shape[0], *reward.shape)
    w = expand_weights(check_weights(regularizer.weights, len(refs)), refs).double()
    no_mass = (w > 0) & (refs == NEG_INF)
    veto = no_mass.any(0) if regularizer.at_infinity == float("inf") else torch.zeros_like(reward, dtype=torch.bool)
    check_mass(torch.where(veto, NEG_INF, 0.0), reward, regularizer.name)
    allowed = (reward > NEG_INF) & ~veto
    outside = allowed & ~((w > 0) & (refs > NEG_INF)).any(0)
    inside = allowed & ~outside
    best = torch.where(allowed, reward, NEG_INF).amax(-1, keepdim=True).detach()
    gap = torch.where(allowed, (best - reward) / beta, 0.0)

    def height(log_policy: Tensor) -> Tensor:
        """h_y(s), zero where the completion is out of play."""
        ratio = torch.where(refs == NEG_INF, torch.inf, log_policy - torch.where(refs == NEG_INF, 0.0, refs))
        each = torch.where(w > 0, w * regularizer.slope(torch.where(inside, ratio, 0.0)), 0.0).sum(0)
        return torch.where(inside, each, 0.0)

    with torch.no_grad():
        log_policy, c = _roots(height, gap, refs, inside)
        edge = torch.where(outside, regularizer.at_infinity + gap, torch.inf).amin(-1)
        corner = c > edge
        c = torch.where(corner, edge, c)
        log_policy = torch.where(corner[..., None], _inner(height, gap, refs, inside, edge.nan_to_num(posinf=0.0)), log_policy)
    log_policy = _attached(log_policy, height, gap, outside, corner)
    log_policy = _leftover(log_policy, outside & (gap == torch.where(outside, gap, torch.inf).amin(-1, keepdim=True)), corner)
    log_mass = torch.logsumexp(log_policy, -1, keepdim=True)
    off = log_mass.detach().abs()
    if bool((off > _ROUNDED).any()):
        warnings.warn(
            f"{regularizer.name}: f_prime has rounded to its limit where {int((off > _ROUNDED).sum())} of {off.numel()} optima "
            f"put their mass; they are off by up to {float(off.max()):.2g} (relative). Take references with less extreme "
            "probabilities, a larger beta, or a member of the α-family, which has the digits.",
            MultirefWarning,
            stacklevel=3,
        )
    return log_policy - log_mass, best[..., 0] - beta * c


def _roots(height: Callable[[Tensor], Tensor], gap: Tensor, refs: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """log π and c of the problem without a corner; c = +inf where no completion is inside.

    No completion has more mass than one, and not all have less than an even share: c lies between.
    """
    share = -inside.sum(-1, keepdim=True).clamp_min(1).double().log()
    most = torch.where(inside, height(torch.zeros_like(gap)) + gap, torch.inf).amin(-1)
    least = torch.where(inside, height(share.expand_as(gap)) + gap, torch.inf).amin(-1)
    empty = ~inside.any(-1)
    most, least = (torch.where(empty, 0.0, each) for each in (most, least))

    def log_mass(c: Tensor) -> Tensor:
        """[*B]: log Σ_y π(y) at this c, which is to be 0."""
        return torch.where(empty, 0.0, torch.logsumexp(_inner(height, gap, refs, inside, c), -1))

    c = find_bracketed(log_mass, least, most)
    return _inner(height, gap, refs, inside, c), torch.where(empty, torch.inf, c)


def _inner(height: Callable[[Tensor], Tensor], gap: Tensor, refs: Tensor, inside: Tensor, c: Tensor) -> Tensor:
    """[*B] → [*B, Y]: log π at this c; −inf outside and where the policy truncates."""
    target = torch.where(inside, c[..., None] - gap, 0.0)
    lowest = torch.where(refs == NEG_INF, 0.0, refs).amin(0) - _DEEP
    found = find_bracketed(lambda s: height(s) - target, lowest, torch.zeros_like(gap))
    return torch.where(inside & (height(lowest) < target), found, NEG_INF)


def find_bracketed(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """[*E] twice → where a rising function, infinite or not, crosses zero, entry by entry (Chandrupatla's method);
    an end where it does not."""
    eps = torch.finfo(torch.float64).eps
    a, b = low, high
    fa, fb = function(a), function(b)
    ends = torch.where(fa >= 0, low, torch.where(fb <= 0, high, torch.nan))
    c, fc, t = a, fa, torch.full_like(a, 0.5)
    for _ in range(_STEPS):
        x = a + t * (b - a)
        fx = function(x)
        same = torch.sign(fx) == torch.sign(fa)
        c, fc = torch.where(same, a, b), torch.where(same, fa, fb)
        b, fb = torch.where(same, b, a), torch.where(same, fb, fa)
        a, fa = x, fx
        near = torch.where(fa.abs() < fb.abs(), a, b)
        least = (eps * near.abs() + 1e-300) / (b - a).abs().clamp_min(1e-300)
        if bool(((least > 0.5) | (fa == 0) | ~ends.isnan()).all()):
            break
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        curved = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        inverse = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        t = torch.where(curved & inverse.isfinite(), inverse, 0.5)
        t = torch.minimum(torch.maximum(t, least), 1 - least).where(least < 0.5, torch.full_like(t, 0.5))
        t = torch.where(fa == 0, 0.0, t)
    return torch.where(ends.isnan(), torch.where(fa.abs() < fb.abs(), a, b), ends)


def _attached(log_policy: Tensor, height: Callable[[Tensor], Tensor], gap: Tensor, outside: Tensor, corner: Tensor) -> Tensor:
    """The roots with their derivatives, by the implicit function theorem: ds = (dc − dg − dh)/h', Σ π ds = 0
    (at a corner dc is the derivative of the best gap outside)."""
    alive = log_policy > NEG_INF
    at = torch.where(alive, log_policy, 0.0).detach()
    residual = -gap - height(at)  # c is constant here
    if not (torch.is_grad_enabled() and residual.requires_grad):
        return log_policy
    with torch.enable_grad():
        moved = at.clone().requires_grad_()
        (steep,) = torch.autograd.grad(height(moved).sum(), moved)
    pull = torch.where(alive, log_policy.exp() / steep, 0.0).detach()
    mean = (pull * torch.where(alive, residual, 0.0)).sum(-1, keepdim=True) / pull.sum(-1, keepdim=True).clamp_min(1e-300)
    edge = -torch.where(outside, gap, torch.inf).amin(-1, keepdim=True).nan_to_num(posinf=0.0)
    step = (residual - torch.where(corner[..., None], edge, mean)) / torch.where(alive, steep, 1.0).detach()
    return torch.where(alive, log_policy + torch.where(alive, step - step.detach(), 0.0), NEG_INF)


def _leftover(log_policy: Tensor, ties: Tensor, corner: Tensor) -> Tensor:
    """At a corner what mass is left, on the best completions outside, evenly."""
    if not bool(corner.any()):
        return log_policy
    left = 1 - torch.logsumexp(log_policy, -1, keepdim=True).exp()
    share = left.clamp_min(torch.finfo(torch.float64).tiny).log() - ties.sum(-1, keepdim=True).clamp_min(1).double().log()
    return torch.where(ties & corner[..., None], share, log_policy)
