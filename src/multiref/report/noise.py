"""Means over seeds, their standard errors, and whether a paired difference is more than noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from multiref.errors import ArgumentError

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom (any statistics text); beyond, see critical_t.
CRITICAL = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def critical_t(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t; past 30 degrees of freedom by the first two Cornish–Fisher terms
    (error < 1e-3)."""
    if freedom < 1:
        return math.inf
    if freedom <= len(CRITICAL):
        return CRITICAL[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True)
class Estimate:
    """A number with a 95 % interval (bootstrap over seeds unless its source says otherwise)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Measure:
    """A mean and its standard error over n independent repetitions; the error is None when n < 2 (nothing known of it)."""

    mean: float
    error: float | None = None
    n: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """mean = Σ v_i / n,  error = sqrt(Σ (v_i − mean)² / (n (n − 1)))."""
        if not values:
            raise ArgumentError("a mean of no values was asked for; expected at least one seed")
        n = len(values)
        mean = math.fsum(values) / n
        return cls(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n * (n - 1))) if n > 1 else None, n)

    def text(self, digits: int = 3) -> str:
        """`0.123 ± 0.004`; the bare mean where no error is known."""
        mean = f"{self.mean:.{digits}f}"
        if float(mean) == 0:
            mean = mean.lstrip("-")
        mean = mean.replace("-", "−")
        return mean if self.error is None else f"{mean} ± {self.error:.{digits}f}"


@dataclass(frozen=True)
class Difference(Measure):
    """The mean of a_i − b_i over the same n seeds, its standard error, and what may be said of it at the 95 % level."""

    @property
    def within_noise(self) -> bool:
        """True unless |mean| exceeds t_{0.975, n−1} standard errors (a paired t-test at 5 %); True whenever n < 2."""
        return self.error is None or abs(self.mean) <= critical_t(self.n - 1) * self.error

    def text(self, digits: int = 3) -> str:
        """`−0.012 ± 0.003` or `+0.001 ± 0.004 (within noise)`."""
        size = Measure(abs(self.mean), self.error).text(digits)
        return ("−" if self.mean < 0 else "+") + size + (" (within noise)" if self.within_noise else "")


def paired(values: Sequence[float], against: Sequence[float]) -> Difference:
    """Differences seed by seed: what both runs share (data, order, labels) cancels,
    so the error is of the difference itself."""
    if len(values) != len(against):
        raise ArgumentError(f"paired values must come from the same seeds: found {len(values)} against {len(against)}")
    return Difference.of([a - b for a, b in zip(values, against, strict=True)])
