"""A statement: one theorem as a function of its quantities, which knows its formula, its source and its assumptions."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from multiref.bounds.bound import Bound, Status
from multiref.bounds.quantities import check_quantities
from multiref.errors import ArgumentError

__all__ = ["Statement", "Terms", "statement"]


@dataclass(frozen=True)
class Terms:
    """What a statement's function returns: the terms that add up to the bound (unless `value` is given), and the trivial range."""

    terms: Mapping[str, float]
    trivial: float
    value: float | None = None


class Statement:
    """A callable theorem. Calling it with its quantities, by name, returns a `Bound`."""

    def __init__(
        self,
        function: Callable[..., Terms],
        *,
        title: str,
        formula: str,
        rate: str,
        assumptions: tuple[str, ...],
        citation: str,
        status: Status,
    ):
        functools.update_wrapper(self, function)
        self.name = function.__name__.replace("_", "-")
        self.title, self.formula, self.rate = title, formula, rate
        self.assumptions, self.citation, self.status = assumptions, citation, status
        self._function = function
        self.parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters

    def __call__(self, **quantities: float) -> Bound:
        """The bound at these quantities.

        Raises:
            ArgumentError: a quantity is missing, unknown, not a number, or outside its range.
        """
        unknown = [q for q in quantities if q not in self.parameters]
        missing = [q for q, p in self.parameters.items() if q not in quantities and p.default is p.empty]
        if unknown or missing:
            found = f"unknown {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
            raise ArgumentError(f"{self.name}: found {found}, expected {', '.join(self.parameters)}; give these by name")
        defaults = {q: p.default for q, p in self.parameters.items() if q not in quantities}
        given = check_quantities(self.name, {q: quantities[q] if q in quantities else defaults[q] for q in self.parameters})
        try:
            result = self._function(**given)
        except OverflowError:
            result = Terms({"overflow": math.inf}, trivial=0.0)
        value = sum(result.terms.values()) if result.value is None else result.value
        return Bound(
            value=value,
            terms=dict(result.terms),
            trivial=result.trivial,
            rate=self.rate,
            assumptions=self.assumptions,
            citation=self.citation,
            status=self.status,
            quantities=given,
            statement=self,
        )

    def __repr__(self) -> str:
        return f"<statement {self.name}: {self.formula}>"


def statement(**description) -> Callable[[Callable[..., Terms]], Statement]:
    """Decorator: turns a function of quantities, returning `Terms`, into a `Statement` described by title, formula, rate, …"""

    def wrap(function: Callable[..., Terms]) -> Statement:
        return Statement(function, **description)

    return wrap
