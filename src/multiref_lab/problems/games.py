"""Preferences that no reward explains: generalised bilinear ones, whose cycles a Bradley–Terry model cannot see."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref_lab.preferences import pair_indices
from multiref_lab.problems.bandits import random_logps


@dataclass(frozen=True)
class Games:
    """S games of Y completions, P(y ≻ y') = σ(φ(y)ᵀ Θ φ(y')), Θ skew.

    Attributes:
        features: [S, Y, d].
        theta: [S, d(d − 1)/2], Θ above its diagonal.
        ref_logps: [K, S, Y].
    """

    features: Tensor
    theta: Tensor
    ref_logps: Tensor

    @property
    def preference(self) -> Tensor:
        """[S, Y, Y]."""
        return self.preference_of(self.theta)

    def preference_of(self, theta: Tensor) -> Tensor:
        """[S, d(d − 1)/2] → [S, Y, Y]."""
        return torch.sigmoid(self.features @ self.skew(theta) @ self.features.mT)

    def skew(self, theta: Tensor) -> Tensor:
        """[S, d(d − 1)/2] → [S, d, d]: Θ."""
        d = self.features.shape[-1]
        first, second = pair_indices(d)
        skew = torch.zeros(*theta.shape[:-1], d, d, dtype=theta.dtype)
        skew[..., first, second], skew[..., second, first] = theta, -theta
        return skew

    @property
    def differences(self) -> Tensor:
        """[S, 1, P, d(d − 1)/2]: what Θ is multiplied by for each pair of completions, for `logistic_mle`."""
        (i, j), (a, b) = pair_indices(self.features.shape[-1]), pair_indices(self.features.shape[-2])
        one, two = self.features[..., a, :], self.features[..., b, :]
        return (one[..., i] * two[..., j] - one[..., j] * two[..., i]).unsqueeze(-3)


def bilinear_games(seeds: int, *, generator: torch.Generator) -> Games:
    """8 completions with random directions in 4 dimensions as features, a normal Θ times 4, two random references."""
    features = torch.randn(seeds, 8, 4, generator=generator, dtype=torch.float64)
    theta = torch.randn(seeds, 6, generator=generator, dtype=torch.float64)
    logps = random_logps(2, seeds, 8, generator=generator)
    return Games(features / features.norm(dim=-1, keepdim=True), 4 * theta, logps)
