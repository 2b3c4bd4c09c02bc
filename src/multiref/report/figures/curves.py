"""Lines over an axis: training curves with their spread over seeds, and log-log plots with fitted slopes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multiref.errors import ArgumentError
from multiref.report.figures.canvas import MARKERS, PALETTE, canvas
from multiref.report.noise import Measure


@dataclass(frozen=True)
class Series:
    """A line: x, and for each x the values of all seeds."""

    label: str
    x: Sequence[float]
    values: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.values):
            raise ArgumentError(f"series {self.label!r} has {len(self.x)} places and {len(self.values)} values")


def curves(series: Sequence[Series], *, x: str, y: str, log_y: bool = False) -> Figure:
    """Means over seeds, with a band of one standard error either side."""
    figure, axes = canvas(6.0, 4.3)
    for number, line in enumerate(series):
        _draw(axes, line, number, band=True)
    if log_y:
        axes.set_yscale("log")
    axes.set(xlabel=x, ylabel=y)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def log_log(series: Sequence[Series], *, x: str, y: str) -> Figure:
    """Both axes logarithmic; the least-squares slope of log(mean y) on log x stands in the legend."""
    figure, axes = canvas(6.0, 4.6)
    for number, line in enumerate(series):
        fitted = slope(line.x, [Measure.of(values).mean for values in line.values])
        _draw(axes, Series(f"{line.label}  (slope {fitted:+.2f})".replace("-", "−"), line.x, line.values), number, band=True)
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    return figure


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of log y on log x, over the places where both are positive; NaN with fewer than two of them."""
    logs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True) if a > 0 and b > 0]
    if len(logs) < 2:
        return math.nan
    middle = math.fsum(a for a, _ in logs) / len(logs)
    spread = math.fsum((a - middle) ** 2 for a, _ in logs)
    return math.fsum((a - middle) * b for a, b in logs) / spread if spread else math.nan


def _draw(axes: Axes, line: Series, number: int, *, band: bool) -> None:
    colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
    measures = [Measure.of(values) for values in line.values]
    means = [measure.mean for measure in measures]
    every = max(1, len(means) // 8)
    axes.plot(line.x, means, color=colour, marker=marker, markevery=every, markersize=5, linewidth=1.5, label=line.label)
    if band and all(measure.error is not None for measure in measures):
        low = [measure.mean - (measure.error or 0) for measure in measures]
        high = [measure.mean + (measure.error or 0) for measure in measures]
        axes.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)
