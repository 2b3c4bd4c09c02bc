"""The experiment's figures: a colour and marker for each method, a full line under one reference, a dashed one under two,
bands of one standard error."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from multiref.report.figures import MARKERS, PALETTE, canvas
from multiref_lab.stats import Measure


@dataclass(frozen=True)
class Line:
    """label; colour: which of the palette; dashed: under two references; values: of all seeds at each x; slope:
    to be shown, or None."""

    label: str
    colour: int
    dashed: bool
    values: Sequence[Sequence[float]]
    slope: float | None = None


def figure(lines: Sequence[Line], x: Sequence[float], *, xlabel: str, ylabel: str, log_x: bool, log_y: bool) -> Figure:
    """Means over seeds against x."""
    made, axes = canvas(6.0, 4.9)
    for line in lines:
        means = [Measure.of(values) for values in line.values]
        colour = PALETTE[line.colour % len(PALETTE)]
        label = line.label if line.slope is None else f"{line.label}  (slope {line.slope:+.2f})".replace("-", "−")
        axes.plot(
            x, [m.mean for m in means], color=colour, marker=MARKERS[line.colour % len(MARKERS)], markersize=5, linewidth=1.4,
            label=label,
            linestyle="--" if line.dashed else "-", markerfacecolor="white" if line.dashed else colour,
        )  # fmt: skip
        low, high = ([m.mean + sign * (m.error or 0) for m in means] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear", xlabel=xlabel, ylabel=ylabel)
    if log_x:
        axes.set_xticks(list(x), [f"{value:,.0f}" for value in x])
        axes.set_xticks([], minor=True)
    made.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return made
