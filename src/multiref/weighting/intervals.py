"""Certified bounds of means, by betting: no normal approximation, no estimate of a variance."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from multiref.errors import ArgumentError

# what is staked, each with an equal part of the capital: small stakes for wide samples, large ones for few and narrow ones
BETS = torch.cat([torch.logspace(-3, -0.3, 17), torch.linspace(0.6, 0.999, 7)]).double()
STEP = 0.01  # of the grid over the logarithm of a mean; what it can hide is added to every bound


def log_mean_bounds(log_samples: Tensor, log_most: float | None, *, delta: float) -> tuple[float, float]:
    r"""[P, I] → (lower, upper) of (1/P) Σ_x log E X_x, each with confidence 1 − δ; X ≥ 0, all independent.

        φ_x(z) = log mean_c ∏_i (1 + c (X_xi/z − 1)):   E e^{φ_x(E X_x)} ≤ 1,  so  P(Σ_x φ_x(E X_x) ≥ log 1/δ) ≤ δ

    The lower bound is the least Σ_x log z_x with Σ_x φ_x(z_x) ≤ log 1/δ, by weak duality (Markov over all prompts together, so
    that δ costs log(1/δ)/P a prompt); it needs X ≥ 0 alone. The upper one is the same for e^{log_most} − X, +∞ without
    `log_most`.

    Raises:
        ArgumentError: another shape, δ outside (0, 1), NaN or +∞, a sample above e^{log_most}.

    Reference: Waudby-Smith and Ramdas, 2024 (hedged betting), with a mixture of constant bets; over prompts DERIVED.
    """
    if log_samples.ndim != 2 or not log_samples.numel() or not 0 < delta < 1:
        raise ArgumentError(f"log_mean_bounds: expected [P, I] and δ in (0, 1), found {tuple(log_samples.shape)} and {delta}.")
    samples = log_samples.double()
    if not float(samples.max()) < math.inf or (log_most is not None and not math.isfinite(log_most)):
        raise ArgumentError("log_mean_bounds: expected logs of finite samples and of their largest, found NaN or +∞.")
    if log_most is not None and float(samples.max()) > log_most + 1e-6:
        raise ArgumentError(
            f"log_mean_bounds: a sample of {float(samples.max()):.4g} is above {log_most:.4g} (logs). "
            "Expected a bound of every sample: give a larger log_most."
        )
    lower, upper = 0.0, math.inf
    centre = samples.logsumexp(-1) - math.log(samples.shape[1])  # [P]
    if bool((centre == -math.inf).any()):
        lower = -math.inf
    else:
        shift = samples - centre[:, None]  # u: log z around the sample mean
        falls = [partial(_below, row) for row in shift]
        lower = _least(falls, -math.log(1 / delta) - 6.0, 1.0, math.log(1 / delta)) + float(centre.mean())
    if log_most is not None:
        far = float(log_most - centre[centre > -math.inf].min()) if bool((centre > -math.inf).any()) else 60.0
        shares = (samples - log_most).exp().clamp_max(1.0)  # X / most;  u: log_most − log z
        falls = [partial(_above, row) for row in shares]
        upper = log_most - max(_least(falls, STEP / 100, min(far, 60.0) + 4.0, math.log(1 / delta)), 0.0)
    return lower, min(upper, log_most) if log_most is not None else upper


def islands_needed(log_mean: float, log_most: float, *, prompts: int, delta: float) -> float:
    r"""About how many islands an upper bound needs, whatever their variance: log(1/δ) e^{log_most} / (P Z)."""
    return math.log(1 / delta) / prompts * math.exp(min(log_most - log_mean, 700.0))


def _below(log_samples: Tensor, u: Tensor) -> Tensor:
    """[I], [G] → [G]: φ of samples X at means e^u."""
    return _capital((log_samples - u[:, None]).exp() - 1)


def _above(shares: Tensor, u: Tensor) -> Tensor:
    """[I], [G] → [G]: φ of 1 − X, X in [0, 1], at means 1 − e^{−u}."""
    return _capital((1 - shares) / -torch.expm1(-u[:, None]) - 1)


def _capital(gains: Tensor) -> Tensor:
    """[G, I] relative deviations → [G]: log of the mean over bets of ∏_i (1 + c · gain)."""
    logs = torch.stack([torch.log1p(bet * gains).sum(-1) for bet in BETS])
    return logs.logsumexp(0) - math.log(len(BETS))


def _least(falls: Sequence[Callable[[Tensor], Tensor]], low: float, high: float, capital: float) -> float:
    r"""A lower bound of min (1/P) Σ u_x over Σ φ_x(u_x) ≤ capital, every φ falling from `low` to `high`; −∞: none is known.

    One φ: where it crosses, cut into ever finer parts. Several: max_λ Σ_x min_u (u + λ φ_x(u)) − λ capital (weak duality).
    u + λ φ has one valley, so a least value inside the grid is the least of all; a λ whose least is at an edge is passed over.
    """
    if len(falls) == 1:
        for _ in range(4):
            grid = torch.linspace(low, high, 33, dtype=torch.float64)
            above = int((falls[0](grid) > capital).sum())
            if not above:
                return -math.inf
            low, high = float(grid[above - 1]), float(grid[min(above, 32)])
        return low
    grid = torch.arange(low, high, STEP, dtype=torch.float64)
    phi = torch.stack([fall(grid) for fall in falls])  # [P, G]
    best = -math.inf
    for multiplier in torch.logspace(-4, 2, 150, dtype=torch.float64):
        value, place = (grid[None] + multiplier * phi).min(-1)
        if bool(((place > 0) & (place < len(grid) - 1)).all()):
            best = max(best, float(value.sum() - multiplier * capital))
    return best / len(falls) - STEP
