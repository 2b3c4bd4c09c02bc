"""The lines that claims draw: measured over seeds with a fitted slope, a bound with its real constants,
intervals at a few places.
"""

from collections.abc import Sequence

from torch import Tensor

from multiref.bounds import Bound
from multiref.report import Estimate
from multiref.report.figures import Curve
from multiref_lab.stats import fit_slope, measured_curve


def fitted(label: str, x: Sequence[float], values: Tensor, *, decade: float = 10.0) -> tuple[Estimate, Curve]:
    """[P], [S, P] → the slope of log(mean over seeds) against log x over the last decade,
    and the measured curve that it stands at.
    """
    slope = fit_slope(x, values, decade=decade)
    return slope, measured_curve(label, x, values, slope=slope)


def along(label: str, bound: Bound, x: Sequence[float], quantity: str = "samples") -> Curve:
    """A bound as a line: its value at each x of one of its quantities."""
    return Curve(label, tuple(map(float, x)), tuple(bound.at(**{quantity: float(n)}).value for n in x), "bound")


def flat(label: str, x: Sequence[float], level: float) -> Curve:
    """What is true without any statement: the trivial range, at every x."""
    return Curve(label, tuple(map(float, x)), (level,) * len(x), "trivial")


def bars(label: str, x: Sequence[float], estimates: Sequence[Estimate]) -> Curve:
    """Estimates with their intervals."""
    value, low, high = zip(*((e.value, e.low, e.high) for e in estimates))
    return Curve(label, tuple(x), value, "measured", low, high)
