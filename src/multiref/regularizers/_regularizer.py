"""What every regularizer is: an f, a pool, and the formulas that follow from the two."""

from abc import ABC, abstractmethod
from collections.abc import Sized
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from torch import Tensor

from multiref._logspace import Weights, align, check_beta, check_weights, prompt_weights
from multiref.divergences import NEAR_ZERO, alpha_divergence, f_prime, weighted_alpha_divergence
from multiref.pools import power_pool

R = TypeVar("R", bound="Regularizer")


@dataclass(frozen=True, eq=False)
class Regularizer(ABC):
    """Abstract: a divergence to K weighted references. Its members are final values: hashable, comparable, printable.

    Args:
        weights: [K] on the simplex, or a tensor [K, *E] where weights differ per example;
            None is uniform over however many references come. A tensor that requires a gradient stays one,
            so that weights can be learned.
    """

    weights: Weights = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        counted = isinstance(self.weights, Sized) and getattr(self.weights, "ndim", 1) > 0
        checked = check_weights(self.weights, len(self.weights) if counted else 1)
        plain = checked.ndim == 1 and not checked.requires_grad
        object.__setattr__(self, "weights", tuple(checked.tolist()) if plain else checked)

    @property
    @abstractmethod
    def alpha(self) -> float:
        """Which f: 1 for reverse KL(π‖π_k), 0 for forward KL(π_k‖π)."""

    @property
    @abstractmethod
    def order(self) -> float:
        """ρ, the order of the power mean that pools the references."""

    @property
    @abstractmethod
    def formula(self) -> str:
        """The penalty, in one line."""

    @property
    @abstractmethod
    def citation(self) -> str:
        """Where it comes from, and whether that is a paper's statement or ours."""

    @property
    def name(self) -> str:
        """The name of the class, as in `ReverseKL`."""
        return type(self).__name__

    def pool(self, ref_logps: Tensor) -> Tensor:
        r"""[K, *E] → [*E]: log P, the references as one unnormalised log-mass, log P_ρ = (1/ρ) log Σ_k w_k π_k^ρ, ρ = `order`.

        Raises: as `pools.power_pool`: ArgumentError for NaN or log-probabilities above zero, WeightsError.
        """
        return power_pool(ref_logps, self.weights, self.order)

    def implicit_reward(self, policy_logps: Tensor, ref_logps: Tensor, *, beta: float) -> Tensor:
        r"""[*E], [K, *E] → [*E]: the reward for which this policy is optimal, up to a constant per prompt.

            r = β f'(π/P)

        The constant cancels in a preference margin, so the pool need not be normalised. Exact wherever π* > 0.
        Where α ≠ 1 the ratio enters as a power, so the result is float64 and spans e^{±|α−1|·log-ratio}:
        finite for log-ratios of whole completions up to ±700/|α−1|.

        Args:
            policy_logps: log π of completions (summed over tokens), nats.
            ref_logps: the references' log-probabilities of the same completions.
            beta: strength β > 0.

        Reference: Rafailov et al., 2023, eq. 5, with the reference replaced by the pool; DERIVED (docs/theory.md 3).
        """
        check_beta(beta)
        return beta * f_prime(policy_logps - self.pool(align(ref_logps, policy_logps.ndim)), self.alpha)

    def penalty(self, log_policy: Tensor, ref_logps: Tensor) -> Tensor:
        r"""[*B, Y], [K, *B, Y] → [*B]: Σ_k w_k D_α(π‖π_k) on a finite support, without β.
        References are distributions over it."""
        ref_logps = align(ref_logps, log_policy.ndim)
        prompt_weights(self.weights, ref_logps)
        return self.penalty_given_pool(log_policy, None if self.alpha < NEAR_ZERO else self.pool(ref_logps), ref_logps)

    def penalty_given_pool(self, log_policy: Tensor, log_pool: Tensor | None, ref_logps: Tensor) -> Tensor:
        r"""`penalty` for who holds the pool [*B, Y] already. For α < 0.05 the pool's form would cancel:
        there it is summed reference by reference."""
        if log_pool is None or self.alpha < NEAR_ZERO:
            return weighted_alpha_divergence(log_policy, ref_logps, self.weights, alpha=self.alpha)
        return alpha_divergence(log_policy, log_pool, self.alpha)

    def with_weights(self: R, weights: Weights) -> R:
        """The same regularizer under other weights: of a sweep, or of a batch whose weights differ per example."""
        return replace(self, weights=weights)

    def _key(self) -> tuple[object, ...]:
        values = (getattr(self, field.name) for field in fields(self))
        return (type(self), *(id(value) if isinstance(value, Tensor) else value for value in values))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Regularizer) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        return f"{self!r}: {self.formula}; pool of order {self.order:g}. {self.citation}"
