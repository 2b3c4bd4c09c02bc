"""Any convex f by its derivative: no common pool, so each formula has a form of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref._logspace import Weights, align, check_beta, check_logps, check_weights, expand_weights, prompt_weights
from multiref._slope import Slope
from multiref.errors import ArgumentError
from multiref.regularizers._regularizer import Regularizer


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
        limits = {"at_zero": float(at_zero), "at_infinity": float(at_infinity)}
        for name, value in {"weights": weights, "f_prime": f_prime, **limits}.items():
            object.__setattr__(self, name, value)
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
        refs = align(check_logps(ref_logps, "ref_logps"), policy_logps.ndim).double()
        w = expand_weights(check_weights(self.weights, len(refs)), refs)
        each = _log_ratio_or_limit(policy_logps.double(), refs)
        kept = each.clamp(low, high)
        values = self.slope(kept) + (0.0 if low == -math.inf and high == math.inf else beyond * (each - kept))
        return beta * (w * _seen(values, w)).sum(0)

    def penalty(self, log_policy: Tensor, ref_logps: Tensor) -> Tensor:
        r"""[*B, Y], [K, *B, Y] → [*B]: Σ_k w_k Σ_y π_k f(π/π_k), f by quadrature of f'."""
        refs = align(check_logps(ref_logps, "ref_logps"), log_policy.ndim).double()
        log_policy = check_logps(log_policy, "log_policy").double()
        w = prompt_weights(self.weights, refs)[..., None]
        larger = torch.maximum(log_policy, refs)
        mean = _seen(self.slope.mean(_log_ratio_or_limit(log_policy, refs)), w)
        scale = torch.where(larger == -math.inf, 0.0, larger).exp()
        return torch.where(larger == -math.inf, 0.0, w * scale * mean).sum((0, -1))

    def __repr__(self) -> str:
        return f"{self.name}(weights={self.weights})"

    def __str__(self) -> str:
        return f"{self!r}: {self.formula}; no common pool. {self.citation}"


def _log_ratio_or_limit(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log p − log q, broadcast; 0 where neither has mass, ±inf where one has."""
    nothing = (log_p == -math.inf) & (log_q == -math.inf)
    return torch.where(nothing, 0.0, log_p) - torch.where(nothing, 0.0, log_q)


def _seen(values: Tensor, w: Tensor) -> Tensor:
    """What is infinite of an absent reference is not looked at, not even by the gradient of its weight."""
    return torch.where((w == 0) & values.isinf(), 0.0, values)


def _jensen_shannon(t: Tensor) -> Tensor:
    return 0.5 * (math.log(2) - torch.log1p(1 / t))


def _jeffreys(t: Tensor) -> Tensor:
    return t.log() + 1 - 1 / t
