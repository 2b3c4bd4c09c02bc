"""Reward against weighted KL: what was bought, at which price, and what could have been had for it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from multiref.report.figures.canvas import GREY, INK, MARKERS, PALETTE, canvas, finish, mark
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
) -> Figure:
    """The plane of price and reward.

    `curve` holds (price, reward) of the exact optima for many β: no policy lies above it. `optimum` is the one for the β asked;
    the dashed line through it, of slope β, joins all points whose objective J = reward − β·price equals the optimum's.
    """
    figure, axes = canvas(6.0, 4.8)
    if curve:
        axes.plot(*zip(*sorted(curve), strict=True), color=INK, linewidth=1.3, label="exact optima, every β")
    trained, given = itertools.cycle(zip(PALETTE, MARKERS, strict=True)), itertools.cycle((GREY, shape) for shape in "Xph8")
    for point in points:
        colour, marker = next(given if point.given else trained)
        mark(axes, point.price, point.reward, color=colour, marker=marker, markersize=7, label=point.label)
    if optimum is not None:
        axes.plot(*optimum, color=INK, marker="*", markersize=13, linestyle="none", label="π* (exact optimum)")
        if beta is not None:
            limits = axes.get_xlim(), axes.get_ylim()
            axes.axline(optimum, slope=beta, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="J as at π* (slope β)")
            axes.set(xlim=limits[0], ylim=limits[1])
    price = "Σₖ wₖ KL(π‖πₖ), nats per completion  (lower is nearer to the references)"
    return finish(figure, axes, price, "expected reward  (higher is better)")
