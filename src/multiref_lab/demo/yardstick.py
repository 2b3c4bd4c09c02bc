"""One yardstick for every policy: the objective as stated, exact, averaged over held-out prompts of both skills."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import disagreement, expectation, kl
from multiref.errors import ArgumentError
from multiref.exact import Solution
from multiref.regularizers import Regularizer, ReverseKL
from multiref_lab.demo.corpus import SKILLS, Problem
from multiref_lab.demo.world import World


@dataclass(frozen=True)
class Answers:
    """Prompts with all their answers: names of the K references; skills [N]; reward [N, Y]; ref_logps [K, N, Y], float64."""

    names: tuple[str, ...]
    skills: tuple[str, ...]
    reward: Tensor
    ref_logps: Tensor

    @classmethod
    def of(cls, world: World, problems: Sequence[Problem], *, scale: float) -> "Answers":
        """A point of reward is worth `scale`, as in the labels."""
        if not problems:
            raise ArgumentError("a yardstick needs at least one prompt")
        skills = tuple(problem.skill for problem in problems)
        return cls(tuple(world.references), skills, scale * world.rewards(problems), world.ref_logps(problems))

    def measure(self, log_policy: Tensor) -> dict[str, float]:
        """[N, Y] → numbers, means over prompts.

        reward: E_π[r]; kl/<reference>: KL(π‖π_k), nats per completion; accuracy/<skill>:
        probability of the right answer on that skill's prompts.
        """
        right = log_policy.exp().gather(1, self.reward.argmax(1, keepdim=True))[:, 0]
        found = {"reward": expectation(log_policy, self.reward)}
        found |= {f"kl/{name}": kl(log_policy, ref) for name, ref in zip(self.names, self.ref_logps, strict=True)}
        for skill in SKILLS:
            if skill in self.skills:
                found[f"accuracy/{skill}"] = right[torch.tensor([each == skill for each in self.skills])]
        return {name: float(values.mean()) for name, values in found.items()}


@dataclass(frozen=True)
class Yardstick:
    """Everything that measuring a policy needs. asked: the reverse-KL objective as stated; beta its strength."""

    answers: Answers
    asked: ReverseKL
    beta: float

    @cached_property
    def optimum(self) -> Solution:
        """π* of the objective as stated."""
        return self.solution(self.asked)

    @property
    def disagreement(self) -> float:
        """−log F, nats: the weighted reverse KL that no policy can go below."""
        return float(disagreement(self.answers.ref_logps, self.asked.weights).mean())

    def measure(self, log_policy: Tensor) -> dict[str, float]:
        """[N, Y] → the numbers of `Answers.measure`, and, means over prompts too:

        J: E_π[r] − β Σ_k w_k KL(π‖π_k); gap: KL(π‖π*), for which J* − J = β · gap; price:
        Σ_k w_k KL(π‖π_k), nats per completion.
        """
        found = {
            "J": self._value(log_policy, self.asked),
            "gap": kl(log_policy, self.optimum.log_policy),
            "price": self.asked.penalty(log_policy, self.answers.ref_logps),
        }
        return {name: float(values.mean()) for name, values in found.items()} | self.answers.measure(log_policy)

    def own(self, log_policy: Tensor, rule: Regularizer) -> dict[str, float]:
        """[N, Y] → the objective that `rule` itself maximises, its best value, and what is missing to it."""
        value, best = float(self._value(log_policy, rule).mean()), float(self.solution(rule).value.mean())
        return {"own/J": value, "own/best": best, "own/regret": best - value}

    def solution(self, rule: Regularizer, *, beta: float | None = None) -> Solution:
        """The exact optimum of another rule, or of another β, on the same prompts."""
        return exact.solve(self.answers.reward, self.answers.ref_logps, rule, beta=self.beta if beta is None else beta)

    def frontier(self, betas: Sequence[float]) -> list[tuple[float, float]]:
        """(price, reward) of the exact optima of the objective as stated, for each β."""
        laws = [self.solution(self.asked, beta=beta).log_policy for beta in betas]
        prices = [self.asked.penalty(law, self.answers.ref_logps) for law in laws]
        rewards = [expectation(law, self.answers.reward) for law in laws]
        return [(float(price.mean()), float(reward.mean())) for price, reward in zip(prices, rewards)]

    def best_reward(self, price: float) -> float:
        """The largest mean reward of any policy whose weighted KL is `price`, averaged over prompts:
        on the frontier, by bisection of log β.

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

    def _value(self, log_policy: Tensor, rule: Regularizer) -> Tensor:
        return exact.value(log_policy, self.answers.reward, self.answers.ref_logps, rule, beta=self.beta)
