"""Reward against weighted KL: what was bought, at which price, and what could have been had for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from multiref.report.figures.canvas import GREY, MARKERS, PALETTE, canvas
from multiref.report.noise import Measure


@dataclass(frozen=True)
class Point:
    """A policy on the plane: price (weighted KL, nats per completion) and reward.
    `given` marks a model that was not trained here."""

    label: str
    price: Measure
    reward: Measure
    given: bool = False


def frontier(
    points: Sequence[Point],
    curve: Sequence[tuple[float, float]] = (),
    *,
    optimum: tuple[float, float] | None = None,
    beta: float | None = None,
    price: str = "Σₖ wₖ KL(π‖πₖ), nats per completion  (lower is nearer to the references)",
    reward: str = "expected reward  (higher is better)",
) -> Figure:
    """The plane of price and reward.

    `curve` holds (price, reward) of the exact optima for many β: no policy lies above it. `optimum` is the one for the β asked;
    the dashed line through it, of slope β, joins all points whose objective J = reward − β·price equals the optimum's.
    """
    figure, axes = canvas(6.0, 4.8)
    if curve:
        ordered = sorted(curve)
        axes.plot(
            [x for x, _ in ordered], [y for _, y in ordered], color="#1b1f24", linewidth=1.3, label="exact optima, every β"
        )
    trained = [point for point in points if not point.given]
    for point, colour, marker in zip(trained, _cycle(PALETTE, len(trained)), _cycle(MARKERS, len(trained)), strict=True):
        axes.errorbar(
            point.price.mean,
            point.reward.mean,
            xerr=point.price.error,
            yerr=point.reward.error,
            color=colour,
            marker=marker,
            markersize=7,
            linestyle="none",
            capsize=2.5,
            label=point.label,
        )
    given = [point for point in points if point.given]
    for point, marker in zip(given, _cycle(("X", "p", "h", "8"), len(given)), strict=True):
        axes.plot(
            point.price.mean, point.reward.mean, color=GREY, marker=marker, markersize=7, linestyle="none", label=point.label
        )
    if optimum is not None:
        axes.plot(*optimum, color="#1b1f24", marker="*", markersize=13, linestyle="none", label="π* (exact optimum)")
        if beta is not None:
            limits = axes.get_xlim(), axes.get_ylim()
            axes.axline(optimum, slope=beta, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="J as at π* (slope β)")
            axes.set(xlim=limits[0], ylim=limits[1])
    axes.set_xlabel(price)
    axes.set_ylabel(reward)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _cycle(values: Sequence[str], count: int) -> list[str]:
    return [values[i % len(values)] for i in range(count)]
