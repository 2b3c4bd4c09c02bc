"""One yardstick for every policy: the objective as stated, exact, averaged over held-out prompts of both skills."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import disagreement, kl
from multiref.errors import ArgumentError
from multiref.exact import Solution
from multiref.regularizers import Regularizer, ReverseKL
from multiref_lab.demo.corpus import SKILLS, Problem
from multiref_lab.demo.world import World

__all__ = ["Yardstick"]


@dataclass(frozen=True)
class Yardstick:
    """Everything that measuring a policy needs; all arrays float64, all answers enumerated.

    names: the K references; skills [N]; reward [N, Y]; ref_logps [K, N, Y]; asked: the reverse-KL objective as stated; beta its strength.
    """

    names: tuple[str, ...]
    skills: tuple[str, ...]
    reward: Tensor
    ref_logps: Tensor
    asked: ReverseKL
    beta: float

    @classmethod
    def on(cls, world: World, problems: Sequence[Problem], asked: ReverseKL, beta: float, *, scale: float) -> Yardstick:
        """The yardstick of a world on these prompts; a point of reward is worth `scale`, as in the labels."""
        if not problems:
            raise ArgumentError("a yardstick needs at least one prompt")
        skills = tuple(problem.skill for problem in problems)
        return cls(tuple(world.references), skills, scale * world.rewards(problems), world.ref_logps(problems), asked, beta)

    @cached_property
    def optimum(self) -> Solution:
        """π* of the objective as stated."""
        return exact.solve(self.reward, self.ref_logps, self.asked, beta=self.beta)

    @property
    def disagreement(self) -> float:
        """−log F, nats: the weighted reverse KL that no policy can go below."""
        return _mean(disagreement(self.ref_logps, self.asked.weights))

    def measure(self, log_policy: Tensor) -> dict[str, float]:
        """[N, Y] → numbers, means over prompts.

        J: E_π[r] − β Σ_k w_k KL(π‖π_k); gap: KL(π‖π*), for which J* − J = β · gap; reward: E_π[r]; price: Σ_k w_k KL(π‖π_k);
        kl/<reference>: KL(π‖π_k); accuracy/<skill>: probability of the right answer on that skill's prompts. KL in nats per completion.
        """
        policy = log_policy.exp()
        right = policy.gather(1, self.reward.argmax(1, keepdim=True))[:, 0]
        numbers = {
            "J": _mean(exact.value(log_policy, self.reward, self.ref_logps, self.asked, beta=self.beta)),
            "gap": _mean(kl(log_policy, self.optimum.log_policy)),
            "reward": _mean((policy * self.reward).sum(1)),
            "price": _mean(self.asked.penalty(log_policy, self.ref_logps)),
        }
        numbers |= {f"kl/{name}": _mean(kl(log_policy, ref)) for name, ref in zip(self.names, self.ref_logps, strict=True)}
        return numbers | {f"accuracy/{skill}": _mean(right[self._of(skill)]) for skill in SKILLS if skill in self.skills}

    def own(self, log_policy: Tensor, rule: Regularizer) -> dict[str, float]:
        """[N, Y] → the objective that `rule` itself maximises, its best value, and what is missing to it."""
        value = _mean(exact.value(log_policy, self.reward, self.ref_logps, rule, beta=self.beta))
        best = _mean(self.solution(rule).value)
        return {"own/J": value, "own/best": best, "own/regret": best - value}

    def solution(self, rule: Regularizer, *, beta: float | None = None) -> Solution:
        """The exact optimum of another rule, or of another β, on the same prompts."""
        return exact.solve(self.reward, self.ref_logps, rule, beta=self.beta if beta is None else beta)

    def frontier(self, betas: Sequence[float]) -> list[tuple[float, float]]:
        """(price, reward) of the exact optima of the objective as stated, for each β."""
        found: list[Mapping[str, float]] = [self.measure(self.solution(self.asked, beta=beta).log_policy) for beta in betas]
        return [(numbers["price"], numbers["reward"]) for numbers in found]

    def best_reward(self, price: float) -> float:
        """The largest mean reward of any policy whose weighted KL is `price`, averaged over prompts: on the frontier, by bisection of log β.

        Below the disagreement no policy exists (NaN); above the price of the best reward, that reward.
        """
        if price < self.disagreement:
            return math.nan
        low, high = math.log(self.beta) - 12.0, math.log(self.beta) + 20.0  # price falls as β grows
        for _ in range(50):
            middle = (low + high) / 2
            ((found, _reward),) = self.frontier([math.exp(middle)])
            low, high = (middle, high) if found > price else (low, middle)
        ((_price, reward),) = self.frontier([math.exp(high)])
        return reward

    def _of(self, skill: str) -> Tensor:
        return torch.tensor([found == skill for found in self.skills])


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
