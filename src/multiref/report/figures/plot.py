"""A plot as a value, and its drawing: measured points with their intervals, fitted slopes,
and bounds with their real constants."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from multiref._files import write_whole
from multiref.report.noise import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Kind = Literal["measured", "points", "bound", "trivial", "theory"]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES: dict[Kind, dict[str, Any]] = {
    "measured": {"marker": "o", "markersize": 4, "linewidth": 1.2},
    "points": {"marker": ".", "markersize": 3, "linestyle": "none", "alpha": 0.5},
    "bound": {"linestyle": "--", "linewidth": 1.2},
    "theory": {"linestyle": "-.", "linewidth": 1.0},
    "trivial": {"linestyle": ":", "linewidth": 1.2, "color": "#888888"},
}


@dataclass(frozen=True)
class Curve:
    """Points of a plot; `kind` says how to draw them."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Kind = "measured"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    slope: Estimate | None = None


@dataclass(frozen=True)
class Plot:
    """Axes and curves."""

    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_x: bool = True
    log_y: bool = True


def draw(plot: Plot, path: str | os.PathLike[str], *, title: str = "") -> None:
    """Write the plot as PNG, in one step (a reader never sees half of it)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 5.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for i, curve in enumerate(plot.curves):
        _draw_curve(axes, curve, _COLOURS[i % len(_COLOURS)])
    if plot.log_x:
        axes.set_xscale("log")
    if plot.log_y:
        axes.set_yscale("log")
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", linewidth=0.4, alpha=0.5)
    figure.legend(loc="outside lower center", fontsize=7, ncols=2, frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    write_whole(path, stream.getvalue())


def _draw_curve(axes: Axes, curve: Curve, colour: str) -> None:
    label = curve.label if curve.slope is None else f"{curve.label}: slope {curve.slope.value:.2f}"
    style = {"color": colour, **_STYLES[curve.kind]}
    axes.plot(curve.x, curve.y, label=label, **style)
    if curve.low:
        axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0)
