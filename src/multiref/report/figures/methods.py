"""One number for several methods: each seed a small mark, the mean with its standard error a large one."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

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
    axes.set_yticks(range(len(methods)), [method.label for method in methods])
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.grid(False, axis="y")
    axes.set_ylim(len(methods) - 0.5, -0.6)
    axes.set(xlabel=axis, xscale=scale)
    return figure
