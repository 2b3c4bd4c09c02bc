"""Bilevel problems whose reward model is linear in features, and whose true reward may or may not be; many seeds at once."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from multiref.bilevel import Problem, Upper, hypergradient, preference_table
from multiref.divergences import kl
from multiref.regularizers import ReverseKL
from multiref_lab.problems import linear_bandits


@dataclass(frozen=True)
class LinearModel:
    """S problems whose reward is modelled as ⟨φ, features⟩, features [S, X, Y, d]. Prompts are equally likely."""

    problem: Problem
    features: Tensor

    def reward_of(self, phi: Tensor) -> Tensor:
        """[S, d] → [S, X, Y]."""
        return torch.einsum("sxyd,sd->sxy", self.features, phi)

    def chain(self, by_reward: Tensor) -> Tensor:
        """[S, X, Y] → [S, d]: a derivative in the reward table, prompts averaged, as one in φ."""
        return torch.einsum("sxyd,sxy->sd", self.features, by_reward) / by_reward.shape[-2]


@dataclass(frozen=True)
class LinearWorld(LinearModel):
    """Such problems with the Gibbs policy as lower level; `reward` [S, X, Y] is the truth, which the features may miss."""

    reward: Tensor

    def repeat(self, times: int) -> Self:
        """The same worlds `times` times over, for several starts each: row s·times + i."""
        preference = self.problem.preference.repeat_interleave(times, 0)
        ref_logps = self.problem.ref_logps.repeat_interleave(times, 1)
        problem = Problem(preference, ref_logps, self.problem.regularizer, self.problem.beta)
        features, reward = (each.repeat_interleave(times, 0) for each in (self.features, self.reward))
        return replace(self, problem=problem, features=features, reward=reward)

    @property
    def pool(self) -> Tensor:
        """[S, X, Y]: the normalised pool, where training starts."""
        return self.problem.log_pool.log_softmax(-1)

    def policy_of(self, phi: Tensor) -> Tensor:
        """[S, d] → [S, X, Y]: log π, the lower level's exact solution."""
        return self.problem.lower(self.reward_of(phi))

    def upper_value(self, phi: Tensor, upper: Upper) -> Tensor:
        """[S, d] → [S]: ψ(φ)."""
        return upper.value(self.problem, self.policy_of(phi), self.reward_of(phi)).mean(-1)

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
    scale: float = 1.0,
    generator: torch.Generator,
) -> LinearWorld:
    """Rewards of spread `scale`, linear in `dimension` random features of which the model sees the first `seen` (None:
    all, realisable).
    """
    made = linear_bandits(
        seeds, prompts=prompts, completions=completions, dimension=dimension, reward_scale=scale, generator=generator
    )
    problem = Problem(preference_table(made.reward), made.ref_logps, ReverseKL(), beta)
    return LinearWorld(problem, made.features[..., : seen or dimension].contiguous(), made.reward)
