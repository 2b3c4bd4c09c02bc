"""One number for several methods: each seed a small mark, the mean with its standard error a large one,
the best possible a line."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from multiref.report.figures.canvas import GREY, MARKERS, PALETTE, canvas
from multiref.report.noise import Measure


@dataclass(frozen=True)
class Method:
    """A row: its name and its value for each seed. `given` marks a row that was not trained here (one value, no error)."""

    label: str
    values: Sequence[float]
    given: bool = False


def objective_by_method(
    methods: Sequence[Method],
    *,
    optimum: float | None = None,
    axis: str = "objective J(π)  (higher is better)",
    optimum_label: str = "optimum J*",
    scale: str = "linear",
) -> Figure:
    """Horizontal rows in the order given, first on top; bars are one standard error of the mean over seeds. `scale`:
    linear or log."""
    figure, axes = canvas(6.0, 1.3 + 0.42 * len(methods))
    trained = 0
    for row, method in enumerate(methods):
        mean = Measure.of(method.values)
        colour, marker = GREY, "D"
        if not method.given:
            colour, marker = PALETTE[trained % len(PALETTE)], MARKERS[trained % len(MARKERS)]
            trained += 1
        if len(method.values) > 1:
            axes.plot(method.values, [row + 0.24] * len(method.values), "|", color=colour, alpha=0.75, markersize=7)
        axes.errorbar(mean.mean, row, xerr=mean.error, color=colour, marker=marker, markersize=7, capsize=3, linestyle="none")
    if optimum is not None:
        axes.axvline(optimum, color="#1b1f24", linewidth=1.2)
        axes.annotate(
            optimum_label,
            (optimum, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
    axes.set_yticks(range(len(methods)), [method.label for method in methods])
    axes.tick_params(axis="y", labelcolor="#1b1f24", length=0)
    axes.grid(False, axis="y")
    axes.set_ylim(len(methods) - 0.5, -0.6)
    axes.set(xlabel=axis, xscale=scale)
    return figure
