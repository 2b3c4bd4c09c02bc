"""A plot as a value, and its drawing: measured points with their spread, fitted slopes, bounds with their real constants."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from multiref._files import as_path, write_whole
from multiref.errors import ArgumentError
from multiref.report.noise import Estimate, Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Kind = Literal["measured", "points", "bound", "trivial", "theory"]

_STYLES: dict[Kind, dict[str, Any]] = {
    "measured": {"markersize": 5, "linewidth": 1.4},
    "points": {"marker": ".", "markersize": 3, "linestyle": "none", "alpha": 0.5},
    "bound": {"marker": "", "linestyle": "--", "linewidth": 1.2},
    "theory": {"marker": "", "linestyle": "-.", "linewidth": 1.2, "color": "#1b1f24"},
    "trivial": {"marker": "", "linestyle": ":", "linewidth": 1.2, "color": "#888888"},
}


@dataclass(frozen=True)
class Curve:
    """Points of a plot; `kind` says how to draw them, `low` and `high` are a band's edges, `slope` stands in the legend.

    Attributes:
        place: in the palette of colours and markers; None: as it comes in the plot.
        dashed: a twin of the full line of the same place.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Kind = "measured"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    slope: Estimate | None = None
    place: int | None = None
    dashed: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ArgumentError(f"curve {self.label!r}: found {len(self.x)} places and {len(self.y)} values")

    @classmethod
    def of_seeds(
        cls, label: str, x: Sequence[float], values: Sequence[Sequence[float]], *, place: int | None = None, **more: Any
    ) -> Curve:
        """For each x the values of all seeds: their mean, with a band of one standard error either side."""
        found = [Measure.of(seeds) for seeds in values]
        low, high = ([m.mean + sign * (m.error or 0) for m in found] for sign in (-1, 1))
        return cls(label, x, [m.mean for m in found], "measured", low, high, place=place, **more)


@dataclass(frozen=True)
class Plot:
    """Axes and curves. `ticks`: where the x axis is labelled, if not where matplotlib would."""

    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_x: bool = True
    log_y: bool = True
    ticks: Sequence[float] = ()

    def figure(self, title: str = "") -> Figure:
        """The plot drawn."""
        from multiref.report.figures.canvas import canvas, finish

        figure, axes = canvas(6.4, 4.9)
        for number, curve in enumerate(self.curves):
            _draw(axes, curve, number if curve.place is None else curve.place)
        finish(figure, axes, self.x_label, self.y_label, title, log_x=self.log_x, log_y=self.log_y)
        if not self.log_x and all(float(x).is_integer() for curve in self.curves for x in curve.x):
            axes.locator_params(axis="x", integer=True)  # no half of a step
        if self.ticks:
            axes.set_xticks(list(self.ticks), [f"{tick:,.0f}" for tick in self.ticks])
            axes.set_xticks([], minor=True)
        return figure


def draw(plot: Plot, path: str | os.PathLike[str], *, title: str = "") -> None:
    """Write the plot as PNG, in one step (a reader never sees half of it). ArgumentError for a name of another kind of file."""
    if as_path(path).suffix.lower() not in (".png", ""):
        raise ArgumentError(f"{os.fspath(path)}: figures are written as PNG. Expected a name that ends in .png.")
    from multiref.report.figures.canvas import png

    write_whole(path, png(plot.figure(title), dots_per_inch=110))


def _draw(axes: Axes, curve: Curve, place: int) -> None:
    from multiref.report.figures.canvas import MARKERS, PALETTE

    label = curve.label if curve.slope is None else f"{curve.label}  (slope {curve.slope.value:+.2f})".replace("-", "−")
    style = {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)], **_STYLES[curve.kind]}
    if curve.dashed:
        style |= {"linestyle": "--", "markerfacecolor": "white"}
    axes.plot(curve.x, curve.y, label=label, markevery=max(1, len(curve.x) // 12), **style)
    if curve.low:
        axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.15, linewidth=0)
