"""One figure a claim: measured points with their intervals, the fitted slope, and each bound with its real constants."""

from __future__ import annotations

import io
from pathlib import Path

from multiref._files import write_whole
from multiref_lab.claim import Curve, Figure

__all__ = ["draw"]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = {
    "measured": {"marker": "o", "markersize": 4, "linewidth": 1.2},
    "points": {"marker": ".", "markersize": 3, "linestyle": "none", "alpha": 0.5},
    "bound": {"linestyle": "--", "linewidth": 1.2},
    "theory": {"linestyle": "-.", "linewidth": 1.0},
    "trivial": {"linestyle": ":", "linewidth": 1.2, "color": "#888888"},
}


def draw(figure: Figure, path: str | Path, *, title: str = "") -> None:
    """Write the figure as PNG, in one step (a reader never sees half of it)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = Canvas(figsize=(6.6, 5.0), dpi=110, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    for i, curve in enumerate(figure.curves):
        _draw_curve(axes, curve, _COLOURS[i % len(_COLOURS)])
    if figure.log_x:
        axes.set_xscale("log")
    if figure.log_y:
        axes.set_yscale("log")
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", linewidth=0.4, alpha=0.5)
    canvas.legend(loc="outside lower center", fontsize=7, ncols=2, frameon=False)
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", metadata={"Software": None})
    write_whole(path, stream.getvalue())


def _draw_curve(axes, curve: Curve, colour: str) -> None:
    label = curve.label if curve.slope is None else f"{curve.label}: slope {curve.slope.value:.2f}"
    style = {"color": colour, **_STYLES[curve.kind]}
    axes.plot(curve.x, curve.y, label=label, **style)
    if curve.low:
        axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0)
