r"""The bilevel problem on finite completions: who prefers what, which references, which regularizer.

Four upper objectives, each as three functions of a policy and a reward:
its value, its derivative in the policy, its derivative in the reward.

With p(y, y') = σ(r(y) − r(y')), P* the true preference, π the policy, ν the comparator (the normalised pool):

    Likelihood     f = −Σ π π' [P* log p + (1 − P*) log(1 − p)]    the papers' objective, U0 in our pages
                   (FOUND: SAIL, PARL's use); not Fisher-consistent (DERIVED)
    StopGradient   its direct derivative alone, U1: iterated on-policy maximum likelihood; a field, not the gradient of anything
    Debiased       f = Σ π π' (p − P*)², U2: from two labels a pair (p − z)(p − z'); optionally Σ π ν' (p − P*)²
    WinRate        f = −Σ π ν' P* + κ β Σ_k w_k D(π‖π_k), U3: κ = ¼ (the slope of σ at zero); does not look at the reward itself
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref import exact
from multiref.divergences import f_prime
from multiref.errors import ArgumentError
from multiref.regularizers import Regularizer, check_beta


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
        off = (self.preference + self.preference.mT - 1).abs()
        if not bool(((off <= 1e-6) & (self.preference >= 0)).all()):
            raise ArgumentError(
                f"preference: found P(y ≻ y') + P(y' ≻ y) off one by {float(off.max()):.3g}, expected probabilities; give one "
                "table for both orders"
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


class Upper(ABC):
    """f(r, π), per prompt. `follows_policy`: whether the hyper-gradient includes the policy's response to the reward."""

    follows_policy: bool = True

    @abstractmethod
    def value(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        """[*B, Y], [*B, Y] → [*B]: f."""

    @abstractmethod
    def payoff(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        """[*B, Y], [*B, Y] → [*B, Y]: c = ∂f/∂π."""

    @abstractmethod
    def direct(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        """[*B, Y], [*B, Y] → [*B, Y]: ∂f/∂r, the policy held fixed."""


def _pair_loss(problem: Problem, reward: Tensor) -> Tensor:
    """[*B, Y] → [*B, Y, Y]: cross-entropy of the true preference under the reward's."""
    margin = reward.unsqueeze(-1) - reward.unsqueeze(-2)
    return -problem.preference * logsigmoid(margin) - (1 - problem.preference) * logsigmoid(-margin)


def _excess(problem: Problem, reward: Tensor) -> Tensor:
    """[*B, Y] → [*B, Y, Y]: p − P*, antisymmetric."""
    return preference_table(reward) - problem.preference


def _over(table: Tensor, law: Tensor) -> Tensor:
    """[*B, Y, Y], [*B, Y] → [*B, Y]: Σ_y' table(y, y') law(y')."""
    return (table @ law.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Likelihood(Upper):
    """Cross-entropy of pairs drawn from the policy that the reward induces."""

    def value(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        policy = log_policy.exp()
        return (policy * _over(_pair_loss(problem, reward), policy)).sum(-1)

    def payoff(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        return 2 * _over(_pair_loss(problem, reward), log_policy.exp())

    def direct(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        policy = log_policy.exp()
        return 2 * policy * _over(_excess(problem, reward), policy)


@dataclass(frozen=True)
class StopGradient(Likelihood):
    """The likelihood's derivative with the sampling law held fixed. Its fixed point is the true reward when that is in the
    class."""

    follows_policy = False


@dataclass(frozen=True)
class Debiased(Upper):
    """Squared error of the predicted preference. `mixed`: pairs π ⊗ ν, which keeps a collapsed policy from hiding its
    errors."""

    mixed: bool = False

    def _partner(self, problem: Problem, log_policy: Tensor) -> Tensor:
        return (problem.comparator_logps if self.mixed else log_policy).exp()

    def value(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        return (log_policy.exp() * _over(_excess(problem, reward) ** 2, self._partner(problem, log_policy))).sum(-1)

    def payoff(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        return (1 if self.mixed else 2) * _over(_excess(problem, reward) ** 2, self._partner(problem, log_policy))

    def direct(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        excess = _excess(problem, reward)
        p = excess + problem.preference
        slope = 2 * excess * p * (1 - p)  # ∂(p − P*)²/∂r(y), antisymmetric
        policy, partner = log_policy.exp(), self._partner(problem, log_policy)
        return policy * _over(slope, partner) + partner * _over(slope, policy)


@dataclass(frozen=True)
class WinRate(Upper):
    """Minus the measured win rate over the comparator, plus `strength` · β times the lower level's penalty."""

    strength: float = 0.25

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ArgumentError(
                f"strength: found {self.strength!r}, expected at least zero; a quarter matches Bradley–Terry at small margins"
            )

    def value(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        won = (log_policy.exp() * _over(problem.preference, problem.comparator_logps.exp())).sum(-1)
        return -won + self.strength * problem.beta * problem.regularizer.penalty(log_policy, problem.ref_logps)

    def payoff(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        nothing = (log_policy == -torch.inf) & (problem.log_pool == -torch.inf)  # never played, whatever it would pay
        slope = f_prime(torch.where(nothing, 0.0, log_policy - problem.log_pool), problem.regularizer.alpha)
        return -_over(problem.preference, problem.comparator_logps.exp()) + self.strength * problem.beta * slope

    def direct(self, problem: Problem, log_policy: Tensor, reward: Tensor) -> Tensor:
        return torch.zeros_like(reward)
