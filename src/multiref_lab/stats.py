"""The laboratory's statistics, each in one place.

    bootstrap_mean(values)        [S] → mean with a 95 % interval over seeds, as an `Estimate`
    fit_slope(x, values)          [P], [S, P] → slope in log-log on the top decade, as an `Estimate`
    measured_curve(label, x, …)   [P], [S, P] → a curve of means with intervals, for a figure
    fitted(label, x, values)      both: the slope, and the curve that it stands at
    along(label, bound, x)        a bound as a line, with its real constants; flat, bars: a level, intervals at a few places
    bound_values(statement, …)    [S]: a bound at each of S instances
    log_spaced(low, high, count)  whole numbers, evenly spaced in log
    resample(count, generator)    [resamples, count] → how often each is drawn, for other statistics of a bootstrap
    Measure.of(values)            mean ± one standard error, as pages show it
    paired(values, against)       the mean difference over the same seeds, and whether it is more than noise, as a `Difference`

Bootstrap intervals draw seeds with replacement, whole curves at a time, always from the same stream:
the same values give the same interval.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiref.bounds import Bound, Statement
from multiref.errors import ArgumentError
from multiref.report import Difference, Estimate, Measure, paired
from multiref.report.figures import Curve

__all__ = ["Difference", "Estimate", "Measure", "bootstrap_mean", "fit_slope", "log_spaced", "measured_curve", "paired"]

RESAMPLES = 1000


def log_spaced(low: float, high: float, count: int) -> list[int]:
    """`count` whole numbers, evenly spaced in log."""
    return sorted({round(10**x) for x in torch.linspace(torch.tensor(low).log10(), torch.tensor(high).log10(), count).tolist()})


def resample(count: int, generator: torch.Generator) -> Tensor:
    """[resamples, count]: how often each of `count` things is among as many that are drawn with replacement."""
    drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
    counts = torch.zeros(RESAMPLES, count, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def _resample(values: Tensor) -> Tensor:
    """[S, P] → [resamples, P]: means over seeds drawn with replacement."""
    counts, values = resample(len(values), torch.Generator().manual_seed(0)), values.double()
    lost = counts @ (values == -torch.inf).double() > 0  # where none of these is drawn, 0 · (−∞) = 0
    return torch.where(lost, -torch.inf, counts @ values.clamp_min(-1e300)) / len(values)


def _interval(resampled: Tensor) -> Tensor:
    """[resamples, *E] → [2, *E]: the 2.5 % and the 97.5 % quantile."""
    between = "linear" if bool(resampled.isfinite().all()) else "nearest"  # between −∞ and a number there is nothing
    return torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0, interpolation=between)


def bootstrap_mean(values: Tensor) -> Estimate:
    """[S] → the mean with a 95 % percentile interval."""
    low, high = _interval(_resample(values.reshape(-1, 1))[:, 0]).tolist()
    return Estimate(float(values.double().mean()), low, high)


def fit_slope(x: Sequence[float], values: Tensor, *, decade: float = 10.0) -> Estimate:
    r"""[P], [S, P] → least-squares slope of log(mean over seeds) against log x over the points with x ≥ x_max/decade,
    bootstrap over seeds.

    Raises:
        ArgumentError: fewer than three points in the decade, or means that are not positive there.
    """
    points = torch.as_tensor(x, dtype=torch.float64)
    top = points >= points.max() / (decade * (1 + 1e-9))
    means = values.double()[:, top].mean(0)
    if int(top.sum()) < 3 or not bool((means > 0).all()):
        raise ArgumentError(
            f"slope: found {int(top.sum())} points with means {means.tolist()}, expected at least 3 positive ones"
        )
    centred = points[top].log() - points[top].log().mean()
    direction = centred / (centred**2).sum()
    resampled = _resample(values[:, top]).clamp_min(torch.finfo(torch.float64).tiny).log() @ direction
    low, high = _interval(resampled).tolist()
    return Estimate(float(means.log() @ direction), low, high)


def measured_curve(label: str, x: Sequence[float], values: Tensor, *, slope: Estimate | None = None) -> Curve:
    """[P], [S, P] → a curve of means with bootstrap intervals."""
    low, high = _interval(_resample(values)).tolist()
    mean = values.double().mean(0).tolist()
    return Curve(label, tuple(map(float, x)), tuple(mean), "measured", tuple(low), tuple(high), slope)


def fitted(label: str, x: Sequence[float], values: Tensor, *, decade: float = 10.0) -> tuple[Estimate, Curve]:
    """[P], [S, P] → the slope of log(mean over seeds) against log x over the last decade,
    and the measured curve that it stands at.
    """
    slope = fit_slope(x, values, decade=decade)
    return slope, measured_curve(label, x, values, slope=slope)


def along(label: str, bound: Bound, x: Sequence[float], quantity: str = "samples") -> Curve:
    """A bound as a line: its value at each x of one of its quantities."""
    return Curve(label, tuple(map(float, x)), tuple(bound.at(**{quantity: float(n)}).value for n in x), "bound")


def bound_values(statement: Statement, **quantities: Tensor | float) -> Tensor:
    """[S] float64: the bound's value at each instance, from quantities [S], or one number for all instances."""
    varying = {name: each.tolist() for name, each in quantities.items() if isinstance(each, Tensor)}
    rows = zip(*varying.values(), strict=True)
    values = [statement(**{**quantities, **dict(zip(varying, row))}).value for row in rows]
    return torch.tensor(values, dtype=torch.float64)


def flat(label: str, x: Sequence[float], level: float) -> Curve:
    """What is true without any statement: the trivial range, at every x."""
    return Curve(label, tuple(map(float, x)), (level,) * len(x), "trivial")


def bars(label: str, x: Sequence[float], estimates: Sequence[Estimate]) -> Curve:
    """Estimates with their intervals."""
    value, low, high = zip(*((e.value, e.low, e.high) for e in estimates))
    return Curve(label, tuple(x), value, "measured", low, high)
