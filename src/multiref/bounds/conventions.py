"""Two papers, two letters, one number: how regularisation strengths and stationarity targets convert."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from multiref.bounds.quantities import check_positive
from multiref.errors import ArgumentError

Stationarity = Literal["norm", "squared-norm"]

# name → whether the letter multiplies the KL (as β does) or divides it (as 1/β would)
_MULTIPLIES: Mapping[str, bool] = {
    "beta": True,
    "gamma": False,
    "eta": False,
    "eta-gshf": True,
    "lambda": True,
    "temperature": True,
}


def convert_strength(value: float, *, source: str, target: str) -> float:
    r"""A strength in another paper's letter.

    β KL (DPO, GRPO, this package, SAIL, XPO) · γ⁻¹ KL (multi-reference, 2502.01203) ·
    η⁻¹ KL (2411.04625, 2510.13512, 2602.23116) · η KL (`eta-gshf`, 2312.11456) · λ KL (2601.16403, with λ = 1 after rescaling).

    Raises:
        ArgumentError: an unknown letter, or a strength that is not positive.
    """
    for name in (source, target):
        if name not in _MULTIPLIES:
            raise ArgumentError(f"strength: found {name!r}, expected one of {', '.join(_MULTIPLIES)}; name one of these")
    check_positive(strength=value)
    return value if _MULTIPLIES[source] == _MULTIPLIES[target] else 1 / value


def strengths(beta: float) -> dict[str, float]:
    """One β in every letter."""
    return {name: convert_strength(beta, source="beta", target=name) for name in _MULTIPLIES}


def convert_target(epsilon: float, *, source: Stationarity, target: Stationarity) -> float:
    """ε of "‖∇F‖ ≤ ε" (norm) as the ε of "‖∇F‖² ≤ ε" (squared-norm), and back.

    Raises:
        ArgumentError: an unknown convention, or ε ≤ 0.
    """
    _check_stationarity(source, target)
    check_positive(epsilon=epsilon)
    if source == target:
        return epsilon
    return epsilon**2 if source == "norm" else math.sqrt(epsilon)


@dataclass(frozen=True)
class Exponent:
    """A complexity ε^(−k), in both conventions."""

    norm: float
    squared_norm: float

    def __str__(self) -> str:
        return f"ε^(−{self.norm:g}) where ‖∇F‖ ≤ ε;  ε^(−{self.squared_norm:g}) where ‖∇F‖² ≤ ε"


def convert_exponent(power: float, *, stated: Stationarity) -> Exponent:
    r"""ε^(−power), stated for one convention, in both: exponents for ‖∇F‖² ≤ ε are half of those for ‖∇F‖ ≤ ε.

    `convert_exponent(3.5, stated="squared-norm")` is ε^(−7) for the norm: the rate of the penalty method of 2309.01753,
    unchanged.

    Raises:
        ArgumentError: an unknown convention, or a power that is not positive.
    """
    _check_stationarity(stated)
    check_positive(power=power)
    return Exponent(norm=power, squared_norm=power / 2) if stated == "norm" else Exponent(norm=2 * power, squared_norm=power)


def _check_stationarity(*names: str) -> None:
    for name in names:
        if name not in ("norm", "squared-norm"):
            raise ArgumentError(
                f"stationarity: found {name!r}, expected 'norm' (‖∇F‖ ≤ ε) or 'squared-norm' (‖∇F‖² ≤ ε); say which"
            )
