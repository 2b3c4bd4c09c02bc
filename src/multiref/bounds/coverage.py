"""Coverage constants: what the bounds call C, computed exactly on finite supports, and estimated from scores."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from multiref._logspace import NEG_INF, Weights, broadcast, check_weights, expectation
from multiref.divergences import disagreement
from multiref.errors import ArgumentError
from multiref.pools import power_pool

_STEPS = 60  # bisection; the maximum is flat in its argument, so its value is exact long before


def coverage(policy_logps: Tensor, sampling_logps: Tensor) -> Tensor:
    r"""[*B, Y], [*B, Y] → [*B]: C = max_y π(y) / μ(y) over completions that the policy can produce; +inf where μ misses one.

    Reference: arXiv 2502.01203 writes such a constant C (FOUND; its definition's text is not available).
    """
    ratio = policy_logps - sampling_logps  # of what has mass, however little
    return ratio.masked_fill(policy_logps == NEG_INF, NEG_INF).amax(-1).exp()


def path_coverage(reward: Tensor, estimate: Tensor, pool_logps: Tensor, sampling_logps: Tensor, *, beta: float) -> Tensor:
    r"""[*B, Y] four times → [*B]: the coverage that R1, R2 and R3 need, C = max_{0≤s≤1} max_y π_s(y) / μ(y).

        π_s ∝ pool · exp((r + s g) / β),   g = estimate − reward

    For each y, log π_s(y) is concave in s with slope (g(y) − E_{π_s} g)/β: bisected on its sign, so the maximum is exact.

    Args:
        reward, estimate: r* and r̂; −inf, in both, takes a completion out of play.
        pool_logps: the geometric pool, normalised or not.
        sampling_logps: the law μ that pairs were drawn from.

    Raises:
        ArgumentError: a completion that one of the rewards takes out of play and the other does not.

    Reference: DERIVED; R1 in docs/bounds.md.
    """
    shape = broadcast(reward.shape, estimate.shape, pool_logps.shape, sampling_logps.shape)
    reward, estimate = reward.expand(shape), estimate.expand(shape)
    alive = (pool_logps != NEG_INF) & (reward > NEG_INF)
    one_sided = torch.where(alive, ~torch.isfinite(estimate - reward), (pool_logps != NEG_INF) & (estimate != NEG_INF))
    if bool(one_sided.any()):
        raise ArgumentError("reward, estimate: expected finite numbers, or −inf in both where a completion is out of play.")
    base = torch.where(alive, pool_logps + reward / beta, NEG_INF)
    g = torch.where(alive, estimate, 0.0) - torch.where(alive, reward, 0.0)
    top = _last(torch.ones_like(g), lambda s: g > expectation(_tilted(base, g, s, beta), g.unsqueeze(-2)))
    best = torch.diagonal(_tilted(base, g, top, beta), dim1=-2, dim2=-1)  # entry y: log π_{s(y)}(y)
    return coverage(best, sampling_logps.expand(shape))


def _tilted(base: Tensor, g: Tensor, s: Tensor, beta: float) -> Tensor:
    """[*B, Y] three times → [*B, Y', Y]: log π_s with one s for each y'."""
    return (base.unsqueeze(-2) + s.unsqueeze(-1) * g.unsqueeze(-2) / beta).log_softmax(-1)


def ball_coverage(pool_logps: Tensor, radius: float, *, direction: Literal["reverse", "forward"] = "reverse") -> Tensor:
    r"""[*B, Y] → [*B]: the smallest C with π ≤ C · pool for every π in a KL ball around the normalised pool.

    Reverse: KL(π‖pool) ≤ radius. Forward: KL(pool‖π) ≤ radius. The worst π moves mass to one completion y and keeps the
    others' proportions, so that the ball reads kl(q‖p(y)) ≤ radius (or kl(p(y)‖q)) on two outcomes;
    bisection on log q/p(y) finds the largest q. Completions to which the pool gives nothing are not in play.
    R1's path stays in the reverse ball of radius min(R/β, R²/(8β²)) (docs/bounds.md).

    Raises:
        ArgumentError: a radius that is negative or NaN, a direction that is neither, a pool that is NaN or has no mass.

    Reference: our reading of the papers' local coverage constants, whose definition's text is not available; DERIVED.
    """
    if not radius >= 0:
        raise ArgumentError(
            f"radius: found {radius!r}, expected a number that is not negative; give the KL ball's radius in nats"
        )
    if direction not in ("reverse", "forward"):
        raise ArgumentError(f"direction: found {direction!r}, expected 'reverse' (KL(π‖pool)) or 'forward' (KL(pool‖π)).")
    log_p = pool_logps.log_softmax(-1)
    if bool(log_p.isnan().any()):
        raise ArgumentError("pool_logps: found NaN or a row without mass, expected log-masses of which some are above −inf.")
    odds = log_p.exp() / -torch.expm1(log_p)

    def inside(gain: Tensor) -> Tensor:
        """gain = log q/p; loss = log (1 − q)/(1 − p)."""
        loss, log_q = torch.log1p(-odds * torch.expm1(gain)), log_p + gain
        if direction == "reverse":
            return log_q.exp() * gain - torch.expm1(log_q) * loss <= radius
        return torch.expm1(log_p) * loss - log_p.exp() * gain <= radius

    return _last(torch.where(log_p > NEG_INF, -log_p, 0.0), inside).amax(-1).exp()


def _last(high: Tensor, holds: Callable[[Tensor], Tensor]) -> Tensor:
    """The end of the interval from zero, at most `high`, in which a condition holds, entry by entry."""
    low = torch.zeros_like(high)
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        inside = holds(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return low


def sampling_coverage(ref_logps: Tensor, weights: Weights = None) -> Tensor:
    r"""[K, *B, Y] → [*B]: max_y escort(y) / Σ_k w_k π_k(y), the price of drawing pairs from the references; at most 1/F, and
    +inf where no completion has mass under all of them.

    Reference: DERIVED; P in docs/bounds.md.
    """
    price = disagreement(ref_logps, weights)
    escort = power_pool(ref_logps, weights, order=0.0) + torch.where(price < math.inf, price, 0.0).unsqueeze(-1)
    return torch.where(price < math.inf, coverage(escort, power_pool(ref_logps, weights, order=1.0)), math.inf)


@dataclass(frozen=True)
class CoverageEstimate:
    """What scores alone say about K references; every number supposes completions of one prompt, drawn from Σ_k w_k π_k.

    Of several prompts F is the mean of theirs, so that −log F is at most its mean over them (Jensen), and the escort that
    `coverage_at_least` divides by the mixture is no single prompt's.

    Attributes:
        references: K.
        weights: the weights used.
        disagreement: −log F, estimated as −log mean(geometric pool / mixture).
        disagreement_error: its standard error, by the delta method.
        coverage_at_least: the largest escort / mixture among the scored completions, a *lower* bound on C without reward tilt.
        effective_samples: (Σ w)² / Σ w² of the importance weights; a small share of N: the estimate rests on few completions.
        completions: N.
    """

    references: int
    weights: tuple[float, ...]
    disagreement: float
    disagreement_error: float
    coverage_at_least: float
    effective_samples: float
    completions: int

    def __str__(self) -> str:
        weights = ", ".join(f"{w:.3g}" for w in self.weights)
        return (
            f"K = {self.references} references, weights {weights}, {self.completions} completions\n"
            f"  disagreement −log F   {self.disagreement:.4g} ± {self.disagreement_error:.2g} nats a completion\n"
            f"  coverage at least     {self.coverage_at_least:.4g}\n"
            f"  effective samples     {self.effective_samples:.1f} of {self.completions}\n"
            "  supposes completions drawn from the mixture of the references; for other data it is the references' own estimate"
            "\n  of several prompts F is the mean of theirs: at some prompt −log F is larger"
            "\n  the coverage may be larger too: a bound that is computed from it is optimistic"
        )


def coverage_from_scores(ref_logps: Tensor, weights: Weights = None) -> CoverageEstimate:
    r"""[K, N] summed log-probabilities of N completions → estimates of disagreement and coverage.

        F = Σ_y Π_k π_k^{w_k} = E_{y ~ Σ w_k π_k}[ exp(log P_0(y) − log P_1(y)) ]

    Every importance weight is at most 1 (arithmetic–geometric means), so that the error bar of F is honest;
    that of −log F is not when F is far below 1/N.

    Raises:
        ArgumentError: not [K, N], or no completion.
    """
    if ref_logps.ndim != 2 or ref_logps.shape[1] == 0:
        raise ArgumentError(
            f"ref_logps: found shape {tuple(ref_logps.shape)}, expected [K, N] with N ≥ 1; give one row per reference"
        )
    w = check_weights(weights, ref_logps.shape[0])
    mixture = power_pool(ref_logps.double(), w, order=1.0)
    if not float(mixture.min()) > NEG_INF:
        raise ArgumentError(f"ref_logps: completion {int(mixture.argmin())} has no mass under any reference; leave it out")
    log_ratio = power_pool(ref_logps.double(), w, order=0.0) - mixture
    count = log_ratio.numel()
    log_f = float(torch.logsumexp(log_ratio, 0)) - math.log(count)
    relative = (log_ratio - log_f).exp().nan_to_num()  # zeros where every completion is vetoed
    error = float(relative.std() / math.sqrt(count)) if count > 1 and log_f > NEG_INF else math.inf
    return CoverageEstimate(
        references=ref_logps.shape[0],
        weights=tuple(float(x) for x in w.reshape(-1)),
        disagreement=max(0.0, -log_f),
        disagreement_error=error,
        coverage_at_least=max(float(relative.max()), 1.0),
        effective_samples=float(relative.sum() ** 2 / (relative**2).sum().clamp_min(1e-300)),
        completions=count,
    )
