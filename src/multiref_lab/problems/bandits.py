"""Contextual bandits with finitely many completions and K references, and finite classes of rewards that hold the truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref.pools import power_pool
from multiref.regularizers import check_weights


@dataclass(frozen=True)
class Bandits:
    """S problems side by side; prompts are equally likely.

    Attributes:
        reward: [S, X, Y].
        ref_logps: [K, S, X, Y].
        weights: [K] on the simplex.
    """

    reward: Tensor
    ref_logps: Tensor
    weights: Tensor

    def law(self, name: str) -> Tensor:
        """[S, X, Y]: a sampling law by name (`escort`, `mixture`, `uniform`, `reference 0`, …).

        Raises:
            ArgumentError: a name that is none of these.
        """
        if name == "escort":
            return power_pool(self.ref_logps, self.weights, order=0.0).log_softmax(-1)
        if name == "mixture":
            return power_pool(self.ref_logps, self.weights, order=1.0)
        if name == "uniform":
            return torch.zeros_like(self.reward).log_softmax(-1)
        if name.startswith("reference ") and name[10:].isdigit() and int(name[10:]) < len(self.ref_logps):
            return self.ref_logps[int(name[10:])]
        raise ArgumentError(f"law: found {name!r}, expected escort, mixture, uniform or 'reference k'")


def random_logps(*shape: int, generator: torch.Generator, spread: float = 1.0) -> Tensor:
    """[*shape]: log-probabilities along the last axis, logits spread · N(0, 1)."""
    return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def random_bandits(
    seeds: int,
    *,
    prompts: int = 1,
    completions: int = 8,
    references: int = 2,
    weights: Sequence[float] | None = None,
    spread: float = 1.0,
    generator: torch.Generator,
) -> Bandits:
    """Random references (logits spread · N(0, 1)) and uniform rewards in [0, 1]."""
    ref_logps = random_logps(references, seeds, prompts, completions, generator=generator, spread=spread)
    reward = torch.rand(seeds, prompts, completions, generator=generator, dtype=torch.float64)
    return Bandits(reward, ref_logps, check_weights(weights, references))


def bandits_of_seed(
    seed: int, seeds: int, *, weights: Sequence[float], completions: int = 8
) -> tuple[Bandits, torch.Generator]:
    """Random problems under as many references as weights, and the generator that drew them, for what is drawn next."""
    generator = torch.Generator().manual_seed(seed)
    problem = random_bandits(seeds, completions=completions, references=len(weights), weights=weights, generator=generator)
    return problem, generator


def random_class(reward: Tensor, size: int, *, generator: torch.Generator) -> Tensor:
    """[*S, X, Y] → [*S, M, X, Y]: the truth first, then uniform draws.
    Fixed as n grows, such a class identifies the truth exponentially fast.
    """
    others = torch.rand(*reward.shape[:-2], size - 1, *reward.shape[-2:], generator=generator, dtype=torch.float64)
    return torch.cat((reward.unsqueeze(-3), others), -3)


def refined_class(reward: Tensor, size: int, distance: float, *, generator: torch.Generator) -> Tensor:
    """[*S, X, Y] → [*S, M, X, Y]: the truth first, then rewards at about `distance` from it, kept in [0, 1].

    With distance ∝ n^(−1/2) there is always something left to tell apart: the regime in which rates in n can be seen.
    """
    noise = torch.randn(*reward.shape[:-2], size - 1, *reward.shape[-2:], generator=generator, dtype=torch.float64)
    scale = torch.rand(*reward.shape[:-2], size - 1, 1, 1, generator=generator, dtype=torch.float64)
    others = (reward.unsqueeze(-3) + 2 * distance * scale * noise).clamp(0, 1)
    return torch.cat((reward.unsqueeze(-3), others), -3)
