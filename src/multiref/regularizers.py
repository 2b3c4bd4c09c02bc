"""Regularizers: the one choice that a user states, as a small value, and hands to every room above.

Each is β times a divergence of the policy π to K weighted references, which collapses *exactly* into one to a pool P of them.
A member states two numbers, α (which f) and ρ (which pool); the formulas are shared:

    pool            P = power mean of order ρ of the references
    implicit reward r = β f'(π/P),  f'(t) = (t^(α−1) − 1)/(α − 1),  log t at α = 1          (up to a constant per prompt)
    tilt            π* = P · (1 + (α−1)(r − λ)/β)_+^{1/(α−1)},      P · e^{(r − λ)/β} at α = 1
    penalty         Σ_k w_k D_α(π‖π_k)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from multiref._logspace import Weights, broadcast, check_beta, check_weights, expand_weights, expectation, log_ratio
from multiref._slope import Slope
from multiref.divergences import NEAR_ZERO, f_prime, weighted_alpha_divergence
from multiref.errors import ArgumentError
from multiref.pools import power_pool

__all__ = [
    "AlphaDivergence",
    "FDivergence",
    "ForwardKL",
    "PooledKL",
    "Regularizer",
    "ReverseKL",
    "Weights",
    "check_beta",
    "check_weights",
]

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
        n = self.weights.shape[0] if isinstance(self.weights, Tensor) and self.weights.ndim else len(self.weights)
        checked = check_weights(self.weights, n)
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
        r"""[K, *E] → [*E]: log P, the references as one unnormalised log-mass."""
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
        return beta * f_prime(policy_logps - self.pool(ref_logps), self.alpha)

    def penalty(self, log_policy: Tensor, ref_logps: Tensor) -> Tensor:
        r"""[*B, Y], [K, *B, Y] → [*B]: Σ_k w_k D_α(π‖π_k) on a finite support, without β.
        References are distributions over it."""
        return self.penalty_given_pool(log_policy, None if self.alpha < NEAR_ZERO else self.pool(ref_logps), ref_logps)

    def penalty_given_pool(self, log_policy: Tensor, log_pool: Tensor | None, ref_logps: Tensor) -> Tensor:
        r"""`penalty` for who holds the pool [*B, Y] already. For α < 0.05 the pool's form would cancel:
        there it is summed reference by reference."""
        if log_pool is None or self.alpha < NEAR_ZERO:
            return weighted_alpha_divergence(log_policy, ref_logps, self.weights, alpha=self.alpha)
        ratio = log_ratio(log_policy, log_pool, under=log_policy)
        if self.alpha == 1:
            return expectation(log_policy, ratio)
        return expectation(log_policy, torch.expm1((self.alpha - 1) * ratio)) / (self.alpha * (self.alpha - 1))

    def with_weights(self: R, weights: Weights) -> R:
        """The same regularizer under other weights: of a sweep, or of a batch whose weights differ per example."""
        changed = object.__new__(type(self))
        for field, value in self.__dict__.items():
            object.__setattr__(changed, field, value)
        object.__setattr__(changed, "weights", weights)
        changed.__post_init__()
        return changed

    def _key(self) -> tuple[object, ...]:
        weights = id(self.weights) if isinstance(self.weights, Tensor) else self.weights
        return (type(self), weights, self.alpha, self.order)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Regularizer) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        return f"{self!r}: {self.formula}; pool of order {self.order:g}. {self.citation}"


@dataclass(frozen=True, eq=False)
class ReverseKL(Regularizer):
    """Σ_k w_k KL(π‖π_k): geometric pool, π* ∝ P_0 e^{r/β}. A reference's zero is a veto.

    >>> ReverseKL([0.25, 0.75])
    ReverseKL(weights=(0.25, 0.75))
    """

    alpha = 1.0
    order = 0.0
    formula = "Σ_k w_k KL(π‖π_k)"
    citation = "arXiv 2502.01203, Theorem 5.1 (FOUND)."


@dataclass(frozen=True, eq=False)
class ForwardKL(Regularizer):
    """Σ_k w_k KL(π_k‖π): arithmetic pool, π* = β P_1/(Z − r), Z the root that normalises.
    Covers whatever any reference covers."""

    alpha = 0.0
    order = 1.0
    formula = "Σ_k w_k KL(π_k‖π)"
    citation = "arXiv 2502.01203, Theorem 6.1 (FOUND); bracket, value and corner DERIVED."


@dataclass(frozen=True, eq=False)
class AlphaDivergence(Regularizer):
    """Σ_k w_k D_α(π‖π_k): pool of order 1 − α. α = 1 is reverse KL, 0 forward KL, ½ (four times) squared Hellinger,
    2 half of χ².

    For α > 1 the optimum may truncate (π* = 0 where the reward is low); for α < 1 a completion outside every reference's
    support costs only β/(1 − α).
    """

    alpha: float = 0.5  # a field here, a constant in the named members

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ArgumentError(f"alpha: expected a finite number, found {self.alpha}.")
        super().__post_init__()

    @property
    def order(self) -> float:
        """1 − α."""
        return 1.0 - self.alpha

    formula = "Σ_k w_k D_α(π‖π_k), f'(t) = (t^(α−1) − 1)/(α − 1)"
    citation = "DERIVED (docs/theory.md 3): the α-family's pool is the power mean of order 1 − α."


@dataclass(frozen=True, eq=False)
class PooledKL(Regularizer):
    """Reverse KL to a pool that one names: E_π[log π/P_ρ]. Order −1 is MRPO's objective;
    it is Σ_k w_k KL(π‖π_k) only at order 0.

    For ρ < 0 the pool lies below the geometric one, so the penalty is an upper bound of Σ_k w_k KL(π‖π_k) and the optimum is
    another policy.
    """

    order: float = -1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.order):
            raise ArgumentError(f"order: expected a finite number, found {self.order}.")
        super().__post_init__()

    alpha = 1.0
    formula = "E_π[log π − log P_ρ], P_ρ not normalised"
    citation = "MRPO, arXiv 2405.16388, for order −1 (reconstructed from code: docs/theory.md 7)."


@dataclass(frozen=True, eq=False, init=False, repr=False)
class FDivergence(Regularizer):
    r"""Σ_k w_k D_f(π‖π_k), D_f(p‖q) = Σ_y q f(p/q), for a convex f that is given by its derivative.

    Outside the α-family there is no common pool: the optimum solves Σ_k w_k f'(π/π_k) = (r − λ)/β completion by completion
    (`exact.solve`), the implicit reward is β Σ_k w_k f'(π/π_k), and whatever asks for a pool refuses by name.

    Args:
        f_prime: t [*E] float64 → f'(t) [*E], a function of torch that rises; a constant in it changes nothing.
        at_zero: f'(0): −inf keeps mass wherever all references have some; a number truncates, as α > 1 does.
        at_infinity: f'(∞): +inf is a veto by each reference's zero; a number is the price, times β, of mass outside all of
            them, a corner as for α < 1.

    Raises:
        ArgumentError: a function that falls, is NaN, or has other limits.

    >>> FDivergence.jensen_shannon([0.5, 0.5]).at_infinity
    0.34657359027997264
    """

    f_prime: Callable[[Tensor], Tensor] = torch.log
    at_zero: float = -math.inf
    at_infinity: float = math.inf

    citation = "DERIVED (docs/theory.md 3): any f, without a pool."

    def __init__(
        self, f_prime: Callable[[Tensor], Tensor], at_zero: float, at_infinity: float, weights: Weights = None
    ) -> None:
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "f_prime", f_prime)
        object.__setattr__(self, "at_zero", float(at_zero))
        object.__setattr__(self, "at_infinity", float(at_infinity))
        self.__post_init__()
        self.slope.check()

    @classmethod
    def jensen_shannon(cls, weights: Weights = None) -> "FDivergence":
        """Half of KL(π‖m) + KL(π_k‖m), m = (π + π_k)/2: no reference can veto, mass outside costs β ½ log 2."""
        return cls(_jensen_shannon, -math.inf, 0.5 * math.log(2), weights)

    @classmethod
    def jeffreys(cls, weights: Weights = None) -> "FDivergence":
        """KL(π‖π_k) + KL(π_k‖π): a reference's zero is a veto, and its support stays."""
        return cls(_jeffreys, -math.inf, math.inf, weights)

    @property
    def name(self) -> str:
        """Of the two named cases theirs; else that of the class."""
        named: dict[Callable[[Tensor], Tensor], str] = {_jensen_shannon: "JensenShannon", _jeffreys: "Jeffreys"}
        return named.get(self.f_prime, "FDivergence")

    @property
    def formula(self) -> str:
        """The penalty, in one line."""
        symbol = {"JensenShannon": "JS(π, π_k)", "Jeffreys": "(KL(π‖π_k) + KL(π_k‖π))"}.get(self.name, "D_f(π‖π_k)")
        return f"Σ_k w_k {symbol}"

    @property
    def slope(self) -> Slope:
        """f' as a function of log t."""
        return Slope(self.f_prime, self.at_zero, self.at_infinity)

    @property
    def alpha(self) -> float:
        """ArgumentError: it has none."""
        raise ArgumentError(f"{self.name}: it is no α-divergence, so there is no pool; use ReverseKL or AlphaDivergence here.")

    @property
    def order(self) -> float:
        """ArgumentError: it has none."""
        return self.alpha

    def pool(self, ref_logps: Tensor) -> Tensor:
        """ArgumentError: the references of an f-divergence do not collapse into one."""
        raise ArgumentError(
            f"{self.name}: the references do not collapse into one pool under a general f. Use exact.solve, exact.value, "
            "preference or online training, or a member of the α-family where a pool is needed."
        )

    def implicit_reward(
        self,
        policy_logps: Tensor,
        ref_logps: Tensor,
        *,
        beta: float,
        tame: tuple[float, float, float] = (-math.inf, math.inf, 1.0),
    ) -> Tensor:
        r"""[*E], [K, *E] → [*E]: β Σ_k w_k f'(π/π_k), float64.

        Args:
            tame: (low, high, slope): beyond these log-ratios f' goes on with this slope (`Preference`'s `reward_range`).
        """
        check_beta(beta)
        low, high, beyond = tame
        w = expand_weights(check_weights(self.weights, ref_logps.shape[0]), ref_logps).double()
        each = _log_ratio_or_limit(policy_logps.double(), ref_logps.double())
        kept = each.clamp(low, high)
        values = self.slope(kept) + (0.0 if low == -math.inf and high == math.inf else beyond * (each - kept))
        return beta * torch.where(w > 0, w * values, 0.0).sum(0)

    def penalty(self, log_policy: Tensor, ref_logps: Tensor) -> Tensor:
        r"""[*B, Y], [K, *B, Y] → [*B]: Σ_k w_k Σ_y π_k f(π/π_k), f by quadrature of f'."""
        log_policy = log_policy.expand(broadcast(log_policy.shape, ref_logps.shape[1:])).double()
        refs = ref_logps.double()
        w = expand_weights(check_weights(self.weights, refs.shape[0]), refs)
        nothing = torch.maximum(log_policy.expand_as(refs), refs) == -math.inf
        mean = self.slope.mean(_log_ratio_or_limit(log_policy, refs))
        scale = torch.where(nothing, 0.0, torch.maximum(log_policy.expand_as(refs), refs)).exp()
        return torch.where(nothing | (w == 0), 0.0, w * scale * mean).sum((0, -1))

    def _key(self) -> tuple[object, ...]:
        weights = id(self.weights) if isinstance(self.weights, Tensor) else self.weights
        return (type(self), weights, self.f_prime, self.at_zero, self.at_infinity)

    def __repr__(self) -> str:
        return f"{self.name}(weights={self.weights})"

    def __str__(self) -> str:
        return f"{self!r}: {self.formula}; no common pool. {self.citation}"


def _log_ratio_or_limit(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log p − log q, broadcast; 0 where neither has mass, ±inf where one has."""
    log_p = log_p.expand(broadcast(log_p.shape, log_q.shape))
    nothing = (log_p == -math.inf) & (log_q == -math.inf)
    return torch.where(nothing, 0.0, log_p) - torch.where(nothing, 0.0, log_q)


def _jensen_shannon(t: Tensor) -> Tensor:
    return 0.5 * (math.log(2) - torch.log1p(1 / t))


def _jeffreys(t: Tensor) -> Tensor:
    return t.log() + 1 - 1 / t
