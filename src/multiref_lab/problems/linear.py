"""Log-linear contextual bandits: the reward is linear in features, random or given."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref.regularizers import check_weights
from multiref_lab.problems.bandits import Bandits, random_logps


@dataclass(frozen=True)
class LinearBandits(Bandits):
    """Bandits whose reward is ⟨θ, φ(x, y)⟩.

    Attributes:
        features: [S, X, Y, d].
        theta: [S, d].
    """

    features: Tensor
    theta: Tensor

    def reward_of(self, theta: Tensor) -> Tensor:
        """[S, d] → [S, X, Y]."""
        return torch.einsum("sxyd,sd->sxy", self.features, theta)


def linear_bandits(
    seeds: int,
    *,
    prompts: int = 4,
    completions: int = 6,
    dimension: int = 5,
    references: int = 2,
    weights: Sequence[float] | None = None,
    spread: float = 1.0,
    reward_scale: float = 1.0,
    features: Tensor | None = None,
    generator: torch.Generator,
) -> LinearBandits:
    """Random problems with unit-scale features N(0, 1/d) and θ of norm `reward_scale` √d,
    so that rewards spread about `reward_scale`.

    Args:
        features: [X, Y, d] or [S, X, Y, d] to use instead of random ones (frozen hidden states, say);
            prompts, completions and dimension are then theirs.

    Raises:
        ArgumentError: features of another shape.
    """
    if features is None:
        features = (
            torch.randn(seeds, prompts, completions, dimension, generator=generator, dtype=torch.float64) / dimension**0.5
        )
    if features.ndim not in (3, 4) or (features.ndim == 4 and features.shape[0] != seeds):
        raise ArgumentError(f"features: found shape {tuple(features.shape)}, expected [X, Y, d] or [{seeds}, X, Y, d]")
    features = features.double().expand(seeds, *features.shape[-3:])
    prompts, completions, dimension = features.shape[1:]
    theta = torch.randn(seeds, dimension, generator=generator, dtype=torch.float64)
    theta = reward_scale * dimension**0.5 * theta / theta.norm(dim=-1, keepdim=True)
    ref_logps = random_logps(references, seeds, prompts, completions, generator=generator, spread=spread)
    return LinearBandits(
        torch.einsum("sxyd,sd->sxy", features, theta), ref_logps, check_weights(weights, references), features, theta
    )
