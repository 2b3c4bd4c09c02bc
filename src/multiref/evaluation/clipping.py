"""The clipped objective of a policy, estimated from fresh rollouts, with its bars."""

import math
from dataclasses import dataclass

from torch import Tensor

from multiref.bounds.clipping import sampling_error
from multiref.bounds.quantities import check_quantities
from multiref.errors import ArgumentError


@dataclass(frozen=True)
class ClippedValue:
    """Ĵ = mean of r − β c(ℓ), with two bars and what clipping hides.

    Attributes:
        value: Ĵ; error: its standard error over prompts.
        bar: (1 + 2βτ)α, α = √(log(4/δ)/2n) + √(log(4/δ)/2nK): Hoeffding's, with probability 1 − δ, for rewards in [0, 1].
        clipped: share of rollouts with |ℓ| > τ.
        hidden: β times the mean of |ℓ − c(ℓ)|: how far Ĵ may be from the objective without a clip.
        prompts, rollouts: n and K.
    """

    value: float
    error: float
    bar: float
    clipped: float
    hidden: float
    prompts: int
    rollouts: int

    def __str__(self) -> str:
        return (
            f"clipped objective {self.value:.4g} ± {self.error:.2g} (bar {self.bar:.3g}), {self.prompts} prompts × "
            f"{self.rollouts}; {self.clipped:.1%} clipped, which hides up to {self.hidden:.3g}"
        )


def clipped_value(rewards: Tensor, log_ratios: Tensor, *, beta: float, tau: float, delta: float = 0.05) -> ClippedValue:
    r"""[n, K] rewards in [0, 1], [n, K] ℓ = log π/P of fresh rollouts → the clipped objective of that policy, with its bars.

        Ĵ = (1/nK) Σ r − β min(max(ℓ, −τ), τ)

    The rollouts must not have trained the policy, nor chosen τ.

    Raises:
        ArgumentError: shapes that do not match, rewards outside [0, 1], NaN, τ ≤ 0, δ outside (0, 1), β ≤ 0.

    Reference: arXiv 2602.21765, Theorem 1 (FOUND).
    """
    check_quantities("clipped_value", {"beta": beta, "tau": tau, "delta": delta})
    if rewards.ndim != 2 or rewards.shape != log_ratios.shape or not rewards.numel():
        raise ArgumentError(
            f"rewards, log_ratios: expected two [n, K], found {tuple(rewards.shape)} and {tuple(log_ratios.shape)}."
        )
    r, ratio = rewards.double(), log_ratios.double()
    if not bool(((r >= 0) & (r <= 1)).all()) or bool(ratio.isnan().any()):
        raise ArgumentError("rewards: expected numbers in [0, 1] (the bar is Hoeffding's), and log-ratios without NaN.")
    kept = ratio.clamp(-tau, tau)
    each = (r - beta * kept).mean(1)
    n, rollouts = r.shape
    return ClippedValue(
        value=float(each.mean()),
        error=float(each.std() / math.sqrt(n)) if n > 1 else math.inf,
        bar=(1 + 2 * beta * tau) * sampling_error(n, rollouts, delta),
        clipped=float((ratio.abs() > tau).double().mean()),
        hidden=beta * float((ratio - kept).abs().mean()),
        prompts=n,
        rollouts=rollouts,
    )
