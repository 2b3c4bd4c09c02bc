"""A bound as a value: its number, where the number comes from, and whether it says anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from multiref.errors import ArgumentError

if TYPE_CHECKING:
    from multiref.bounds.statement import Statement

__all__ = ["Bound", "Status"]

Status = Literal["found", "derived", "provisional"]
_MEANING = {
    "found": "found in the paper, constants as printed",
    "derived": "derived here, with proof",
    "provisional": "form found, constants not: read the rate, not the number",
}
_COUNTS = {"samples", "iterations"}
_CELLS = 400


@dataclass(frozen=True)
class Bound:
    """The value of one statement at given quantities.

    Attributes:
        value: the right-hand side.
        terms: what adds up to it, by name.
        trivial: the range that needs no theorem; `vacuous` says that `value` is not below it.
        rate: how it falls with the data, in words.
        assumptions: what must hold for it to be true.
        citation: where it is printed, or where it is proved.
        status: `found` (constants as printed), `derived` (ours), `provisional` (form found, constants not available).
        quantities: the arguments it was evaluated at.
    """

    value: float
    terms: Mapping[str, float]
    trivial: float
    rate: str
    assumptions: tuple[str, ...]
    citation: str
    status: Status
    quantities: Mapping[str, float]
    statement: Statement = field(repr=False, compare=False)

    @property
    def vacuous(self) -> bool:
        """Whether the bound is no better than the range that needs no theorem."""
        return not self.value < self.trivial

    def at(self, **changes: float) -> Bound:
        """The same statement with some quantities changed."""
        return self.statement(**{**self.quantities, **changes})

    def solve_for(self, quantity: str, *, target: float) -> float:
        """The value of one quantity at which the bound equals `target`, all others held (rounded up for counts).

        For a count this is the least one from which on the bound stays at or below the target; for a quantity that makes the bound grow, the
        largest up to which it does.

        Raises:
            ArgumentError: the statement has no such quantity, or no value of it between 1e-12 and 1e300 reaches the target.
        """
        if quantity not in self.quantities:
            raise ArgumentError(
                f"{self.statement.name}: found no quantity {quantity!r}, expected one of {', '.join(self.quantities)}; name one of these"
            )
        if not (isinstance(target, int | float) and math.isfinite(target) and target > 0):
            raise ArgumentError(
                f"target: found {target!r}, expected a positive number; give the value that the bound should reach"
            )
        solution = _root(self, quantity, math.log(target))
        if quantity not in _COUNTS:
            return solution
        count = math.ceil(solution * (1 - 1e-12))  # a closed form that is an integer must not be rounded up to the next one
        return float(count) if self.at(**{quantity: float(count)}).value <= target * (1 + 1e-9) else float(count + 1)

    def __str__(self) -> str:
        given = "  ".join(f"{name} {_short(value)}" for name, value in self.quantities.items())
        lines = [
            f"{self.statement.name}: {self.statement.title}",
            f"  {self.statement.formula}",
            f"  value    {_short(self.value)}"
            + (f"   VACUOUS: the trivial range is {_short(self.trivial)}" if self.vacuous else ""),
            *(f"    {name:<28} {_short(value)}" for name, value in self.terms.items() if len(self.terms) > 1),
            f"  trivial  {_short(self.trivial)}",
            f"  rate     {self.rate}",
            f"  status   {self.status} ({_MEANING[self.status]})",
            f"  source   {self.citation}",
            f"  at       {given}",
            "  assumes",
            *(f"    - {assumption}" for assumption in self.assumptions),
        ]
        return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 and value == int(value) else f"{value:.4g}"


def _log_value(bound: Bound, quantity: str, log_x: float) -> float:
    """log of the bound at exp(log_x), ±inf where the statement is outside its domain there."""
    value = bound.at(**{quantity: math.exp(log_x)}).value
    return math.log(value) if value > 0 else -math.inf


def _domain(bound: Bound, quantity: str) -> tuple[float, float]:
    """The largest interval of log(quantity) around the present one, within [1e-12, 1e300] (counts: from 1), where the statement is defined."""
    here = math.log(bound.quantities[quantity]) if bound.quantities[quantity] > 0 else 0.0
    edges = []
    for far in (0.0 if quantity in _COUNTS else math.log(1e-12), math.log(1e300)):
        inside, outside = here, far
        if _defined(bound, quantity, far):
            edges.append(far)
            continue
        for _ in range(200):
            middle = 0.5 * (inside + outside)
            inside, outside = (middle, outside) if _defined(bound, quantity, middle) else (inside, middle)
        edges.append(inside)
    return edges[0], edges[1]


def _defined(bound: Bound, quantity: str, log_x: float) -> bool:
    try:
        return not math.isnan(bound.at(**{quantity: math.exp(log_x)}).value)
    except (ArgumentError, OverflowError):
        return False


def _root(bound: Bound, quantity: str, log_target: float) -> float:
    """Bisection on log(quantity), in the last cell of a grid where the bound crosses the target on its way down, or the first on its way up."""
    low, high = _domain(bound, quantity)
    grid = [low + (high - low) * i / _CELLS for i in range(_CELLS)] + [high]
    above = [_log_value(bound, quantity, x) > log_target for x in grid]
    crossings = [i for i in range(_CELLS) if above[i] != above[i + 1]]
    if not crossings:
        values = [math.exp(min(_log_value(bound, quantity, x), 700.0)) for x in grid]
        raise ArgumentError(
            f"{bound.statement.name}: found target {math.exp(log_target):.4g}, but {quantity} moves the bound only between "
            f"{min(values):.4g} and {max(values):.4g}; choose another target or another quantity"
        )
    falls = not above[-1]
    cell = crossings[-1] if falls else crossings[0]
    low, high = grid[cell], grid[cell + 1]
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (_log_value(bound, quantity, middle) > log_target) == falls else (low, middle)
    return math.exp(high if falls else low)
