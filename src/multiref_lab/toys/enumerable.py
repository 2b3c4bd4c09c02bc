"""Policies, reward models and an oracle on completions that can be enumerated:
one number for each, or linear in given features.

Seeds on the first axis.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """What is enumerated: V^L completions of `length` tokens from `vocabulary`, after each of `prompts`.

    Attributes:
        width: of every transformer.
        dimension: features that a world's reward is linear in.
        seen: how many of them a reward model has; None: all.
    """

    prompts: int = 64
    vocabulary: int = 6
    length: int = 4
    width: int = 24
    dimension: int = 8
    seen: int | None = None


def completion_index(completions: Tensor, vocabulary: int) -> Tensor:
    """[*E, L] token ids → [*E]: the completion's place in lexicographic order."""
    index = torch.zeros_like(completions[..., 0])
    for token in completions.unbind(-1):
        index = vocabulary * index + token
    return index


def every_completion(vocabulary: int, length: int) -> Tensor:
    """[V^L, L] token ids in lexicographic order."""
    return torch.cartesian_prod(*[torch.arange(vocabulary)] * length).reshape(-1, length)


def at(table: Tensor, prompts: Tensor, completions: Tensor, vocabulary: int) -> Tensor:
    """[S or 1, X, Y, …] read at [B], [S, B, n, L] → [S, B, n, …]; one table for all seeds, or one each."""
    rows = torch.arange(completions.shape[0])[:, None, None] % table.shape[0]
    return table[rows, prompts[None, :, None], completion_index(completions, vocabulary)]


class LinearReward(nn.Module):
    """r_φ(x, y) = ⟨φ, f(x, y)⟩, φ [S, d], zero at first, from features [X, Y, d] or [S, X, Y,
    d] of completions in lexicographic order.
    """

    table: Tensor

    def __init__(self, features: Tensor, vocabulary: int, seeds: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.register_buffer("table", features if features.ndim == 4 else features.unsqueeze(0))
        self.phi = nn.Parameter(torch.zeros(seeds, features.shape[-1], dtype=features.dtype))

    def features(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [S, B, n, L] → [S, B, n, d]."""
        return at(self.table, prompts, completions, self.vocabulary)

    jacobian = features  # ∂r/∂φ

    def forward(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [S, B, n, L] → [S, B, n]."""
        return torch.einsum("sbnd,sd->sbn", self.features(prompts, completions), self.phi)


class TableOracle:
    """Bradley–Terry labels from a true reward table [X, Y] (or [S, X, Y]) of completions in lexicographic order."""

    def __init__(self, reward: Tensor, vocabulary: int) -> None:
        self.reward, self.vocabulary = reward if reward.ndim == 3 else reward.unsqueeze(0), vocabulary

    def score(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [S, B, n, L] → [S, B, n]: the true reward."""
        return at(self.reward, prompts, completions, self.vocabulary)

    def __call__(self, prompts: Tensor, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        both = self.score(prompts, torch.stack((first, second), -2))
        return torch.bernoulli(torch.sigmoid(both[..., 0] - both[..., 1]), generator=generator)


class ToyPolicy(nn.Module, ABC):
    """A policy that knows the log-probability of every completion; S of them side by side."""

    @abstractmethod
    def forward(self) -> Tensor:
        """[S, X, Y], differentiable: log-probabilities of every completion of every prompt, in lexicographic order."""

    @abstractmethod
    def logps(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [S, B, n, L] → [S, B, n]."""

    @abstractmethod
    def sample(self, prompts: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """[B] → [S, B, n, L]."""

    @torch.no_grad()
    def table(self) -> Tensor:
        """[S, X, Y] float64: `forward` without a gradient."""
        return self.forward().double()

    def copy(self) -> Self:
        """Independent, with the same parameters."""
        return copy.deepcopy(self)


class _Enumerated(ToyPolicy):
    """What the two tables share: a law of each prompt, read at completions, sampled exactly."""

    base: Tensor

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.vocabulary, self.completions = vocabulary, every_completion(vocabulary, length)

    @abstractmethod
    def law(self, prompts: Tensor) -> Tensor:
        """[B] → [S, B, Y], differentiable log-probabilities."""

    def forward(self) -> Tensor:
        """[S, X, Y]: the law at every prompt."""
        return self.law(torch.arange(self.base.shape[-2]))

    def logps(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [S, B, n, T] → [S, B, n]."""
        return self.law(prompts).gather(-1, completion_index(completions, self.vocabulary))

    @torch.no_grad()
    def sample(self, prompts: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """[B] → [S, B, n, T]: n completions of each prompt."""
        law = self.law(prompts).exp()
        drawn = torch.multinomial(law.flatten(0, 1), n, replacement=True, generator=generator)
        return self.completions[drawn.unflatten(0, law.shape[:2])]


class TabularPolicy(_Enumerated):
    """A free softmax over the completions of each prompt: π ∝ e^θ, θ [S, X, Y], from log-probabilities `start` [X, Y] or [S, X,
    Y].
    """

    def __init__(self, start: Tensor, vocabulary: int, length: int, seeds: int) -> None:
        super().__init__(vocabulary, length)
        self.base = nn.Parameter(start.expand(seeds, *start.shape[-2:]).clone())

    def law(self, prompts: Tensor) -> Tensor:
        return self.base[:, prompts].log_softmax(-1)


class LogLinearPolicy(_Enumerated):
    """π_θ ∝ π_start e^{⟨θ, f⟩}, θ [S, d] from zero, start [X, Y], features [X, Y, d], or both with seeds in front."""

    features: Tensor

    def __init__(self, start: Tensor, features: Tensor, vocabulary: int, length: int, seeds: int) -> None:
        super().__init__(vocabulary, length)
        self.register_buffer("base", start)
        self.register_buffer("features", features)
        self.theta = nn.Parameter(torch.zeros(seeds, features.shape[-1], dtype=features.dtype))

    def law(self, prompts: Tensor) -> Tensor:
        shift = torch.einsum("...byd,sd->sby", self.features[..., prompts, :, :], self.theta)
        return (self.base[..., prompts, :] + shift).log_softmax(-1)
