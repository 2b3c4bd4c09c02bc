"""The α-family, and reverse KL to a pool that one names: each is two numbers."""

import math
from dataclasses import dataclass

from multiref.errors import ArgumentError
from multiref.regularizers._regularizer import Regularizer


@dataclass(frozen=True, eq=False)
class ReverseKL(Regularizer):
    """Σ_k w_k KL(π‖π_k): geometric pool, π* ∝ P_0 e^{r/β}. A reference's zero is a veto.

    weights: [K] or [K, *E] on the simplex, None is uniform; WeightsError off it.

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
    Covers whatever any reference covers. weights: as of `ReverseKL`."""

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
