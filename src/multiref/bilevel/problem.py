"""The bilevel problem on finite completions: who prefers what, which references, which regularizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref import exact
from multiref.errors import ArgumentError
from multiref.regularizers import Regularizer, check_beta

__all__ = ["Problem", "preference_table"]


def preference_table(reward: Tensor) -> Tensor:
    """[*B, Y] → [*B, Y, Y]: Bradley–Terry, P(y ≻ y') = σ(r(y) − r(y'))."""
    return torch.sigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))


@dataclass(frozen=True)
class Problem:
    r"""What the two levels share.

        upper:  min_φ f(r_φ, π(r_φ))                            f: an `Upper`
        lower:  π(r) = argmax_π E_π[r] − β Σ_k w_k D(π‖π_k)      exact, `multiref.exact`

    Attributes:
        preference: [*B, Y, Y], P*(y ≻ y'): probabilities, opposite entries sum to one.
        ref_logps: [K, *B, Y].
        regularizer, beta: the lower level.
        comparator_logps: [*B, Y], the law of the opponent of `WinRate` and of mixed pairs; None is the normalised pool.

    Raises:
        ArgumentError: shapes that do not match, preferences that are no probabilities, β ≤ 0.
    """

    preference: Tensor
    ref_logps: Tensor
    regularizer: Regularizer
    beta: float
    comparator_logps: Tensor = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        check_beta(self.beta)
        expected = (*self.ref_logps.shape[1:], self.ref_logps.shape[-1])
        if tuple(self.preference.shape) != expected:
            raise ArgumentError(
                f"preference: found shape {tuple(self.preference.shape)}, expected {expected} for ref_logps "
                f"{tuple(self.ref_logps.shape)}; give P(y ≻ y') for every pair of completions"
            )
        gap = float((self.preference + self.preference.transpose(-1, -2) - 1).abs().max()) if self.preference.numel() else 0.0
        if not gap <= 1e-6 or float(self.preference.min()) < 0:
            raise ArgumentError(
                f"preference: found P(y ≻ y') + P(y' ≻ y) off one by {gap:.3g}, expected probabilities; give one table for "
                "both orders"
            )
        if self.comparator_logps is None:
            object.__setattr__(self, "comparator_logps", self.regularizer.pool(self.ref_logps).log_softmax(-1))

    @property
    def log_pool(self) -> Tensor:
        """[*B, Y]: the pooled reference, not normalised."""
        return self.regularizer.pool(self.ref_logps)

    def lower(self, reward: Tensor) -> Tensor:
        """[*B, Y] → [*B, Y]: log π(r), the lower level's exact solution."""
        return exact.solve(reward, self.ref_logps, self.regularizer, beta=self.beta).log_policy

    def lower_value(self, log_policy: Tensor, reward: Tensor) -> Tensor:
        """[*B, Y], [*B, Y] → [*B]: E_π[r] − β Σ_k w_k D(π‖π_k)."""
        return exact.value(log_policy, reward, self.ref_logps, self.regularizer, beta=self.beta)
