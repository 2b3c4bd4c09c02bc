"""A bilevel problem whose reward model is linear in features, and whose true reward may or may not be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multiref.bilevel import Problem, Upper, hypergradient, preference_table
from multiref.divergences import kl
from multiref.regularizers import Regularizer, ReverseKL
from multiref_lab.problems import linear_bandits

__all__ = ["LinearReward", "linear_world"]


@dataclass(frozen=True)
class LinearReward:
    """S worlds. features [S, X, Y, d] are what the model sees; `reward` [S, X, Y] is the truth; φ* [S, d] is its parameter where realisable.

    Prompts are equally likely.
    """

    problem: Problem
    features: Tensor
    reward: Tensor
    truth: Tensor | None

    def repeat(self, times: int) -> LinearReward:
        """The same worlds `times` times over, for several starts each: row s·times + i."""
        problem = replace(
            self.problem,
            preference=self.problem.preference.repeat_interleave(times, 0),
            ref_logps=self.problem.ref_logps.repeat_interleave(times, 1),
            comparator_logps=self.problem.comparator_logps.repeat_interleave(times, 0),  # type: ignore[union-attr]
        )
        truth = None if self.truth is None else self.truth.repeat_interleave(times, 0)
        return LinearReward(problem, self.features.repeat_interleave(times, 0), self.reward.repeat_interleave(times, 0), truth)

    def reward_of(self, phi: Tensor) -> Tensor:
        """[S, d] → [S, X, Y]."""
        return torch.einsum("sxyd,sd->sxy", self.features, phi)

    def chain(self, by_reward: Tensor) -> Tensor:
        """[S, X, Y] → [S, d]: a derivative in the reward table, prompts averaged, as one in φ."""
        return torch.einsum("sxyd,sxy->sd", self.features, by_reward) / by_reward.shape[-2]

    def upper_value(self, phi: Tensor, upper: Upper) -> Tensor:
        """[S, d] → [S]: ψ(φ)."""
        reward = self.reward_of(phi)
        return upper.value(self.problem, self.problem.lower(reward), reward).mean(-1)

    def upper_gradient(self, phi: Tensor, upper: Upper) -> Tensor:
        """[S, d] → [S, d]: ∇ψ(φ)."""
        return self.chain(hypergradient(self.problem, self.reward_of(phi), upper))

    def true_value(self, log_policy: Tensor) -> Tensor:
        """[S, X, Y] → [S]: J under the true reward."""
        return self.problem.lower_value(log_policy, self.reward).mean(-1)

    def gap(self, log_policy: Tensor) -> Tensor:
        """[S, X, Y] → [S]: J* − J(π) = β KL(π‖π*), exact (reverse KL)."""
        return self.problem.beta * kl(log_policy, self.problem.lower(self.reward)).mean(-1)


def linear_world(
    seeds: int,
    *,
    beta: float,
    prompts: int = 6,
    completions: int = 6,
    dimension: int = 3,
    seen: int | None = None,
    references: int = 2,
    scale: float = 1.0,
    regularizer: Regularizer | None = None,
    generator: torch.Generator,
) -> LinearReward:
    """Rewards of spread `scale`, linear in `dimension` random features of which the model sees the first `seen` (None: all, realisable)."""
    made = linear_bandits(
        seeds,
        prompts=prompts,
        completions=completions,
        dimension=dimension,
        references=references,
        reward_scale=scale,
        generator=generator,
    )
    problem = Problem(preference_table(made.reward), made.ref_logps, regularizer or ReverseKL(), beta)
    if seen is None or seen == dimension:
        return LinearReward(problem, made.features, made.reward, made.theta)
    return LinearReward(problem, made.features[..., :seen].contiguous(), made.reward, None)
