"""One number for several: a row each, with its seeds or its interval."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multiref.report.figures.canvas import GREY, INK, MARKERS, PALETTE, canvas, mark
from multiref.report.noise import Measure


@dataclass(frozen=True)
class Method:
    """A row: its name and its value for each seed. `given` marks a row that was not trained here (one value, no error)."""

    label: str
    values: Sequence[float]
    given: bool = False


def objective_by_method(
    methods: Sequence[Method], *, axis: str = "objective J(π)  (higher is better)", scale: str = "linear"
) -> Figure:
    """Horizontal rows in the order given, first on top; bars are one standard error of the mean over seeds. `scale`:
    linear or log."""
    figure, axes = canvas(6.0, 1.3 + 0.42 * len(methods))
    trained = itertools.cycle(zip(PALETTE, MARKERS, strict=True))
    for row, method in enumerate(methods):
        colour, marker = (GREY, "D") if method.given else next(trained)
        if len(method.values) > 1:
            axes.plot(method.values, [row + 0.24] * len(method.values), "|", color=colour, alpha=0.75, markersize=7)
        mark(axes, Measure.of(method.values), Measure(row), color=colour, marker=marker, markersize=7)
    _name_rows(axes, [method.label for method in methods])
    axes.set(xlabel=axis, xscale=scale)
    return figure


def intervals(rows: Sequence[tuple[str, float | None, float | None, float | None]], axis: str) -> Figure:
    """Horizontal rows (name, value, low, high), first on top, of those whose value is known; bounds may be None."""
    known = [(name, value, low, high) for name, value, low, high in rows if value is not None]
    figure, axes = canvas(6.0, 1.3 + 0.42 * len(known))
    styles = itertools.cycle(zip(PALETTE, MARKERS, strict=True))
    for row, ((name, value, low, high), (colour, marker)) in enumerate(zip(known, styles)):
        bars = None if low is None or high is None else [[value - low], [high - value]]
        axes.errorbar(
            value, row, xerr=bars, linestyle="none", label=name, color=colour, marker=marker, markersize=7, capsize=2.5
        )
    _name_rows(axes, [name for name, *_ in known])
    axes.set(xlabel=axis)
    return figure


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.grid(False, axis="y")
    axes.set_ylim(len(names) - 0.5, -0.6)
