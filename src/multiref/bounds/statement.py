"""A theorem as a function of its quantities, and its value at some of them: a number, its source, whether it says anything."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from multiref.bounds.inversion import solve
from multiref.bounds.quantities import DEFAULTS, check_positive, check_quantities, describe
from multiref.errors import ArgumentError

Status = Literal["found", "derived", "provisional"]
_MEANING = {
    "found": "found in the paper, constants as printed",
    "derived": "derived here, with proof",
    "provisional": "form found, constants not: read the rate, not the number",
}
_COUNTS = {"samples", "iterations"}


@dataclass(frozen=True, eq=False)
class Statement:
    """A callable theorem. Calling it with its quantities, by name, returns a `Bound`.

    Attributes:
        formula, rate: the inequality, and how it falls with the data, in words.
        assumptions: what must hold for it to be true.
        citation: where it is printed, or where it is proved.
        status: `found` (constants as printed), `derived` (ours), `provisional` (form found, constants not available).
        quantities: names, in the order in which `terms` takes them; `?` follows one that has a default.
        terms: quantities → what adds up to the right-hand side, by name.
        trivial: quantities by name → the range that needs no theorem.
        note: what else to know.
    """

    name: str
    title: str
    formula: str
    rate: str
    assumptions: tuple[str, ...]
    citation: str
    status: Status
    quantities: str
    terms: Callable[..., Mapping[str, float]]
    trivial: Callable[[Mapping[str, float]], float]
    note: str = ""

    @property
    def parameters(self) -> dict[str, float | None]:
        """Its quantities, each with its default; None where it must be given."""
        return {q.rstrip("?"): DEFAULTS[q[:-1]] if q.endswith("?") else None for q in self.quantities.split()}

    def __call__(self, **quantities: float) -> "Bound":
        """The bound at these quantities.

        Raises:
            ArgumentError: a quantity is missing, unknown, not a number, or outside its range.
        """
        known = self.parameters
        unknown = [q for q in quantities if q not in known]
        missing = [q for q, default in known.items() if q not in quantities and default is None]
        if unknown or missing:
            found = f"unknown {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
            raise ArgumentError(f"{self.name}: found {found}, expected {', '.join(known)}; give these by name")
        given = check_quantities(self.name, {q: quantities.get(q, default) for q, default in known.items()})
        terms: dict[str, float] = {"overflow": math.inf}
        trivial = math.inf
        with suppress(OverflowError, ZeroDivisionError):  # a divisor that underflows
            terms = dict(self.terms(*given.values()))
        with suppress(OverflowError):
            trivial = self.trivial(given)
        source = self.rate, self.assumptions, self.citation, self.status
        return Bound(sum(terms.values()), terms, trivial, *source, quantities=given, statement=self)

    def __repr__(self) -> str:
        return f"<statement {self.name}: {self.formula}>"

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.title}", f"  {self.formula}", f"  source  {self.citation}"]
        lines += [f"  note    {self.note}"] if self.note else []
        lines += ["", "  quantities"]
        for quantity, default in self.parameters.items():
            stated = "" if default is None else f" (default {default:g})"
            lines.append(f"    --{quantity.replace('_', '-'):<18} {describe(quantity)}{stated}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Bound:
    """The value of one statement at given quantities.

    Attributes:
        value: the right-hand side.
        terms: what adds up to it, by name.
        trivial: the range that needs no theorem; `vacuous` says that `value` is not below it.
        rate, assumptions, citation, status: the statement's.
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

    def at(self, **changes: float) -> "Bound":
        """The same statement with some quantities changed."""
        return self.statement(**{**self.quantities, **changes})

    def solve_for(self, quantity: str, *, target: float) -> float:
        """The value of one quantity at which the bound equals `target`, all others held (rounded up for counts).

        For a count this is the least one from which on the bound stays at or below the target;
        for a quantity that makes the bound grow, the largest up to which it does.

        Raises:
            ArgumentError: the statement has no such quantity, or no value of it between 1e-12 and 1e300 reaches the target.
        """
        name = self.statement.name
        if quantity not in self.quantities:
            raise ArgumentError(
                f"{name}: found no quantity {quantity!r}, expected one of {', '.join(self.quantities)}; name one of these"
            )
        check_positive(target=target)
        counted = quantity in _COUNTS

        def value(x: float) -> float:
            """NaN outside the bound's domain."""
            try:
                return self.at(**{quantity: x}).value
            except ArgumentError:  # outside its domain
                return math.nan

        try:
            found = solve(value, start=self.quantities[quantity], least=1.0 if counted else 1e-12, target=target)
        except ArgumentError as error:
            raise ArgumentError(
                f"{name}: found target {target:.4g}, but {quantity} {error}; choose another target or another quantity"
            ) from None
        if not counted:
            return found
        return float(math.ceil(found * (1 - 1e-12)))  # a closed form that is an integer must not be rounded up to the next one

    def __str__(self) -> str:
        vacuous = f"   VACUOUS: the trivial range is {_short(self.trivial)}" if self.vacuous else ""
        given = "  ".join(f"{name} {_short(value)}" for name, value in self.quantities.items())
        lines = [
            f"{self.statement.name}: {self.statement.title}",
            f"  {self.statement.formula}",
            f"  value    {_short(self.value)}{vacuous}",
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
