"""A claim as a value: what is said, where, what number it predicts, how that is measured, and by which rule it is decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from multiref.report import Estimate
from multiref.report.figures import Curve
from multiref.report.figures import Plot as Figure

__all__ = [
    "Check",
    "Claim",
    "Curve",
    "Effort",
    "Estimate",
    "Figure",
    "Measurement",
    "Verdict",
    "all_hold",
    "at_least",
    "at_most",
    "exactly",
    "near",
]

Verdict = Literal["verified", "vacuous", "convention-dependent", "refuted", "not testable here"]
T = TypeVar("T")


@dataclass(frozen=True)
class Effort:
    """How much to spend. Quick is a test (well under a second a claim), full is the ledger; both use at least 20 seeds."""

    full: bool = False

    def choose(self, quick: T, full: T) -> T:
        """`full` in a full run, else `quick`."""
        return full if self.full else quick


@dataclass(frozen=True)
class Check:
    """One predicted number beside the measured one, and whether they agree."""

    what: str
    predicted: str
    measured: float | Estimate
    holds: bool

    @property
    def shown(self) -> str:
        return str(self.measured) if isinstance(self.measured, Estimate) else f"{self.measured:.4g}"


@dataclass(frozen=True)
class Measurement:
    """What an experiment found."""

    checks: tuple[Check, ...]
    figure: Figure | None = None
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """One statement, decided by one experiment.

    Attributes:
        status: `found` if a paper says it, `derived` if we do.
        source: where.
        predicted: the number or relation to be seen, in words.
        rule: the decision rule, in words; `decide` is the rule itself.
    """

    name: str
    group: str
    statement: str
    status: Literal["found", "derived"]
    source: str
    predicted: str
    rule: str
    measure: Callable[[Effort], Measurement]
    decide: Callable[[Measurement], Verdict]


def near(what: str, predicted: float, measured: float | Estimate, tolerance: float) -> Check:
    """Holds if the measured value is within `tolerance` of the predicted one."""
    value = measured.value if isinstance(measured, Estimate) else measured
    return Check(what, f"{predicted:.4g} ± {tolerance:.2g}", measured, abs(value - predicted) <= tolerance)


def at_most(what: str, limit: float, measured: float | Estimate) -> Check:
    """Holds if the measured value (the upper end of its interval) is at most `limit`."""
    value = measured.high if isinstance(measured, Estimate) else measured
    return Check(what, f"≤ {limit:.4g}", measured, value <= limit)


def at_least(what: str, limit: float, measured: float | Estimate) -> Check:
    """Holds if the measured value (the lower end of its interval) is at least `limit`."""
    value = measured.low if isinstance(measured, Estimate) else measured
    return Check(what, f"≥ {limit:.4g}", measured, value >= limit)


def exactly(what: str, predicted: float, measured: float) -> Check:
    """Holds if the two are the same number: for counts."""
    return Check(what, f"{predicted:g}", measured, measured == predicted)


def all_hold(measurement: Measurement) -> Verdict:
    """Verified if every check holds, else refuted."""
    return "verified" if all(check.holds for check in measurement.checks) else "refuted"
